"""From a model, a configuration and what is known of the neurons to a plan, with the reason for every neuron in it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pruner import scores
from pruner.config import PruningConfig
from pruner.limits import Limits, checked_share
from pruner.nominations import Priorities, check_fit, nominate, nominated, reason_of
from pruner.plan import PruningPlan
from pruner.scope import Scope
from pruner.scores import KnownActivity
from pruner.selection import LAST, Judge, Strategy, StrategyInput, rounded
from tracker.activity import ActivityStats
from tracker.errors import PlanError
from tracker.neuron_map import NeuronMap
from tracker.recommendations import Recommendations


@dataclass(frozen=True)
class Request:
    """What somebody asks for.

    `name` is what `strategy` is called. `target` is the share to remove of all layers that strategies may touch (see
    `pruner.scope`) and that have no share of their own in `layers`; None for no others. With `explicit`, a share that a
    limit does not allow is an error; otherwise, where it is the configuration's, it is cut down to the limit with a
    warning. `judge` scores neurons by a criterion, where a strategy asks.
    """

    name: str
    strategy: Strategy
    target: float | None
    layers: Mapping[str, float]
    explicit: bool = False
    activity: ActivityStats | None = None
    recommendations: Recommendations | None = None
    judge: Judge | None = None


@dataclass(frozen=True)
class Candidate:
    """A neuron that something speaks against or that the strategy chose.

    Its score is 1 for an average neuron of the layer, and None where it cannot be told.
    """

    layer: str
    neuron: int
    reason: str
    score: float | None

    def to_json(self) -> dict[str, Any]:
        """The candidate as JSON-ready data."""
        return {"layer": self.layer, "neuron": self.neuron, "reason": self.reason, "score": self.score}


@dataclass(frozen=True)
class Decision:
    """What goes and why; `notes` are for somebody who looks closely, `warnings` for everybody."""

    plan: PruningPlan
    candidates: tuple[Candidate, ...]
    limits: Limits
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def decide(
    model: nn.Module | None, neurons: NeuronMap, first: NeuronMap, config: PruningConfig, request: Request
) -> Decision:
    """The plan that `request` leads to; the model is only read.

    `first` is the map that the model had when it was first seen, which shares are relative to. Without a model, only
    neurons that something speaks against go, and those of known activity are scored by it alone.

    Raises:
        PlanError: nothing can be removed at all, a share is no number from 0 to 1, a layer has a share of its own and
            is excluded, or an explicit request or a strategy's plan breaks a limit.
        UnknownLayerError: a layer that the model does not have, or a pattern that matches none.
        RecommendationError: recommendations of another model.
        DataError: activity of another model, or weights without values.
    """
    scope = Scope.of(neurons, first, config.strategy)
    shares = _by_group(request, neurons, first, scope)
    _check_prunable(neurons, scope, shares, request.target)
    limits = Limits.of(neurons, first, config, scope.layers | shares.keys())
    if request.recommendations:
        check_fit(request.recommendations, neurons)
    activity = KnownActivity.of(request.recommendations or request.activity)
    activity.check(neurons)
    warnings: list[str] = []
    target = _allowed(request, shares, limits, warnings)
    combined, weights = _scores(model, neurons, config, activity)
    priorities = nominate(neurons, config.thresholds, activity, weights, request.recommendations)
    given = StrategyInput(
        neurons=replace(neurons, groups=tuple(group for group in neurons if group.name in limits.open)),
        limits=limits,
        config=config,
        scores=combined,
        target=target,
        layer_targets=shares,
        priority=priorities,
        judge=request.judge,
        eligible=_eligible(priorities, activity if model else KnownActivity()) if request.recommendations else {},
    )
    made = request.strategy(given)
    remove = rounded(given, {name: indices.tolist() for name, indices in made.resolve(neurons).items()})
    limits.check(remove)
    warnings += _not_exact(neurons, remove) + _too_coarse(given, remove)
    if request.recommendations:
        warnings += _left_alone(neurons, limits, priorities, remove)
        warnings += [
            f"Layer '{group.name}' is chosen and loses only what is recommended: the recommendations do not say how "
            f"active its neurons are. Track with include_inexact=True to prune it by activity."
            for group in given.neurons
            if not group.exact and group.name not in activity.mean_magnitude and group.name not in shares
        ]
    unknown = [group.name for group in neurons if group.name not in activity.mean_magnitude]
    notes = [f"Activity is not known for {', '.join(unknown)}: scored by magnitude alone."] if unknown else []
    return Decision(
        plan=PruningPlan(
            remove,
            neurons.fingerprint or None,
            {"strategy": request.name, "target": target, "layers": shares, **made.provenance},
        ),
        candidates=_candidates(remove, priorities, combined, only_plan=request.recommendations is None),
        limits=limits,
        warnings=tuple(warnings),
        notes=tuple(notes),
    )


def _by_group(request: Request, neurons: NeuronMap, first: NeuronMap, scope: Scope) -> dict[str, float]:
    """The layers' shares under the names of their groups."""
    known = {group.name for group in (*first, *neurons)}
    shares: dict[str, float] = {}
    for layer, share in request.layers.items():
        name = layer if layer in known else neurons[layer].name
        if name in shares:
            raise PlanError(
                f"Layer '{layer}' is given twice: its neurons are those of '{name}'.", hint=f"Give '{name}' only."
            )
        shares[name] = checked_share(share, f"Sparsity of layer '{layer}'")
        # Where there is no target, the caller named the layers one by one, and means them.
        if request.target is not None and name in scope.excluded and share:
            raise PlanError(
                f"Layer '{layer}' is to lose a share of {share:g} by strategy.layer_specific_sparsity, and none by "
                f"strategy.exclude.",
                hint="Leave it out of one of the two.",
            )
    return shares


def _check_prunable(neurons: NeuronMap, scope: Scope, shares: Mapping[str, float], target: float | None) -> None:
    if not len(neurons):
        why = "; ".join(f"'{entry.name}' {entry.reason}" for entry in neurons.frozen[:3])
        raise PlanError(
            f"{neurons.model} has no neurons that can be removed{f': {why}' if why else ''}.",
            hint="Print the neuron map to see the reason for every layer.",
        )
    if target is None or shares or any(group.name in scope.layers for group in neurons):
        return
    if any(group.exact for group in neurons):
        kinds = ", ".join(sorted({group.kind for group in neurons}))
        raise PlanError(
            f"strategy.include, strategy.exclude and strategy.kinds leave no layer of {neurons.model} to prune.",
            hint=f"Change them; its layers are of the kinds {kinds}.",
        )
    group = neurons.groups[0]
    raise PlanError(
        f"{neurons.model} has no layer whose neurons can be removed exactly: '{group.name}' {group.note}.",
        hint=f"Name the layers to prune all the same: strategy.include = ['{group.name}'], or "
        f"prune_structured(model, {{'{group.name}': share}}).",
    )


def _allowed(request: Request, shares: Mapping[str, float], limits: Limits, warnings: list[str]) -> float | None:
    """The target, cut down to the limits where the configuration and not the caller set it."""
    target = request.target
    if target is not None:
        target = checked_share(target, "sparsity_ratio")
        most = limits.config.validation.max_pruning_ratio
        if not request.explicit and target > most:
            warnings.append(
                f"strategy.target_sparsity = {target:g} exceeds validation.max_pruning_ratio = {most:g}, which decides."
            )
            target = most
    wishes = [(share, [name]) for name, share in shares.items()]
    if target is not None:
        wishes.append((target, [n for n in limits.current if n in limits.open and n not in shares]))
    for share, names in wishes:
        shortfall = limits.shortfall(share, names) if names else None
        if shortfall and request.explicit:
            raise PlanError(
                shortfall, hint="Ask for less, or change the limits in the configuration; a layer never becomes empty."
            )
        if shortfall:
            warnings.append(shortfall)
    return target


def _scores(
    model: nn.Module | None, neurons: NeuronMap, config: PruningConfig, activity: KnownActivity
) -> tuple[dict[str, NDArray[np.float64]], scores.Scores]:
    """Every neuron's combined score, and its mean weight."""
    if model is None:
        unknown = {group.name: torch.full((group.size,), torch.inf, dtype=torch.float64) for group in neurons}
        known = {name: scores.relative(values) for name, values in activity.mean_magnitude.items() if name in neurons}
        return {name: values.numpy() for name, values in {**unknown, **known}.items()}, unknown
    combined = scores.combined(
        scores.magnitude(model, neurons),
        activity.mean_magnitude,
        config.strategy.magnitude_weight,
        config.strategy.activity_weight,
    )
    return {name: values.numpy() for name, values in combined.items()}, scores.mean_weight(model, neurons)


def _eligible(priorities: Priorities, activity: KnownActivity) -> dict[str, NDArray[np.bool_]]:
    """With recommendations, layers of unknown activity lose only the neurons that something speaks against."""
    return {name: priority < LAST for name, priority in priorities.items() if name not in activity.mean_magnitude}


def _not_exact(neurons: NeuronMap, remove: Mapping[str, list[int]]) -> list[str]:
    """What to say about layers whose removal nothing proves."""
    return [
        f"Layer '{group.name}' is not exact{f' ({group.note})' if group.note else ''}: what the removal of "
        f"{len(remove[group.name])} of its {group.size} neurons changes is measured, not proved."
        for group in neurons
        if not group.exact and group.name in remove
    ]


def _too_coarse(given: StrategyInput, remove: Mapping[str, list[int]]) -> list[str]:
    """What to say where only rounding keeps a strategy from removing anything."""
    if remove or max(given.limits.step.values()) == 1:
        return []
    wanted = [given.limits.wanted(share, [name]) for name, share in given.layer_targets.items()]
    wanted.append(given.limits.wanted(given.target or 0.0, given.shared))
    if not sum(wanted):
        return []
    return [
        f"Nothing goes: with strategy.round_to = {given.config.strategy.round_to}, {sum(wanted)} neurons are too few."
    ]


def _left_alone(
    neurons: NeuronMap, limits: Limits, priorities: Priorities, remove: Mapping[str, list[int]]
) -> list[str]:
    """What to say about nominated neurons that stay."""
    stay = {
        name: len(set(indices.tolist()) - set(remove.get(name, ()))) for name, indices in nominated(priorities).items()
    }
    closed = [group for group in neurons if stay[group.name] and group.name not in limits.open]
    held_back = sum(stay.values()) - sum(stay[group.name] for group in closed)
    left_out = sum(stay[group.name] for group in closed if group.exact)
    found = [
        f"{stay[group.name]} candidates in '{group.name}' stay: {group.note or 'their removal is not exact'}. "
        f"Name the layer in strategy.include to remove them all the same."
        for group in closed
        if not group.exact
    ]
    if left_out:
        found.append(
            f"{left_out} candidates stay: strategy.include, strategy.exclude or strategy.kinds leave them out."
        )
    if held_back:
        found.append(f"{held_back} candidates stay: the target sparsity and the limits allow no more.")
    return found


def _candidates(
    remove: Mapping[str, list[int]],
    priorities: Priorities,
    combined: Mapping[str, NDArray[np.float64]],
    *,
    only_plan: bool,
) -> tuple[Candidate, ...]:
    """What goes and, for recommendations, what was recommended, by layer and neuron."""
    found = []
    for name, priority in priorities.items():
        chosen = set(remove.get(name, ()))
        if not only_plan:
            chosen |= set(nominated({name: priority})[name].tolist())
        found += [
            Candidate(name, neuron, reason_of(int(priority[neuron])), _finite(combined[name][neuron]))
            for neuron in sorted(chosen)
        ]
    return tuple(found)


def _finite(score: np.float64) -> float | None:
    return float(score) if np.isfinite(score) else None
