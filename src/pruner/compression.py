"""`compress`: one call from a trained model and some data to a smaller model that still gives its answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruner import log
from pruner.companions import Companions
from pruner.compensation import budgets as shares
from pruner.compensation.bench import Bench
from pruner.compensation.budgets import BUDGETS, Layer
from pruner.compensation.closed_form import Wanted
from pruner.compensation.curves import Curve, curves_of
from pruner.compensation.experts import lined_up
from pruner.compensation.pipeline import Repaired, announced, effort_of, repaired
from pruner.compensation.targets import Left, checked_target, left_of, parameters_left
from pruner.compensation.unsolved import unsolved_curves, unsolved_scores
from pruner.config import PruningConfig, create_default_config
from pruner.current_map import current_map
from pruner.decision import Candidate, Decision
from pruner.execution import Execution, Results, carry_out, check_weights
from pruner.limits import LimitError, Limits, checked_share, share_of
from pruner.plan import PruningPlan
from pruner.scope import Scope
from pruner.scores import Scores
from tracker.admission import admitted_for_change
from tracker.batches import evaluating, iter_batches
from tracker.caches import decoding_off
from tracker.errors import ConfigError, DataError, PlanError
from tracker.neuron_map import NeuronMap

Ratio = float | Mapping[str, float]
"""The share of neurons to remove, of each kind the same, or by kind."""


def compress(
    model: nn.Module,
    data: Iterable[Any],
    ratio: Ratio | None = None,
    *,
    target: Mapping[str, float] | None = None,
    kinds: Collection[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    round_to: int | None = None,
    effort: str = "default",
    budgets: str = "measured",
    config: PruningConfig | None = None,
    optimizer: Companions | None = None,
    dry_run: bool = False,
    store: Callable[[nn.Module], Path] | None = None,
    seed: int = 0,
) -> Results:
    """Remove neurons from `model`, in place, so that its answers change as little as possible, and prove it right.

    Layers are measured to see what they can spare, neurons are chosen so that the others can take over, the weights
    that stay are solved for and trained to give what the dense model gives, and the result is verified. Nobody needs
    labels: the dense model's own answers are what is kept. After an error the model is as it was.

    Args:
        model: the trained model.
        data: some real batches (tensors, tuples, or dicts, also with an attention mask) that can be gone through more
            than once; a few hundred samples do. Every eighth sample only judges.
        ratio: the share of the neurons to remove, from 0 to 1, of each kind that may lose any; or one for each kind,
            such as {"mlp": 0.6, "attention": 0.25}: other kinds then lose none.
        target: instead, the share of the whole model to keep: {"params": 0.6}, {"flops": 0.5}, or {"latency": 0.7}
            (measured here, on the first batch).
        kinds: only layers of these kinds lose neurons: "mlp", "attention", "channel", …; by default all exact ones.
        include, exclude: only layers that match, or that do not, lose neurons; patterns as in `strategy.include`.
        round_to: layers that lose neurons keep a width that is a multiple of this.
        effort: "low" solves for the weights that stay (seconds), "default" also trains, block by block and then all
            together (minutes), "high" trains longer.
        budgets: how the layers share the loss: "measured" (what each one can spare, by its effect on the answers),
            "global" (by its own error alone), "z-score" (as FLAP does), or "uniform".
        config: limits, logging and validation; by default `create_default_config()`.
        optimizer: its state is cut along with the model.
        dry_run: change nothing; the numbers are those of the real run.
        store: writes the pruned model before it is verified, and returns the directory: that it can be loaded from
            there is one more check.
        seed: of all random numbers.

    Returns:
        The results of `PruningEngine`, and with them `budgets` (the share each layer lost, and its cost curve),
        `repair` (see `Repaired.to_json`) and `memory` (the bytes reckoned with beside the model, see `Footprint`).

    Raises:
        PlanError: neither or both of `ratio` and `target`, or more than the limits allow.
        ConfigError: an unknown effort, budget or kind, or more memory needed than is free.
        DataError: no data, data that can be gone through only once, NaN or Inf.
        DiscoveryError, UnknownLayerError, VerificationError: as `PruningEngine` raises them.
    """
    effort_of(effort)
    if budgets not in BUDGETS:
        raise ConfigError(f"budgets = {budgets!r} is unknown.", hint=f"Use one of {', '.join(BUDGETS)}.")
    if (ratio is None) == (target is None):
        raise PlanError(
            "Give either a ratio or a target.", hint='compress(model, data, ratio=0.5), or target={"params": 0.6}.'
        )
    if isinstance(ratio, Mapping):
        kinds = _kinds_of(ratio, kinds)
    elif ratio is not None:
        checked_share(ratio, "ratio")
    what, keep = checked_target(target) if target is not None else ("", 0.0)
    if not isinstance(model, nn.Module):
        raise PlanError(f"The model is of type {type(model).__name__}.", hint="Give a torch.nn.Module.")
    if isinstance(data, Iterator):
        raise DataError(
            f"The data are a {type(data).__name__}, which can be gone through only once.",
            hint="Give a DataLoader or a list of batches.",
        )
    settings = _settings(config, kinds, include, exclude, round_to)
    log.configure(settings.logging, "outputs")
    model = admitted_for_change(model)
    check_weights(model)
    neurons = current_map(model, data)
    limits = _limits(neurons, settings)
    with evaluating(model), decoding_off(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        batches = list(iter_batches(data, model))
        groups = [name for name in limits.current if name in limits.open and limits.room[name] > 0]
        bench = lined_up(Bench.of(model, neurons, groups, batches))
        memory = announced(bench, effort)
        left = left_of(what, model, neurons, batches[0]) if what else None
        unsolved = unsolved_scores(bench, seed)
        budget = _budget(bench, limits, budgets, ratio, left, keep, unsolved)
        _check_reached(neurons, budget, ratio, what, keep)
        limits.check({name: range(count) for name, count in budget.counts.items()})
        first = {name: scores.argsort()[: budget.counts[name]] for name, scores in unsolved.items()}
        others = {name: count for name, count in budget.counts.items() if name not in unsolved}
        result = repaired(bench, Wanted(first, others), effort=effort, seed=seed)
    asked = {"ratio": dict(ratio) if isinstance(ratio, Mapping) else ratio, "target": dict(target or {})}
    decision = _decision(neurons, limits, budget, result, {**asked, "effort": effort})
    answer = carry_out(model, neurons, decision, Execution(settings, dry_run, data, optimizer, store, result.tensors))
    return answer | {"budgets": budget.to_json(), "repair": result.to_json(), "memory": memory._asdict()}


@dataclass(frozen=True)
class Budget:
    """How many neurons each layer is to lose, by which rule, and the curves behind it (none for "uniform")."""

    rule: str
    counts: Mapping[str, int]
    sizes: Mapping[str, int]
    curves: Mapping[str, Curve]
    left: float | None

    def to_json(self) -> dict[str, Any]:
        """The budgets as JSON-ready data."""
        return {
            "rule": self.rule,
            "left": self.left,
            "layers": {
                name: {"neurons": self.sizes[name], "removed": count, "share": count / self.sizes[name]}
                | ({"curve": self.curves[name].to_json()} if name in self.curves else {})
                for name, count in self.counts.items()
            },
        }


def _settings(
    config: PruningConfig | None,
    kinds: Collection[str],
    include: Sequence[str],
    exclude: Sequence[str],
    round_to: int | None,
) -> PruningConfig:
    """The configuration under the options of the call."""
    options = {
        "kinds": tuple(sorted(kinds)),
        "include": tuple(include),
        "exclude": tuple(exclude),
        "round_to": round_to,
    }
    return (config or create_default_config()).update(strategy={key: value for key, value in options.items() if value})


def _kinds_of(ratio: Mapping[str, float], kinds: Collection[str]) -> list[str]:
    """The kinds that are to lose neurons, by a ratio for each."""
    if kinds:
        raise PlanError("Give kinds, or a ratio for each of them.", hint='ratio={"mlp": 0.6, "attention": 0.25}.')
    chosen = [kind for kind, share in ratio.items() if checked_share(share, f"ratio['{kind}']") > 0]
    if not chosen:
        raise PlanError(f"ratio = {dict(ratio)!r} removes nothing.", hint="Give a share above 0 for some kind.")
    return chosen


def _limits(neurons: NeuronMap, settings: PruningConfig) -> Limits:
    scope = Scope.of(neurons, neurons, settings.strategy)
    limits = Limits.of(neurons, neurons, settings, scope.layers)
    inexact = [name for name in sorted(scope.layers) if name in neurons and not neurons[name].exact]
    if inexact:
        raise PlanError(
            f"Layer '{inexact[0]}' is not exact ({neurons[inexact[0]].note}); compress removes what it can prove.",
            hint="Leave it out, or remove its neurons by PruningEngine, which measures what that changes.",
        )
    if not any(limits.room[name] for name in scope.layers if name in limits.room):
        raise PlanError(
            f"{neurons.model} has no neurons that may be removed under these options.",
            hint="Print the neuron map; change kinds, include or exclude.",
        )
    return limits


def _budget(
    bench: Bench,
    limits: Limits,
    rule: str,
    ratio: Ratio | None,
    left: Left | None,
    keep: float,
    unsolved: Scores,
) -> Budget:
    neurons = bench.neurons
    share = max(ratio.values()) if isinstance(ratio, Mapping) else ratio if ratio is not None else 1 - keep
    share = min(max(share, 0.05), 0.8)
    curves = {} if rule == "uniform" else {**curves_of(bench, share), **unsolved_curves(bench, unsolved, share)}
    layers = {name: _layer(bench, limits, rule, name, curves) for name in bench.groups}
    sizes = {name: neurons[name].size for name in layers}
    kinds: dict[str, dict[str, Layer]] = {}
    for name, layer in layers.items():
        kinds.setdefault(neurons[name].kind, {})[name] = layer

    def by_share(part: Ratio) -> dict[str, int]:
        counts: dict[str, int] = {}
        for kind, members in kinds.items():
            own = _share_of_kind(part, kind)
            if rule == "uniform":
                counts |= shares.uniform(members, own)
            else:
                counts |= shares.allocate(members, share_of(own, sum(sizes[name] for name in members)))
        return {name: counts[name] for name in layers}

    if left is None:
        counts = by_share(ratio or 0.0)
        return Budget(rule, counts, sizes, curves, None)

    def by_gain(part: float) -> dict[str, int]:
        if rule == "uniform":
            return by_share(part)
        gains = {name: _gain(bench, name) for name in layers}
        priced = {name: Layer(one.costs, one.most, one.step, gains[name]) for name, one in layers.items()}
        return shares.allocate(priced, part * sum(gains[name] * sizes[name] for name in layers))

    part = shares.searched(lambda part: left(by_gain(part)), keep)
    counts = by_gain(part)
    return Budget(rule, counts, sizes, curves, left(counts))


def _layer(bench: Bench, limits: Limits, rule: str, name: str, curves: Mapping[str, Curve]) -> Layer:
    size = bench.neurons[name].size
    costs = np.arange(size + 1, dtype=np.float64)
    if name in curves:
        curve = curves[name]
        costs = (curve.costs if rule == "measured" else curve.errors).numpy()
        if rule == "z-score":
            costs = _standardised(curve)
    return Layer(costs, min(limits.room[name], size - 1), limits.step[name])


def _standardised(curve: Curve) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The costs of the removals about their mean over the layer, in standard deviations (FLAP, eq. 6)."""
    steps = np.diff(curve.errors.numpy())
    scores = (steps - steps.mean()) / max(float(steps.std()), 1e-300)
    return np.concatenate([np.zeros(1), np.cumsum(np.sort(scores))])


def _gain(bench: Bench, name: str) -> float:
    """How many parameters a neuron of a layer is."""
    return float(
        parameters_left(bench.model, bench.neurons, {}) - parameters_left(bench.model, bench.neurons, {name: 1})
    )


def _share_of_kind(ratio: Ratio, kind: str) -> float:
    return ratio.get(kind, 0.0) if isinstance(ratio, Mapping) else ratio


def _check_reached(neurons: NeuronMap, budget: Budget, ratio: Ratio | None, what: str, keep: float) -> None:
    """Raise where the limits or the steps do not let it be."""
    if isinstance(ratio, Mapping):
        there = {neurons[name].kind for name in budget.sizes}
        for kind in (kind for kind, share in ratio.items() if share > 0 and kind not in there):
            raise PlanError(
                f"{neurons.model} has no neurons of kind '{kind}' that may be removed.",
                hint=f"It has {', '.join(sorted(there))}; print the neuron map.",
            )
    gone, everything = sum(budget.counts.values()), sum(budget.sizes.values())
    asked = sum(_share_of_kind(ratio or 0.0, neurons[name].kind) * size for name, size in budget.sizes.items())
    if ratio is not None and gone < asked - max(0.01 * everything, len(budget.sizes)):
        raise LimitError(
            f"Only {gone} of {everything} neurons may go, a share of {gone / everything:.2f}; "
            f"{asked / everything:.2g} was asked for.",
            hint="Ask for less, or raise thresholds.max_sparsity_per_layer; with round_to, widths go in steps.",
        )
    if budget.left is not None and budget.left > keep + 0.02:
        raise LimitError(
            f"Of the {what}, {budget.left:.0%} are left when all is removed that may go; {keep:.0%} was asked for.",
            hint="Ask for more, choose more kinds, or raise thresholds.max_sparsity_per_layer.",
        )


def _decision(
    neurons: NeuronMap, limits: Limits, budget: Budget, result: Repaired, asked: Mapping[str, Any]
) -> Decision:
    remove: dict[str, list[int]] = {name: _listed(gone) for name, gone in result.gone.items() if len(gone)}
    left_out = [f"'{weight}' could not be solved for: it {reason}." for weight, reason in result.left_out.items()]
    warnings = [
        f"Layer '{name}' is not exact ({neurons[name].note}): what its removal changes is measured, not proved."
        for name in remove
        if not neurons[name].exact
    ]
    warnings += [
        f"Layer '{name}' keeps its neurons, of which {count} were to go: nothing that reads them ran on the data."
        for name, count in budget.counts.items()
        if count and name not in remove
    ]
    if remove and not result.held_out:
        warnings.append("There were too few samples to hold any out, so nothing judged the repair: give more data.")
    if remove and result.kept == "removed":
        warnings.append("No repair came nearer to the dense model's answers than plain removal; none was made.")
    return Decision(
        plan=PruningPlan(remove, neurons.fingerprint or None, {"strategy": "compress", **asked}),
        candidates=tuple(
            Candidate(name, neuron, "others take over", None) for name, gone in remove.items() for neuron in gone
        ),
        limits=limits,
        warnings=tuple(warnings),
        notes=tuple(left_out),
    )


def _listed(neurons: Tensor) -> list[int]:
    return sorted(int(neuron) for neuron in neurons)
