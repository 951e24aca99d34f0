"""Who is nominated, by what, and which recommendations fit a model."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.pruner import small_cnn

from pruner.config import Thresholds
from pruner.nominations import REASONS, check_fit, nominate, nominated, reason_of
from pruner.scores import KnownActivity
from pruner.selection import LAST
from tracker.errors import RecommendationError, UnknownLayerError
from tracker.neuron_map import NeuronMap
from tracker.recommendations import Recommendations, load_recommendations

SIZES = {"conv1": 10, "conv2": 64, "fc1": 128}


def neurons() -> NeuronMap:
    return small_cnn.neuron_map(small_cnn.model())


def recommended(*entries: tuple[str, int, str], **more: Any) -> Recommendations:
    prune = [{"layer": layer, "neuron": neuron, "reason": reason} for layer, neuron, reason in entries]
    return load_recommendations({"prune": prune, **more})


def priorities(
    recommendations: Recommendations | None = None, firing: dict[str, list[float]] | None = None, **thresholds: float
) -> dict[str, dict[str, list[int]]]:
    """Nominated neurons by layer and reason."""
    weights = {name: torch.arange(1, size + 1, dtype=torch.float64) for name, size in SIZES.items()}
    known = {name: torch.tensor(values, dtype=torch.float64) for name, values in (firing or {}).items()}
    found = nominate(neurons(), Thresholds(**thresholds), KnownActivity({}, known), weights, recommendations)
    return {
        name: {
            reason_of(int(value)): np.flatnonzero(priority == value).tolist()
            for value in np.unique(priority)
            if value < LAST
        }
        for name, priority in found.items()
        if (priority < LAST).any()
    }


def test_nobody_is_nominated_for_nothing() -> None:
    assert priorities() == {}


def test_recommended_neurons_are_with_their_reasons() -> None:
    given = recommended(("fc1", 3, "dead"), ("fc1", 9, "redundant"), ("conv1", 0, "constant"), ("conv2", 5, "inactive"))
    assert priorities(given) == {
        "conv1": {"constant": [0]},
        "conv2": {"inactive": [5]},
        "fc1": {"dead": [3], "redundant": [9]},
    }


def test_neurons_that_fire_less_than_the_threshold_are_inactive() -> None:
    firing = {"conv1": [0.0, 0.005, 0.01, 0.5, 1, 1, 1, 1, 1, 1]}
    assert priorities(firing=firing) == {"conv1": {"inactive": [0, 1]}}
    assert priorities(firing=firing, firing_frequency_threshold=0.6) == {"conv1": {"inactive": [0, 1, 2, 3]}}
    assert priorities(firing=firing, firing_frequency_threshold=0.0) == {}


def test_where_the_firing_frequency_is_known_our_threshold_decides() -> None:
    firing = {"conv1": [0.02] + [1.0] * 9}
    listed = recommended(("conv1", 0, "inactive"))
    assert priorities(listed, firing) == {}
    assert priorities(listed, firing, firing_frequency_threshold=0.05) == {"conv1": {"inactive": [0]}}
    assert priorities(recommended(("conv1", 0, "dead")), firing) == {"conv1": {"dead": [0]}}


def test_small_weights_are_weak() -> None:
    assert priorities(weight_magnitude_threshold=2.5) == {name: {"weak": [0, 1]} for name in SIZES}


def test_the_strongest_reason_counts() -> None:
    firing = {"conv1": [0.0] * 2 + [1.0] * 8}
    listed = recommended(("conv1", 0, "dead"), ("conv1", 1, "redundant"))
    assert priorities(listed, firing, weight_magnitude_threshold=1.5)["conv1"] == {"dead": [0], "inactive": [1]}


def test_reasons_have_words_and_an_order() -> None:
    assert [reason_of(priority) for priority in range(len(REASONS))] == [
        "dead",
        "constant",
        "inactive",
        "redundant",
        "weak",
    ]
    assert reason_of(LAST) == "low score"
    assert nominated({"a": np.array([LAST, 0, LAST, 3])})["a"].tolist() == [1, 3]


# --- do they fit?


def test_recommendations_without_a_fingerprint_fit_by_name_and_number() -> None:
    check_fit(recommended(("fc1", 127, "dead")), neurons())
    with pytest.raises(UnknownLayerError, match="Did you mean 'conv1'"):
        check_fit(recommended(("conv11", 0, "dead")), neurons())
    with pytest.raises(RecommendationError, match="neuron 128 of layer 'fc1', which has 128"):
        check_fit(recommended(("fc1", 128, "dead")), neurons())


def test_recommendations_of_another_structure_are_refused_with_the_difference() -> None:
    given = recommended(
        ("fc1", 3, "dead"),
        fingerprint="0" * 16,
        model="OtherCNN",
        layers={"fc1": {"size": 256}, "conv9": {"size": 4}, "conv1": {"size": 10}},
    )
    with pytest.raises(RecommendationError) as caught:
        check_fit(given, neurons())
    assert "OtherCNN" in str(caught.value)
    assert "layer 'fc1' had 256 neurons then and has 128 now" in str(caught.value)
    assert "layer 'conv9' had 4 neurons then and is not there now" in str(caught.value)
    assert "conv1" not in str(caught.value)


def test_one_neuron_under_two_names_is_refused() -> None:
    whole = neurons()
    group = whole["fc1"]
    two_names = type(group)(**{**vars(group), "name": "block"})
    with pytest.raises(RecommendationError, match="neuron 3 of layer 'block' 2 times"):
        check_fit(recommended(("fc1", 3, "dead"), ("block", 3, "dead")), NeuronMap((two_names,)))
