"""One model through NeuronScope: half of every exact group goes, and what is left must be the masked model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from benchmarks.zoo.entries import Entry
from benchmarks.zoo.forward import Seen, difference, outputs
from benchmarks.zoo.grouped_products import accept_float64
from benchmarks.zoo.limits import Clock, Peak, limited
from benchmarks.zoo.shares import shares
from torch import nn

from pruner import PruningPlan, masked, prune_
from pruner.scores import magnitude
from tracker import NeuronMap, discover

TOLERANCE = 1e-10

Report = Callable[..., None]


def warm_up() -> None:
    """Load what is loaded with the first model."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    neurons = discover(model, torch.randn(1, 4))
    prune_(model, _half(neurons, _by_magnitude(model, neurons)))


def measure(entry: Entry, report: Report) -> None:
    """Time a magnitude pruning of the model as it comes, then prove a random one in float64.

    Facts are reported as soon as they are known, so that those of a process that is ended at its limit stay.
    """
    neurons = _timed(entry, report)
    report(stage="proof", **_found(neurons))
    report(**_proof(entry, neurons), stage="done")


def _timed(entry: Entry, report: Report) -> NeuronMap:
    report(stage="build")
    example = entry.fresh()
    model = example.model
    peak, clock = Peak(), Clock()
    report(stage="discover", parameters=sum(parameter.numel() for parameter in model.parameters()))
    with limited():
        neurons = discover(model, example.args, dict(example.kwargs))
        report(stage="plan", discover_seconds=clock.lap())
        plan = _half(neurons, _by_magnitude(model, neurons))
        report(stage="slice", plan_seconds=clock.lap())
        pruned = prune_(model, plan, neurons, proof=False)
        report(slice_seconds=clock.lap(), peak_mib=peak.mib(), parameters_after=pruned.parameters_after)
    return neurons


def _by_magnitude(model: nn.Module, neurons: NeuronMap) -> dict[str, list[int]]:
    return {name: values.argsort().tolist() for name, values in magnitude(model, neurons).items()}


def _half(neurons: NeuronMap, order: dict[str, list[int]]) -> PruningPlan:
    """The first half of every exact group in this order."""
    return PruningPlan({group.name: order[group.name][: group.size // 2] for group in neurons if group.exact})


def _found(neurons: NeuronMap) -> dict[str, Any]:
    """The map in numbers."""
    reasons = Counter(_without_place(entry.reason) for entry in neurons.frozen)
    notes = Counter(_without_place(group.note) for group in neurons if not group.exact)
    return {
        "exact": dict(Counter(group.kind for group in neurons if group.exact)),
        "inexact": dict(Counter(group.kind for group in neurons if not group.exact)),
        "frozen": dict(reasons.most_common(6)),
        "notes": dict(notes.most_common(3)),
        "operators_without_rule": dict(neurons.operators_without_rule),
    }


def _without_place(reason: str) -> str:
    """A reason that is the same for every block of a model."""
    return re.sub(r"\.\d+\b", ".*", re.sub(r" \(in [^()]*\)", "", reason))


def _proof(entry: Entry, neurons: NeuronMap) -> dict[str, Any]:
    """Cut a random half of every exact group from a second copy of the model, and compare with masking it.

    In float64, unless the model refuses that or leaves the range of a narrower type it casts to; then in its own type.
    """
    accept_float64()
    try:
        return _proof_in(entry, neurons, torch.float64)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, OverflowError) as error:
        refusal = f"not in float64: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
    own = next(tensor.dtype for tensor in entry.fresh().model.parameters() if tensor.is_floating_point())
    return {**_proof_in(entry, neurons, own), "cast": refusal, "tolerance": torch.finfo(own).eps}


def _proof_in(entry: Entry, neurons: NeuronMap, dtype: torch.dtype) -> dict[str, Any]:
    example = entry.fresh(dtype)
    model, args, kwargs = example.model, example.args, example.kwargs
    with Seen().looking((args, kwargs)) as seen:
        dense = outputs(model, args, kwargs)
    if not dense or not all(bool(torch.isfinite(x).all()) for x in dense):
        raise OverflowError("the outputs of the dense model are not finite")
    counted = shares(model, neurons, seen).to_json()
    random = np.random.default_rng(0)
    plan = _half(neurons, {group.name: random.permutation(group.size).tolist() for group in neurons})
    with masked(model, plan, neurons):
        silent = outputs(model, args, kwargs)
    prune_(model, plan, neurons, proof=False)
    error = difference(outputs(model, args, kwargs), silent)
    facts = {
        **counted,
        "attention": seen.attention,
        "error": error,
        "moved": difference(silent, dense),
        "dtype": str(dtype).removeprefix("torch."),
        "tolerance": TOLERANCE,
    }
    if error > TOLERANCE and seen.casts:
        types = {getattr(torch, cast.split()[0]) for cast in seen.casts}
        casts = ", ".join(sorted(seen.casts)[:3])
        facts |= {"cast": f"casts to {casts}", "tolerance": max(torch.finfo(cast).eps for cast in types)}
    return facts
