"""How much of a model would be left: parameters, FLOPs, or time as it is measured on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import nn

from pruner.apply import prune_
from pruner.compensation.bench import copied
from pruner.metrics import count_flops, count_parameters, latencies_ms
from pruner.plan import PruningPlan
from tracker import trial
from tracker.batches import Batch
from tracker.errors import PlanError
from tracker.neuron_map import NeuronMap

TARGETS = ("params", "flops", "latency")

Left = Callable[[Mapping[str, int]], float]
"""The share of a model that is left when so many neurons of each layer are gone."""


def checked_target(target: Mapping[str, float]) -> tuple[str, float]:
    """The one thing that a target is about, and the share of it to keep; raises `PlanError`."""
    if len(target) != 1 or next(iter(target)) not in TARGETS:
        raise PlanError(
            f"target = {dict(target)!r} is not understood.",
            hint='Give the share to keep of one thing: {"params": 0.6}, {"flops": 0.5} or {"latency": 0.7}.',
        )
    what, share = next(iter(target.items()))
    given: object = share
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < 1:
        raise PlanError(
            f"target['{what}'] = {share!r} is not a number between 0 and 1.", hint="Give the share to keep."
        )
    return what, float(share)


def left_of(what: str, model: nn.Module, neurons: NeuronMap, batch: Batch) -> Left:
    """How much of a model is left, by "params", "flops" or "latency"; the model is only read."""
    if what == "params":
        return lambda counts: parameters_left(model, neurons, counts) / count_parameters(model)
    if what == "flops":
        dense = count_flops(model, batch)
        return lambda counts: count_flops(_small(model, neurons, counts), batch) / dense

    def latency(counts: Mapping[str, int]) -> float:
        before, after = latencies_ms((model, _small(model, neurons, counts)), (batch, batch))
        return after / before

    return latency


def parameters_left(model: nn.Module, neurons: NeuronMap, counts: Mapping[str, int]) -> int:
    """How many parameters a model has once so many neurons of each layer are gone; tied ones count once."""
    removed = {name: torch.arange(count) for name, count in counts.items() if count}
    shapes = trial.sliced_shapes(model, neurons, removed)
    return sum(prod(shapes[name]) if name in shapes else tensor.numel() for name, tensor in model.named_parameters())


def _small(model: nn.Module, neurons: NeuronMap, counts: Mapping[str, int]) -> nn.Module:
    twin = copied(model)
    prune_(twin, PruningPlan({name: range(count) for name, count in counts.items() if count}), neurons, proof=False)
    return twin
