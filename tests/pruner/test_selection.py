"""The lowest scores, by priority, within the room of every layer."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruner.config import PruningConfig
from pruner.limits import Limits
from pruner.selection import LAST, StrategyInput, lowest
from tracker.neuron_map import NeuronMap


def selection(
    scores: Mapping[str, list[float]],
    room: Mapping[str, int] | None = None,
    priority: Mapping[str, list[int]] | None = None,
    eligible: Mapping[str, list[bool]] | None = None,
) -> StrategyInput:
    sizes = {name: len(values) for name, values in scores.items()}
    config = PruningConfig()
    return StrategyInput(
        neurons=NeuronMap(groups=()),
        limits=Limits(sizes, sizes, frozenset(sizes), room or sizes, sum(sizes.values()), config),
        config=config,
        scores={name: np.asarray(values, dtype=np.float64) for name, values in scores.items()},
        target=None,
        priority={name: np.asarray(values, dtype=np.int64) for name, values in (priority or {}).items()},
        eligible={name: np.asarray(values, dtype=bool) for name, values in (eligible or {}).items()},
    )


SCORES = {"a": [0.1, 0.9, 0.5], "b": [0.2, 0.3, 0.8]}


def test_the_lowest_of_all_layers_go() -> None:
    assert lowest(selection(SCORES), ["a", "b"], 3) == {"a": [0], "b": [0, 1]}


def test_only_the_layers_named_lose_neurons() -> None:
    assert lowest(selection(SCORES), ["b"], 2) == {"b": [0, 1]}
    assert lowest(selection(SCORES), [], 2) == {}


def test_a_layer_loses_no_more_than_it_has_room_for() -> None:
    assert lowest(selection(SCORES, room={"a": 3, "b": 1}), ["a", "b"], 3) == {"a": [0, 2], "b": [0]}
    assert lowest(selection(SCORES, room={"a": 0, "b": 1}), ["a", "b"], 9) == {"b": [0]}


def test_priority_comes_before_the_score() -> None:
    given = selection(SCORES, priority={"a": [LAST, 0, LAST], "b": [LAST, LAST, 1]})
    assert lowest(given, ["a", "b"], 2) == {"a": [1], "b": [2]}
    assert lowest(given, ["a", "b"], 3) == {"a": [0, 1], "b": [2]}


def test_only_the_eligible_go() -> None:
    given = selection(SCORES, eligible={"a": [False, True, False], "b": [False, False, False]})
    assert lowest(given, ["a", "b"], 5) == {"a": [1]}


def test_what_is_already_gone_is_not_chosen_again_and_takes_room() -> None:
    given = selection(SCORES, room={"a": 2, "b": 3})
    assert lowest(given, ["a", "b"], 3, already={"a": [0]}) == {"a": [2], "b": [0, 1]}
    assert lowest(given, ["a"], 3, already={"a": [0, 2]}) == {}


def test_an_infinite_score_goes_last() -> None:
    assert lowest(selection({"a": [np.inf, 5.0, 7.0]}), ["a"], 2) == {"a": [1, 2]}


@pytest.mark.parametrize("count", [0, -3])
def test_nothing_goes_where_nothing_is_wanted(count: int) -> None:
    assert lowest(selection(SCORES), ["a", "b"], count) == {}


@settings(deadline=None, max_examples=100)
@given(
    scores=st.dictionaries(
        st.sampled_from("abcd"), st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=6), min_size=1
    ),
    count=st.integers(0, 30),
    room=st.integers(0, 4),
)
def test_agrees_with_going_through_them_one_by_one(scores: dict[str, list[float]], count: int, room: int) -> None:
    rooms = dict.fromkeys(scores, room)
    expected: dict[str, list[int]] = {}
    layers = list(scores)
    ranked = sorted((score, layers.index(name), neuron) for name in layers for neuron, score in enumerate(scores[name]))
    for _, layer, neuron in ranked:
        if sum(map(len, expected.values())) < count and len(expected.get(layers[layer], [])) < room:
            expected.setdefault(layers[layer], []).append(neuron)
    assert lowest(selection(scores, rooms), layers, count) == {name: sorted(gone) for name, gone in expected.items()}
