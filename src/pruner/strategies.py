"""Which neurons go: pure functions from scores to a plan, found by name.

A strategy gets a `StrategyInput` and returns a `PruningPlan`. Add one with

    @strategies.register("mine")
    def mine(given: StrategyInput) -> PruningPlan: ...

or from an installed package with an entry point of the group "pruner.strategies", and name it in
`strategy.default_strategy`. Limits are checked afterwards, so no strategy can break them.
"""

from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pruner.plan import PruningPlan
from pruner.registry import Registry
from pruner.schedule import gradual_targets
from pruner.selection import Remove, StrategyInput, lowest

_ROUNDS = 10

Strategy = Callable[[StrategyInput], PruningPlan]

_registry: Registry[Strategy] = Registry("strategy", "pruner.strategies", key="strategy.default_strategy")
register, unregister = _registry.register, _registry.unregister


def find(name: str) -> Strategy:
    """The strategy called `name`; raises `ConfigError` with the nearest name if there is none."""
    return _registry[name]


def names() -> list[str]:
    """The names of all strategies."""
    return _registry.names()


@register("magnitude")
def magnitude(given: StrategyInput) -> PruningPlan:
    """The lowest scores of the whole model go; layers compete with each other."""
    remove = _own_shares(given)
    if given.target is not None:
        shared = given.shared
        remove |= lowest(given, shared, given.limits.wanted(given.target, shared))
    return PruningPlan(remove)


@register("structured")
def structured(given: StrategyInput) -> PruningPlan:
    """Every layer loses the same share of its own neurons, the lowest scores first: widths keep their proportions."""
    remove = _own_shares(given)
    for name in given.shared:
        remove |= lowest(given, [name], given.limits.wanted(given.target or 0.0, [name]))
    return PruningPlan(remove)


@register("gradual")
def gradual(given: StrategyInput) -> PruningPlan:
    """Like "magnitude", in rounds along the cubic schedule.

    After every round the scores are made relative to the mean of the neurons that are left, so that a layer which has
    lost its idle neurons is compared by the others alone.
    """
    remove = _own_shares(given)
    gone: Remove = {}
    shared = given.shared
    for target in gradual_targets(0.0, given.target, _ROUNDS) if given.target else []:
        wanted = given.limits.wanted(target, shared) - sum(map(len, gone.values()))
        scores = {name: _afresh(given.scores[name], gone.get(name, [])) for name in shared if name in given.scores}
        more = lowest(replace(given, scores=scores), shared, wanted, already=gone)
        gone = {name: gone.get(name, []) + more.get(name, []) for name in {**gone, **more}}
    return PruningPlan(remove | gone)


def _own_shares(given: StrategyInput) -> Remove:
    """What the layers with a share of their own lose."""
    remove: Remove = {}
    for name, share in given.layer_targets.items():
        remove |= lowest(given, [name], given.limits.wanted(share, [name]))
    return remove


def _afresh(scores: NDArray[np.float64], gone: Collection[int]) -> NDArray[np.float64]:
    left = np.delete(scores, list(gone))
    mean = left[np.isfinite(left)].mean() if np.isfinite(left).any() else 0.0
    return scores / mean if mean > 0 else scores
