from typing import Any

import numpy as np
import pytest
import torch
from tests.tracker.watched_models import CNN, images

from tracker.activity import ActivityStats, GroupActivity, Untracked, observe
from tracker.advice import recommend
from tracker.errors import RecommendationError
from tracker.recommendations import load_recommendations


def layer(firing: list[float], name: str = "fc1", **given: Any) -> GroupActivity:
    """A rectified layer whose neurons are as large as they fire often, unless something else is given."""
    values = np.array(firing)
    arrays = {
        "mean": values,
        "variance": values,
        "minimum": np.zeros_like(values),
        "maximum": values * 5,
        "mean_magnitude": values,
        "firing_frequency": values,
        **{key: np.array(value) for key, value in given.items()},
    }
    return GroupActivity(name=name, kind="mlp", exact=True, count=1000, **arrays)


def stats(*layers: GroupActivity, **given: Any) -> ActivityStats:
    return ActivityStats("CNN", "abc", 3, {group.name: group for group in layers}, **given)


def reasons(found: ActivityStats, **options: Any) -> dict[int, str]:
    return {entry.neuron: entry.reason for entry in recommend(found, **options).prune}


def test_every_neuron_goes_for_its_strongest_reason() -> None:
    group = layer([0.5, 0.0, 0.004, 1.0, 0.3], variance=[0.5, 0.0, 0.1, 0.0, 0.2])
    assert reasons(stats(group)) == {1: "dead", 3: "constant", 2: "inactive"}
    assert reasons(stats(group), firing_frequency_threshold=0.4) == {
        1: "dead",
        3: "constant",
        2: "inactive",
        4: "inactive",
    }
    assert reasons(stats(group), firing_frequency_threshold=0.0) == {1: "dead", 3: "constant"}


def test_the_evidence_is_the_numbers_themselves() -> None:
    (entry,) = recommend(stats(layer([0.5, 0.004], maximum=[3.0, 0.25], mean_magnitude=[1.0, 0.125]))).prune
    assert entry.evidence["firing_frequency"] == 0.004
    assert entry.evidence["maximum"] == 0.25
    assert entry.evidence["mean_magnitude"] == 0.125


def test_redundant_neurons_keep_the_stronger_of_a_pair() -> None:
    # 0 and 1 move together, 2 against them with the most variance; 3 is on its own, 4 dead.
    correlation = np.eye(5)
    for one, other, value in ((0, 1, 0.97), (0, 2, -0.99), (1, 2, -0.96)):
        correlation[one, other] = correlation[other, one] = value
    variance = np.array([1.0, 0.5, 4.0, 1.0, 0.0])
    covariance = correlation * np.sqrt(np.outer(variance, variance))
    group = layer([0.5, 0.5, 0.5, 0.5, 0.0], variance=variance)
    found = recommend(stats(group, covariance={"fc1": covariance}))
    assert [entry.neurons for entry in found.merge] == [(2, 0), (0, 1), (2, 1)]
    assert [entry.correlation for entry in found.merge] == pytest.approx([-0.99, 0.97, -0.96])
    redundant = {entry.neuron: entry for entry in found.prune if entry.reason == "redundant"}
    assert set(redundant) == {0, 1}
    assert redundant[0].evidence["same_as"] == 2
    assert redundant[1].evidence["same_as"] == 2
    strict = recommend(stats(group, covariance={"fc1": covariance}), correlation_threshold=0.98)
    assert [entry.neurons for entry in strict.merge] == [(2, 0)]


def test_without_covariance_nothing_is_redundant() -> None:
    assert recommend(stats(layer([0.5, 0.5]))).merge == ()


def test_a_saturated_layer_should_grow() -> None:
    group = layer([1.0] * 20, mean=[0.0] * 20, variance=[0.95] * 20, minimum=[-1.0] * 20, maximum=[1.0] * 20)
    (entry,) = recommend(stats(group)).expand
    assert (entry.layer, entry.reason, entry.suggested) == ("fc1", "saturated", 25)
    assert entry.evidence["median_saturation"] == pytest.approx(0.95)


def test_a_rectified_layer_that_always_fires_should_grow() -> None:
    (entry,) = recommend(stats(layer([0.99] * 8, variance=[0.1] * 8))).expand
    assert (entry.reason, entry.suggested) == ("always firing", 10)


@pytest.mark.parametrize(
    "group",
    [
        layer([0.5] * 8),
        layer([0.99] * 4 + [0.0] * 4, variance=[0.1] * 8),
        layer([0.99] * 8, variance=[0.1] * 8, minimum=[-5.0] * 8),
    ],
    ids=["at ease", "half dead", "signed"],
)
def test_other_layers_should_not(group: GroupActivity) -> None:
    assert recommend(stats(group)).expand == ()


def test_layers_carry_their_activity_or_none() -> None:
    other = Untracked("embed", "residual", False, 12, "it is not exact")
    found = recommend(stats(layer([0.5, 0.25]), untracked=(other,)), epoch=3)
    assert found.epoch == 3
    assert found.fingerprint == "abc"
    assert found.layers["fc1"].activity is not None
    assert found.layers["fc1"].activity.firing_frequency == (0.5, 0.25)
    assert (found.layers["embed"].size, found.layers["embed"].exact, found.layers["embed"].activity) == (
        12,
        False,
        None,
    )


@pytest.mark.parametrize("name", ["firing_frequency_threshold", "correlation_threshold"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_thresholds_are_shares(name: str, value: float) -> None:
    with pytest.raises(RecommendationError, match=f"{name} is {value}"):
        recommend(stats(layer([0.5])), **{name: value})


def test_real_statistics_give_valid_recommendations() -> None:
    model = CNN()
    with torch.no_grad():
        model.fc1.weight[3], model.fc1.bias[3] = 0, -1  # dead
        model.fc1.weight[4], model.fc1.bias[4] = 0, 1  # constant
        model.fc1.weight[6], model.fc1.bias[6] = model.fc1.weight[5] * 0.5, model.fc1.bias[5] * 0.5  # a copy
        model.fc1.bias[5], model.fc1.bias[6] = 0.2, 0.1
    found = recommend(observe(model, images(6), covariance=True))
    assert load_recommendations(found.model_dump(mode="json")) == found
    said = {(entry.neuron, entry.reason) for entry in found.prune if entry.layer == "fc1"}
    assert {(3, "dead"), (4, "constant")} <= said
    assert (5, 6) in {entry.neurons for entry in found.merge}
