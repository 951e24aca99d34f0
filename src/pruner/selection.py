"""The neurons with the lowest scores, within every limit: what strategies are made of."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pruner.config import PruningConfig
from pruner.limits import Limits
from pruner.plan import PruningPlan
from tracker.neuron_map import NeuronMap

Remove = dict[str, list[int]]

Judge = Callable[[str], Mapping[str, Tensor]]
"""The scores of a criterion, (size,) for every group, by the criterion's name."""

LAST = 9
"""Priority of a neuron that nothing but its score speaks against."""


@dataclass(frozen=True)
class StrategyInput:
    """What a strategy decides from.

    `neurons` has the groups that may lose neurons (see `pruner.scope`), and no others. `scores` and `priority` have one
    value a neuron, shape (size,), for every group: lower priorities go first, and within one the lower scores. `judge`
    gives the scores of a criterion by its name (see `pruner.criteria`); it may need data. `eligible` marks, for the
    groups in it, the neurons that may go at all. `target` is the share to remove of what the groups without a share of
    their own had at first; `layer_targets` are such shares of their own, by group name. Where `target` is None, only
    the layers of `layer_targets` lose neurons.
    """

    neurons: NeuronMap
    limits: Limits
    config: PruningConfig
    scores: Mapping[str, NDArray[np.float64]]
    target: float | None
    layer_targets: Mapping[str, float] = field(default_factory=dict)
    priority: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    judge: Judge | None = None
    eligible: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    @property
    def shared(self) -> list[str]:
        """The groups that `target` is for: those without a share of their own."""
        if self.target is None:
            return []
        return [name for name in self.limits.current if name in self.limits.open and name not in self.layer_targets]

    def priority_of(self, name: str) -> NDArray[np.int64]:
        """The priority of every neuron of a group; `LAST` where nothing is known to speak against them."""
        return self.priority.get(name, np.full(self.limits.current[name], LAST))


Strategy = Callable[[StrategyInput], PruningPlan]


def lowest(
    given: StrategyInput, layers: Iterable[str], count: int, already: Mapping[str, Collection[int]] | None = None
) -> Remove:
    """The `count` neurons of `layers` that should go first, by priority, then by score.

    No layer loses more than it has room for, and a layer whose width is rounded loses a whole step at a time, by the
    mean priority and the mean score of the neurons in it. So there may be fewer than `count`, and never more. `already`
    are neurons that are as good as gone.
    """
    already = already or {}
    layers = [name for name in layers if given.limits.room[name] > 0]
    going = [_going(given, name, already.get(name, ())) for name in layers]
    if not any(len(sizes) for _, sizes in going):
        return {}
    size = np.concatenate([sizes for _, sizes in going])
    owner = np.repeat(np.arange(len(layers)), [len(sizes) for _, sizes in going])
    score, priority = (
        np.concatenate([_means(values(name)[index], sizes) for name, (index, sizes) in zip(layers, going, strict=True)])
        for values in (given.scores.__getitem__, given.priority_of)
    )
    order = np.lexsort((score, priority))
    # A mean may be off by a rounding, and a layer's steps must go in their own order all the same.
    order[np.argsort(owner[order], kind="stable")] = np.arange(len(order))
    taken = np.zeros(len(layers), dtype=np.int64)
    while count > 0 and len(order):
        fitting, rest = np.split(order, [np.searchsorted(np.cumsum(size[order]), count, side="right")])
        np.add.at(taken, owner[fitting], size[fitting])
        count -= int(size[fitting].sum())
        order = rest[owner[rest] != owner[rest[:1]]]  # a step too large: its layer is done, smaller ones may still fit
    return {
        name: sorted(index[:number].tolist())
        for name, (index, _), number in zip(layers, going, taken, strict=True)
        if number
    }


def rounded(given: StrategyInput, remove: Mapping[str, Collection[int]]) -> Remove:
    """`remove` without the neurons that must stay for every layer to keep a multiple of its step.

    Those that should go last come back: a strategy of somebody else's may not know of widths.
    """
    result: Remove = {}
    for name, gone in remove.items():
        index = np.asarray(sorted(gone), dtype=np.int64)
        index = index[np.lexsort((given.scores[name][index], given.priority_of(name)[index]))]
        over = -(given.limits.current[name] - len(index)) % given.limits.step[name]
        if over < len(index):
            result[name] = sorted(index[: len(index) - over].tolist())
    return result


def _going(given: StrategyInput, name: str, already: Collection[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The neurons that may go, first things first, and how many of them go in each step."""
    size = given.limits.current[name]
    free = given.eligible.get(name, np.ones(size, dtype=bool)).copy()
    free[list(already)] = False
    index = np.flatnonzero(free)
    index = index[np.lexsort((given.scores[name][index], given.priority_of(name)[index]))]
    most = min(len(index), given.limits.room[name] - len(already))
    step = given.limits.step[name]
    first = (size - len(already)) % step or step
    sizes = np.full(1 + (most - first) // step if most >= first else 0, step)
    sizes[:1] = first
    return index[: sizes.sum()], sizes


def _means(values: NDArray[Any], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean of the first `sizes[0]` values, of the next `sizes[1]` …"""
    sums = np.add.reduceat(values.astype(np.float64), np.cumsum(sizes) - sizes) if len(sizes) else np.zeros(0)
    means: NDArray[np.float64] = sums / sizes
    return means
