"""The neurons with the lowest scores, within every limit: what strategies are made of."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pruner.config import PruningConfig
from pruner.limits import Limits
from pruner.plan import PruningPlan
from tracker.neuron_map import NeuronMap

Remove = dict[str, list[int]]

LAST = 9
"""Priority of a neuron that nothing but its score speaks against."""


@dataclass(frozen=True)
class StrategyInput:
    """What a strategy decides from.

    `scores` and `priority` have one value a neuron, shape (size,), for every group: lower priorities go first, and
    within one the lower scores. `eligible` marks, for the groups in it, the neurons that may go at all. `target` is the
    share to remove of what the exact groups without a share of their own had at first; `layer_targets` are such shares
    of their own, by group name. Where `target` is None, only the layers of `layer_targets` lose neurons.
    """

    neurons: NeuronMap
    limits: Limits
    config: PruningConfig
    scores: Mapping[str, NDArray[np.float64]]
    target: float | None
    layer_targets: Mapping[str, float] = field(default_factory=dict)
    priority: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    eligible: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    @property
    def shared(self) -> list[str]:
        """The groups that `target` is for: exact ones without a share of their own."""
        if self.target is None:
            return []
        return [name for name in self.limits.current if name in self.limits.exact and name not in self.layer_targets]


Strategy = Callable[[StrategyInput], PruningPlan]


def lowest(
    given: StrategyInput, layers: Iterable[str], count: int, already: Mapping[str, Collection[int]] | None = None
) -> Remove:
    """The `count` neurons of `layers` that should go first, by priority, then by score.

    No layer loses more than it has room for, so there may be fewer. `already` are neurons that are as good as gone.
    """
    already = already or {}
    layers = [name for name in layers if given.limits.room[name] > 0]
    indices, owners, priorities, scores, room = [], [], [], [], []
    for number, name in enumerate(layers):
        size = given.limits.current[name]
        free = given.eligible.get(name, np.ones(size, dtype=bool)).copy()
        free[list(already.get(name, ()))] = False
        index = np.flatnonzero(free)
        indices.append(index)
        owners.append(np.full(len(index), number))
        priorities.append(given.priority.get(name, np.full(size, LAST))[index])
        scores.append(given.scores[name][index])
        room.append(given.limits.room[name] - len(already.get(name, ())))
    if count <= 0 or not indices:
        return {}
    index, owner = np.concatenate(indices), np.concatenate(owners)
    order = np.lexsort((index, owner, np.concatenate(scores), np.concatenate(priorities)))
    chosen = order[_rank_within(owner[order]) < np.asarray(room)[owner[order]]][:count]
    return {
        layers[number]: sorted(index[chosen[owner[chosen] == number]].tolist()) for number in np.unique(owner[chosen])
    }


def _rank_within(owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """For every entry, how many entries of the same owner come before it."""
    by_owner = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[by_owner], owner[by_owner])
    rank = np.empty_like(owner)
    rank[by_owner] = np.arange(len(owner)) - starts
    return rank
