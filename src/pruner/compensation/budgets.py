"""How many neurons each layer loses, so that together they lose what is wanted at the least cost.

A layer's cost curve is made convex from below first; then the cheapest pieces of all curves go, by cost per unit of
what is to be saved (neurons, parameters). That is the optimum of the sum up to the last piece.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Budgets = Literal["measured", "global", "z-score", "uniform"]
BUDGETS: tuple[Budgets, ...] = ("measured", "global", "z-score", "uniform")


@dataclass(frozen=True)
class Layer:
    """A layer that can lose neurons.

    `costs` (size + 1,) after 0, 1, 2 … removals; `most` that may go; those that stay are a multiple of `step`; `gain`
    is what each neuron saves.
    """

    costs: NDArray[np.float64]
    most: int
    step: int
    gain: float = 1.0


def allocate(layers: Mapping[str, Layer], wanted: float) -> dict[str, int]:
    """How many neurons of each layer go, so that their gains come to `wanted` as nearly as steps allow, and no further.

    >>> flat, steep = (Layer(np.arange(5.0) ** 2 * by, most=3, step=1) for by in (1, 10))
    >>> allocate({"flat": flat, "steep": steep}, 4)
    {'flat': 3, 'steep': 1}
    """
    pieces = []
    for name, layer in layers.items():
        points = _points(layer)
        corners = _hull(points, layer.costs)
        for first, last in pairwise(corners):
            slope = (layer.costs[last] - layer.costs[first]) / ((last - first) * layer.gain)
            inside = points[(points > first) & (points <= last)]
            pieces += [(slope, name, int(point)) for point in inside]
    counts = dict.fromkeys(layers, 0)
    full: set[str] = set()
    saved = 0.0
    for _, name, point in sorted(pieces, key=lambda piece: piece[0]):  # stable: each layer's points stay in order
        more = (point - counts[name]) * layers[name].gain
        if name in full or saved + more > wanted * (1 + 1e-12) + 1e-9:
            full.add(name)
            continue
        saved += more
        counts[name] = point
    return counts


def uniform(layers: Mapping[str, Layer], share: float) -> dict[str, int]:
    """The same share of every layer, as nearly as steps allow, and no more than may go."""
    counts = {}
    for name, layer in layers.items():
        points = _points(layer)
        wanted = share * (len(layer.costs) - 1)
        counts[name] = int(points[np.abs(points - wanted).argmin()])
    return counts


def searched(evaluate: Callable[[float], float], wanted: float, *, rounds: int = 24, tolerance: float = 2e-3) -> float:
    """The share to remove from 0 to 1 at which `evaluate`, which falls, is `wanted`: by bisection.

    The largest one tried at which it is not below `wanted` by more than `tolerance`.
    """
    low, high = 0.0, 1.0
    if evaluate(high) >= wanted:
        return high
    for _ in range(rounds):
        middle = (low + high) / 2
        value = evaluate(middle)
        if abs(value - wanted) <= tolerance / 2:
            return middle
        low, high = (middle, high) if value > wanted else (low, middle)
    return low


def _points(layer: Layer) -> NDArray[np.int64]:
    """The numbers of neurons that may go: none, and those after which a multiple of the step is left."""
    size = len(layer.costs) - 1
    first = size % layer.step or layer.step
    points: NDArray[np.int64] = np.arange(first, layer.most + 1, layer.step)
    return np.concatenate([np.zeros(1, dtype=np.int64), points])


def _hull(points: NDArray[np.int64], costs: NDArray[np.float64]) -> list[int]:
    """The corners of the lower convex hull of a curve over `points`."""
    corners: list[int] = []
    for point in points.tolist():
        while len(corners) > 1:
            a, b = corners[-2:]
            if (costs[b] - costs[a]) * (point - a) <= (costs[point] - costs[a]) * (b - a):
                break
            corners.pop()
        corners.append(point)
    return corners
