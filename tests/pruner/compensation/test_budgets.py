"""Budgets against trying everything."""

import itertools

import numpy as np
import pytest

from pruner.compensation.budgets import Layer, allocate, searched, uniform


def layer(costs: list[float], most: int | None = None, step: int = 1, gain: float = 1.0) -> Layer:
    return Layer(np.array([0.0, *costs]), len(costs) if most is None else most, step, gain)


@pytest.mark.parametrize("wanted", range(1, 9))
def test_no_other_division_of_convex_costs_is_cheaper(wanted: int) -> None:
    layers = {"a": layer([1, 3, 6, 10]), "b": layer([0.5, 1, 9, 30]), "c": layer([2, 4, 6, 8])}
    counts = allocate(layers, wanted)
    best = min(
        sum(layers[name].costs[count] for name, count in zip(layers, counts_, strict=True))
        for counts_ in itertools.product(range(5), repeat=3)
        if sum(counts_) == wanted
    )
    assert sum(counts.values()) == wanted
    assert sum(layers[name].costs[count] for name, count in counts.items()) == pytest.approx(best)


def test_limits_and_steps_hold() -> None:
    layers = {"a": layer([0.0] * 10, most=4), "b": layer([5.0 * i for i in range(1, 11)], most=9, step=4)}
    counts = allocate(layers, 11)
    assert counts["a"] == 4
    assert (10 - counts["b"]) % 4 == 0
    assert counts["b"] == 6


def test_what_saves_more_goes_first() -> None:
    layers = {"small": layer([1, 2, 3, 4], gain=1), "large": layer([1, 2, 3, 4], gain=10)}
    assert allocate(layers, 30) == {"small": 0, "large": 3}


def test_a_concave_curve_goes_as_a_whole() -> None:
    layers = {"cliff": layer([10, 10, 10, 10]), "slope": layer([3, 6, 9, 12])}
    assert allocate(layers, 4) == {"cliff": 4, "slope": 0}


def test_uniform() -> None:
    layers = {"a": layer([1.0] * 10), "b": layer([1.0] * 7, step=2), "c": layer([1.0] * 10, most=2)}
    assert uniform(layers, 0.5) == {"a": 5, "b": 3, "c": 2}


def test_the_share_is_found_by_bisection() -> None:
    assert searched(lambda part: 1 - 0.8 * part, 0.6) == pytest.approx(0.5, abs=2e-3)
    assert searched(lambda part: 1 - 0.2 * part, 0.5) == 1.0
