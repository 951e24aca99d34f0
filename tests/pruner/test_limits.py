"""Shares, rounding, and what the limits of the configuration leave."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pruner import small_cnn

from pruner.config import PruningConfig
from pruner.limits import Limits, checked_share, share_of, step_of
from pruner.plan import PruningPlan
from tracker.errors import PlanError
from tracker.neuron_map import Frozen, NeuronGroup, NeuronMap, Read, Site

FIRST = {"conv1": 10, "conv2": 64, "fc1": 128}


def group(kind: str, size: int, produced: int, read: int, exact: bool = True) -> NeuronGroup:
    """A group of which each neuron has so many positions where it is made, and where it is read."""
    made, used = Site("a.weight", 0), Site("b.weight", 1)
    positions = {made: np.arange(size * produced).reshape(size, -1), used: np.arange(size * read).reshape(size, -1)}
    reads = (Read("b", "b.weight", -1, positions[used]),)
    return NeuronGroup("a", size, kind, exact, (made,), (used,), positions, reads)  # type: ignore[arg-type]


def limits(original: dict[str, int] | None = None, **sections: object) -> Limits:
    neurons = small_cnn.neuron_map(small_cnn.model())
    groups = tuple(replace(group, size=(original or FIRST)[group.name]) for group in neurons)
    return Limits.of(neurons, replace(neurons, groups=groups), PruningConfig(**sections), FIRST)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.5", None, True])
def test_what_is_no_share_is_an_error(value: object) -> None:
    with pytest.raises(PlanError, match=r"sparsity_ratio = .* is not a number from 0 to 1"):
        checked_share(value, "sparsity_ratio")


@settings(deadline=None, max_examples=100)
@given(st.floats(0, 1), st.integers(0, 10**6))
def test_a_share_is_never_exceeded_and_misses_less_than_a_neuron(share: float, size: int) -> None:
    assert size * share - 1 < share_of(share, size) <= size * share + 1e-8


def test_room_is_the_tightest_limit_of_a_layer() -> None:
    assert limits().room == {"conv1": 9, "conv2": 57, "fc1": 115}
    assert limits(thresholds={"max_sparsity_per_layer": 0.5}).room == {"conv1": 5, "conv2": 32, "fc1": 64}
    assert limits(thresholds={"min_neurons_per_layer": 60}).room == {"conv1": 0, "conv2": 4, "fc1": 68}
    assert limits(thresholds={"max_sparsity_per_layer": 1.0}).room == {"conv1": 9, "conv2": 63, "fc1": 127}


def test_the_total_is_that_of_max_pruning_ratio() -> None:
    assert limits().total == 161
    assert limits(validation={"max_pruning_ratio": 0.1}).total == 20


def test_what_is_gone_already_counts() -> None:
    twice = {name: 2 * size for name, size in FIRST.items()}
    assert limits(twice).room == {"conv1": 8, "conv2": 51, "fc1": 102}
    assert limits(twice).total == 323 - 202
    assert limits(twice).wanted(0.5, FIRST) == 0
    assert limits(twice).wanted(0.75, ["conv1"]) == 5
    assert limits({name: 100 * size for name, size in FIRST.items()}).room == {"conv1": 0, "conv2": 0, "fc1": 0}


def test_a_layer_that_shrank_to_one_neuron_still_counts() -> None:
    whole = small_cnn.neuron_map(small_cnn.model())
    shrunk = replace(whole, groups=whole.groups[1:], frozen=(Frozen("conv1", 1, "is a single neuron", ()),))
    found = Limits.of(shrunk, whole, PruningConfig(), FIRST)
    assert (found.original, found.current) == (FIRST, {**FIRST, "conv1": 1})
    assert found.open == frozenset(FIRST)
    assert found.room["conv1"] == 0
    assert found.wanted(0.1, FIRST) == 20 - 9
    assert found.total == 161 - 9


def test_a_shortfall_names_the_limit_that_binds() -> None:
    assert limits().shortfall(0.5, ["fc1"]) is None
    assert "max_sparsity_per_layer = 0.9" in str(limits().shortfall(0.95, ["fc1"]))
    assert "Layer 'fc1'" in str(limits().shortfall(0.95, ["fc1"]))
    assert "max_pruning_ratio = 0.1" in str(limits(validation={"max_pruning_ratio": 0.1}).shortfall(0.2, FIRST))


def test_check_refuses_what_breaks_a_limit() -> None:
    limits().check({"conv1": range(9), "fc1": range(100)})
    with pytest.raises(PlanError, match="'conv1' may lose 9 of its 10 neurons, not 10"):
        limits().check({"conv1": range(10)})
    with pytest.raises(PlanError, match=r"may lose 20 more neurons, not 29 \(validation.max_pruning_ratio = 0.1\)"):
        limits(validation={"max_pruning_ratio": 0.1}).check({"conv1": range(9), "fc1": range(20)})


@pytest.mark.parametrize(
    ("kind", "produced", "read", "round_to", "step"),
    [
        ("mlp", 1, 1, 1, 1),
        ("mlp", 1, 1, 16, 16),
        ("mlp", 2, 1, 16, 16),  # gate and up in one matrix, which is twice as wide
        ("channel", 1, 49, 16, 16),  # flattened images are read
        ("channel", 4, 4, 16, 4),  # groups of four channels
        ("attention", 192, 64, 16, 1),  # heads of 64, made by one matrix
        ("attention", 1, 64, 16, 1),  # a table with one entry a head
        ("attention", 24, 24, 16, 2),
        ("attention", 24, 96, 16, 2),  # four queries share a key
        ("attention", 3, 3, 8, 8),
        ("expert", 1, 1, 8, 8),
    ],
)
def test_widths_are_multiples_after_whole_steps(kind: str, produced: int, read: int, round_to: int, step: int) -> None:
    made = group(kind, 12, produced, read)
    assert step_of(made, round_to) == step
    assert step * read % round_to == 0


def test_whole_experts_go_one_by_one() -> None:
    assert step_of(group("expert", 8, 1, 1, exact=False), 8) == 1


def test_a_layer_that_may_not_lose_neurons_has_no_room() -> None:
    neurons = small_cnn.neuron_map(small_cnn.model())
    found = Limits.of(neurons, neurons, PruningConfig(), {"fc1"})
    assert found.room == {"conv1": 0, "conv2": 0, "fc1": 115}
    with pytest.raises(PlanError, match=r"neurons of layer 'conv1', which it may not touch.*given\.neurons"):
        found.check({"conv1": [0]})
    found.check({"conv1": [], "fc1": [0]})


def test_a_layer_keeps_a_multiple_that_an_operator_demands() -> None:
    neurons = NeuronMap((replace(group("mlp", 24, 2, 1), multiple=4),))
    assert (step_of(neurons["a"], 1), step_of(neurons["a"], 6)) == (4, 12)
    with pytest.raises(PlanError, match=r"leaves 21 of the 24 neurons of layer 'a'; only multiples of 4 run.*Keep 20"):
        PruningPlan({"a": range(3)}).resolve(neurons)
    assert len(PruningPlan({"a": range(4)}).resolve(neurons)["a"]) == 4


def test_a_layer_keeps_what_it_needs() -> None:
    routed = replace(group("expert", 8, 1, 1), name="router", exact=False, minimum=5)
    neurons = NeuronMap((routed,))
    found = Limits.of(neurons, neurons, PruningConfig(), {"router"})
    assert (found.least, found.room) == ({"router": 5}, {"router": 3})
    with pytest.raises(PlanError, match=r"may lose 3 of its 8 neurons, not 4 \(.*'router' needs 5\)"):
        found.check({"router": range(4)})
    with pytest.raises(PlanError, match="leaves 4 of the 8 neurons of layer 'router', which needs 5"):
        PruningPlan({"router": range(4)}).resolve(neurons)
    assert len(PruningPlan({"router": range(3)}).resolve(neurons)["router"]) == 3
