"""From a model, a configuration and what is known of the neurons to a plan, with the reason for every neuron in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pruner import scores
from pruner.config import PruningConfig
from pruner.limits import FirstSeen, Limits, checked_share
from pruner.nominations import Priorities, check_fit, nominate, nominated, reason_of
from pruner.plan import PruningPlan
from pruner.scores import KnownActivity
from pruner.selection import LAST, Strategy, StrategyInput
from tracker.activity import ActivityStats
from tracker.errors import PlanError
from tracker.neuron_map import NeuronMap
from tracker.recommendations import Recommendations


@dataclass(frozen=True)
class Request:
    """What somebody asks for.

    `name` is what `strategy` is called. `target` is the share to remove of all exact layers without a share of their
    own in `layers`; None for no others. With `explicit`, a share that a limit does not allow is an error; otherwise,
    where it is the configuration's, it is cut down to the limit with a warning.
    """

    name: str
    strategy: Strategy
    target: float | None
    layers: Mapping[str, float]
    explicit: bool = False
    activity: ActivityStats | None = None
    recommendations: Recommendations | None = None


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
    model: nn.Module | None, neurons: NeuronMap, first: FirstSeen, config: PruningConfig, request: Request
) -> Decision:
    """The plan that `request` leads to; the model is only read.

    Without a model, only neurons that something speaks against go, and those of known activity are scored by it alone.

    Raises:
        PlanError: nothing can be removed at all, a share is no number from 0 to 1, or an explicit request or a
            strategy's plan breaks a limit.
        UnknownLayerError: a layer that the model does not have.
        RecommendationError: recommendations of another model.
        DataError: activity of another model, or weights without values.
    """
    limits = Limits.of(neurons, first, config)
    shares = _by_group(request.layers, neurons, limits)
    _check_prunable(neurons, shares, request.target)
    if request.recommendations:
        check_fit(request.recommendations, neurons)
    activity = KnownActivity.of(request.recommendations or request.activity)
    activity.check(neurons)
    warnings: list[str] = []
    target = _allowed(request, shares, limits, warnings)
    combined, weights = _scores(model, neurons, config, activity)
    priorities = nominate(neurons, config.thresholds, activity, weights, request.recommendations)
    given = StrategyInput(
        neurons=neurons,
        limits=limits,
        config=config,
        scores=combined,
        target=target,
        layer_targets=shares,
        priority=priorities,
        eligible=_eligible(priorities, activity if model else KnownActivity()) if request.recommendations else {},
    )
    made = request.strategy(given)
    remove = {name: indices.tolist() for name, indices in made.resolve(neurons).items()}
    limits.check(remove)
    if request.recommendations:
        warnings += _left_alone(neurons, priorities, remove)
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


def _by_group(layers: Mapping[str, float], neurons: NeuronMap, limits: Limits) -> dict[str, float]:
    """The layers' shares under the names of their groups."""
    shares: dict[str, float] = {}
    for layer, share in layers.items():
        name = layer if layer in limits.current else neurons[layer].name
        if name in shares:
            raise PlanError(
                f"Layer '{layer}' is given twice: its neurons are those of '{name}'.", hint=f"Give '{name}' only."
            )
        shares[name] = checked_share(share, f"Sparsity of layer '{layer}'")
    return shares


def _check_prunable(neurons: NeuronMap, shares: Mapping[str, float], target: float | None) -> None:
    if not len(neurons):
        why = "; ".join(f"'{entry.name}' {entry.reason}" for entry in neurons.frozen[:3])
        raise PlanError(
            f"{neurons.model} has no neurons that can be removed{f': {why}' if why else ''}.",
            hint="Print the neuron map to see the reason for every layer.",
        )
    if target is not None and not shares and not any(group.exact for group in neurons):
        group = neurons.groups[0]
        raise PlanError(
            f"{neurons.model} has no layer whose neurons can be removed exactly: '{group.name}' {group.note}.",
            hint="Name the layers to prune all the same: prune_structured(model, {'layer': share}).",
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
        wishes.append((target, [n for n in limits.current if n in limits.exact and n not in shares]))
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


def _left_alone(neurons: NeuronMap, priorities: Priorities, remove: Mapping[str, list[int]]) -> list[str]:
    """What to say about nominated neurons that stay."""
    stay = {
        name: len(set(indices.tolist()) - set(remove.get(name, ()))) for name, indices in nominated(priorities).items()
    }
    inexact = [group.name for group in neurons if not group.exact and stay[group.name] and group.name not in remove]
    held_back = sum(count for name, count in stay.items() if name not in inexact)
    found = [
        f"{stay[name]} candidates in '{name}' stay: {neurons[name].note or 'their removal is not exact'}. "
        f"Name the layer in prune_structured to remove them all the same."
        for name in inexact
    ]
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
