"""Several models on the same inputs: what they say, what they cost, and which of their neurons are the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from neuronscope.ablation import by_neuron
from neuronscope.layers import Layer, Layers
from neuronscope.movement import Scale
from neuronscope.trials import targets_of
from pruner.compensation.distance import Answer, answer
from pruner.current_map import current_map
from pruner.metrics import count_parameters, wait_for_device
from tracker.admission import admitted
from tracker.batches import Batch, evaluating, forward
from tracker.errors import DataError
from tracker.neuron_map import NeuronGroup, Read
from tracker.progress import progress
from tracker.taps import tap

MOST_PLACES = 1024
FEWEST_PLACES = 32
"""Over fewer places any two neurons seem alike, so none are matched."""
RUNS = 5
SAME = 0.99
"""Neurons whose activations correlate at least so much are the same."""


def compare_models(models: Mapping[str, nn.Module], inputs: Callable[[nn.Module], Sequence[Batch]]) -> dict[str, Any]:
    """How models differ from the first of them, as JSON-ready data; none is changed.

    Args:
        models: two or more by name, such as a model and what was pruned from it, or two checkpoints.
        inputs: gives the batches for a model; the same inputs for all.

    Returns `models` (each with `parameters`, `bytes`, `latency_ms`: the median of 5 runs over the inputs, `loss` where
    the right answers are known, and `metrics` of its movement from the first, None where the answers cannot be held
    against each other) and `layers`: for every layer of each further model, its size in both, and for every neuron
    (`neurons`) the one of the first model that correlates most with it, `of`, and the `correlation`; `same` counts
    those of at least 0.99; None where the inputs are too few to tell. Layers are matched by number.

    Raises `DataError` for fewer than two models.
    """
    if len(models) < 2:
        raise DataError("There is nothing to compare with.", hint="Name at least two models.")
    (first, reference), *others = ((name, admitted(model)) for name, model in models.items())
    dense, heard, entries = _looked_at(reference, inputs)
    scale = Scale(dense, entries.pop("targets"))
    found: dict[str, Any] = {"reference": first, "models": {first: {**entries, "metrics": None}}, "layers": {}}
    for name, model in progress(others, "Comparing"):
        said, own, entries = _looked_at(model, inputs)
        entries.pop("targets")
        alike = all(a.values.shape == b.values.shape for a, b in zip(said, dense, strict=True))
        found["models"][name] = {**entries, "metrics": asdict(scale.movement(said)) if alike else None}
        found["layers"][name] = [
            _matched(index, before, after) for index, (before, after) in enumerate(zip(heard, own, strict=False))
        ]
    return found


def _looked_at(
    model: nn.Module, inputs: Callable[[nn.Module], Sequence[Batch]]
) -> tuple[list[Answer], list[Tensor | None], dict[str, Any]]:
    """What a model says, the activations of its layers, and its numbers."""
    layers = Layers.of(current_map(model))
    batches = inputs(model)
    with evaluating(model):
        said, heard = _activations(model, layers.all, batches)
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            for batch in batches:
                forward(model, batch)
                wait_for_device(batch)
            times.append(time.perf_counter() - start)
    targets = [targets_of(model, batch, one) for batch, one in zip(batches, said, strict=True)]
    return (
        said,
        heard,
        {
            "parameters": count_parameters(model),
            "bytes": sum(p.numel() * p.element_size() for p in {id(p): p for p in model.parameters()}.values()),
            "latency_ms": 1000 * median(times),
            "loss": _loss(said, targets),
            "layers": len(layers),
            "neurons": sum(layer.size for layer in layers.all),
            "targets": targets,
        },
    )


def _activations(
    model: nn.Module, layers: Sequence[Layer], batches: Sequence[Batch]
) -> tuple[list[Answer], list[Tensor | None]]:
    """The answers, and of every layer what is read of its neurons, (places, neurons); None where that differs."""
    groups = [group for layer in layers for group in layer.groups]
    parts: dict[str, dict[int, Tensor]] = {}
    said = []
    for number, batch in enumerate(batches):

        def visit(group: NeuronGroup, read: Read, x: Tensor, number: int = number, batch: Batch = batch) -> None:
            parts.setdefault(group.name, {}).setdefault(number, by_neuron(x, read, group, batch)[:MOST_PLACES])

        with tap(model, groups, visit):
            said.append(answer(forward(model, batch), batch))
    joined = {name: torch.cat(list(own.values()))[:MOST_PLACES] for name, own in parts.items()}
    heard: list[Tensor | None] = []
    for layer in layers:
        own = [joined[group.name] for group in layer.groups if group.name in joined]
        whole = len(own) == len(layer.groups) and len({len(part) for part in own}) == 1
        heard.append(torch.cat(own, 1).double() if whole else None)
    return said, heard


def _matched(index: int, before: Tensor | None, after: Tensor | None) -> dict[str, Any]:
    sizes = {"before": None if before is None else before.shape[1], "after": None if after is None else after.shape[1]}
    if before is None or after is None or len(before) != len(after) or len(before) < FEWEST_PLACES:
        return {"index": index, **sizes, "same": None, "neurons": None}
    correlation = _standardised(after).T @ _standardised(before) / max(1, len(before))
    best = correlation.abs().max(1)
    neurons = [
        {"neuron_index": neuron, "of": int(of), "correlation": float(correlation[neuron, of])}
        for neuron, of in enumerate(best.indices.tolist())
    ]
    same = sum(abs(one["correlation"]) >= SAME for one in neurons)
    return {"index": index, **sizes, "same": same, "neurons": neurons}


def _standardised(x: Tensor) -> Tensor:
    x = x - x.mean(0)
    return x / x.square().mean(0).sqrt().clamp(min=1e-300)


def _loss(said: Sequence[Answer], targets: Sequence[Tensor | None]) -> float | None:
    """Nats for each place whose right answer is known."""
    total, count = 0.0, 0
    for one, target in zip(said, targets, strict=True):
        if target is not None and one.values.dim() == 2:
            known = target >= 0
            total += float(nn.functional.cross_entropy(one.values.float()[known], target[known], reduction="sum"))
            count += int(known.sum())
    return total / count if count else None
