"""Which neurons go: pure functions from scores to a plan, found by name.

A strategy gets a `StrategyInput` and returns a `PruningPlan`. Add one with

    @strategies.register("mine")
    def mine(given: StrategyInput) -> PruningPlan: ...

or from an installed package with an entry point of the group "pruner.strategies", and name it in
`strategy.default_strategy`. Limits are checked and widths rounded afterwards, so no strategy can break them.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pruner.apply import prune_
from pruner.companions import Companions
from pruner.config import PruningConfig, create_default_config
from pruner.current_map import current_map
from pruner.decision import Request, decide
from pruner.plan import PruningPlan
from pruner.prune_result import PruneResult
from pruner.registry import Registry
from pruner.schedule import gradual_targets, target_at
from pruner.selection import Remove, Strategy, StrategyInput, lowest
from tracker.activity import ActivityStats
from tracker.admission import unwrapped
from tracker.neuron_map import NeuronMap

_ROUNDS = 10

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


class _Pruner:
    """A strategy with a configuration and a memory of every model's first map."""

    def __init__(self, config: PruningConfig | None = None) -> None:
        self.config = config or create_default_config()
        self._first: WeakKeyDictionary[nn.Module, NeuronMap] = WeakKeyDictionary()

    def _plan(self, model: nn.Module, request: Request) -> PruningPlan:
        bare = unwrapped(model)
        neurons = current_map(bare)
        first = self._first.setdefault(bare, neurons)
        return decide(bare, neurons, first, self.config, request).plan


class MagnitudePruner(_Pruner):
    """The strategy "magnitude" on models: the neurons with the lowest scores go, whatever their layer."""

    def plan(
        self, model: nn.Module, sparsity_ratio: float | None = None, *, activity: ActivityStats | None = None
    ) -> PruningPlan:
        """What would go; the share is relative to the model as first seen, and by default the configuration's."""
        options = self.config.strategy
        share = options.target_sparsity if sparsity_ratio is None else sparsity_ratio
        layers, explicit = options.layer_specific_sparsity, sparsity_ratio is not None
        return self._plan(model, Request("magnitude", magnitude, share, layers, explicit, activity))

    def prune(
        self,
        model: nn.Module,
        sparsity_ratio: float | None = None,
        *,
        activity: ActivityStats | None = None,
        optimizer: Companions | None = None,
    ) -> PruneResult:
        """Remove it, in place. Raises what `PruningEngine` raises; the model then is as it was."""
        return prune_(model, self.plan(model, sparsity_ratio, activity=activity), optimizer=optimizer)


class StructuredPruner(_Pruner):
    """The strategy "structured" on models: every layer named loses its own share of channels or hidden units."""

    def plan(
        self, model: nn.Module, layer_sparsity: Mapping[str, float], *, activity: ActivityStats | None = None
    ) -> PruningPlan:
        """What would go, by layers such as `{"conv1": 0.25}`; shares are relative to the model as first seen."""
        return self._plan(model, Request("structured", structured, None, layer_sparsity, True, activity))

    def prune(
        self,
        model: nn.Module,
        layer_sparsity: Mapping[str, float],
        *,
        activity: ActivityStats | None = None,
        optimizer: Companions | None = None,
    ) -> PruneResult:
        """Remove it, in place. Raises what `PruningEngine` raises; the model then is as it was."""
        return prune_(model, self.plan(model, layer_sparsity, activity=activity), optimizer=optimizer)


class GradualPruner(_Pruner):
    """The strategy "gradual" on models: epoch by epoch along the targets of `gradual_targets`."""

    def __init__(
        self,
        initial_sparsity: float,
        final_sparsity: float,
        num_epochs: int,
        schedule: str = "cubic",
        config: PruningConfig | None = None,
    ) -> None:
        super().__init__(config)
        self.targets = gradual_targets(initial_sparsity, final_sparsity, num_epochs, schedule)

    def plan(self, model: nn.Module, epoch: int, *, activity: ActivityStats | None = None) -> PruningPlan:
        """What would go after `epoch`, counted from 0, beyond what is gone already."""
        return self._plan(model, Request("gradual", gradual, target_at(self.targets, epoch), {}, True, activity))

    def prune(
        self,
        model: nn.Module,
        epoch: int,
        *,
        activity: ActivityStats | None = None,
        optimizer: Companions | None = None,
    ) -> PruneResult:
        """Remove it, in place. Raises what `PruningEngine` raises; the model then is as it was."""
        return prune_(model, self.plan(model, epoch, activity=activity), optimizer=optimizer)


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
