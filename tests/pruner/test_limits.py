"""Shares, rounding, and what the limits of the configuration leave."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pruner import small_cnn

from pruner.config import PruningConfig
from pruner.limits import FirstSeen, Limits, checked_share, share_of
from tracker.errors import PlanError
from tracker.neuron_map import Frozen

FIRST = {"conv1": 10, "conv2": 64, "fc1": 128}


def limits(original: dict[str, int] | None = None, **sections: object) -> Limits:
    first = FirstSeen(original or FIRST, frozenset(FIRST))
    return Limits.of(small_cnn.neuron_map(small_cnn.model()), first, PruningConfig(**sections))


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
    found = Limits.of(shrunk, FirstSeen.of(whole), PruningConfig())
    assert (found.original, found.current) == (FIRST, {**FIRST, "conv1": 1})
    assert found.exact == frozenset(FIRST)
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
