"""The lowest scores, by priority, within the room of every layer."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruner.config import PruningConfig
from pruner.limits import Limits
from pruner.selection import LAST, StrategyInput, lowest, rounded
from tracker.neuron_map import NeuronMap


def selection(
    scores: Mapping[str, list[float]],
    room: Mapping[str, int] | None = None,
    priority: Mapping[str, list[int]] | None = None,
    eligible: Mapping[str, list[bool]] | None = None,
    step: Mapping[str, int] | None = None,
) -> StrategyInput:
    sizes = {name: len(values) for name, values in scores.items()}
    config = PruningConfig()
    return StrategyInput(
        neurons=NeuronMap(groups=()),
        limits=Limits(
            original=sizes,
            current=sizes,
            open=frozenset(sizes),
            least=dict.fromkeys(sizes, 1),
            room=room or sizes,
            step=step or dict.fromkeys(sizes, 1),
            total=sum(sizes.values()),
            config=config,
        ),
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


# --- in steps

TENS = {"a": [float(n) for n in range(10)], "b": [4.5] * 10}


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, {}),
        (2, {"a": 2}),  # from ten to eight
        (5, {"a": 2, "b": 2}),  # the next four of a do not fit, two of b do
        (6, {"a": 6}),
        (8, {"a": 6, "b": 2}),
        (12, {"a": 6, "b": 6}),
        (99, {"a": 6, "b": 6}),  # there is no smaller multiple
    ],
)
def test_what_is_left_is_a_multiple_of_the_step(count: int, expected: dict[str, int]) -> None:
    found = lowest(selection(TENS, room={"a": 9, "b": 9}, step={"a": 4, "b": 4}), ["a", "b"], count)
    assert {name: len(gone) for name, gone in found.items()} == expected
    assert found.get("a", []) == list(range(expected.get("a", 0)))


def test_a_step_that_is_too_large_leaves_room_for_smaller_ones() -> None:
    given = selection(TENS, room={"a": 9, "b": 9}, step={"a": 8, "b": 1})
    assert lowest(given, ["a", "b"], 1) == {"b": [0]}
    assert lowest(given, ["a", "b"], 5) == {"a": [0, 1], "b": [0, 1, 2]}


def test_a_step_with_more_neurons_to_go_goes_first() -> None:
    priority = {"a": [LAST] * 10, "b": [0, 0] + [LAST] * 8}
    given = selection({"a": [0.0] * 10, "b": [9.0] * 10}, priority=priority, step={"a": 5, "b": 5})
    assert lowest(given, ["a", "b"], 5) == {"b": [0, 1, 2, 3, 4]}


def test_steps_are_counted_from_what_is_already_gone() -> None:
    given = selection(TENS, room={"a": 9, "b": 9}, step={"a": 4, "b": 4})
    assert lowest(given, ["a"], 4, already={"a": [0, 1]}) == {"a": [2, 3, 4, 5]}
    assert lowest(given, ["a"], 3, already={"a": [0, 1]}) == {}


def test_what_another_strategy_takes_is_rounded() -> None:
    given = selection(TENS, step={"a": 4, "b": 4})
    assert rounded(given, {"a": [9, 0, 5], "b": [7]}) == {"a": [0, 5]}
    assert rounded(given, {"a": [0, 5], "b": []}) == {"a": [0, 5]}


@settings(deadline=None, max_examples=100)
@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=4),
    step=st.integers(1, 9),
    count=st.integers(0, 100),
    seed=st.integers(0, 99),
)
def test_every_layer_keeps_a_multiple_and_its_room(sizes: list[int], step: int, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = {str(n): random.choice([0.1, 0.2, 0.3], size).tolist() for n, size in enumerate(sizes)}
    room = {name: len(values) - 1 for name, values in scores.items()}
    given = selection(scores, room=room, step=dict.fromkeys(scores, step))
    found = lowest(given, scores, count)
    assert sum(map(len, found.values())) <= count
    for name, gone in found.items():
        assert 0 < len(gone) <= room[name]
        assert (len(scores[name]) - len(gone)) % step == 0
        assert max(scores[name][n] for n in gone) <= min(np.delete(scores[name], gone))
    assert rounded(given, found) == found
