"""How important each neuron of a layer is: what the model would say without it, exactly or by an estimate.

The estimate is of second order. A small change Δ of the logits moves the answers by KL ≈ ½ Δᵀ F Δ, F the Fisher
information; and with labels y drawn from the model and random signs r, S = ∂(Σ r log p(y)) · a, summed over the places
of a neuron with activation a, has E[S²] = Σ Δᵀ F Δ for its absence. So one backward pass a probe says it of every
neuron. How well the estimate ranks the neurons is measured each time, against the exact impact of a sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from neuronscope.layers import Layer
from neuronscope.movement import SAFE, Scale
from pruner.compensation.distance import Answer, answer
from tracker.batches import Batch, forward
from tracker.errors import ConfigError
from tracker.moments import Row
from tracker.neuron_map import NeuronGroup, Read
from tracker.progress import progress
from tracker.taps import tap
from tracker.watch import Watch, watching

Method = Literal["second-order", "exact"]
METHODS: tuple[Method, ...] = get_args(Method)

_REPLICAS = 8
"""So many copies of a batch go through the model at a time, each without another neuron."""


@dataclass(frozen=True)
class NeuronImportance:
    """A neuron: its mean |activation| and variance over the inputs, the `impact_score` of its absence (see
    `neuronscope.movement`), and whether it is critical: above the layer's 75th percentile, and not safe to remove.
    """

    layer_index: int
    neuron_index: int
    activation_magnitude: float
    activation_variance: float
    impact_score: float
    is_critical: bool


class LayerImportance(list[NeuronImportance]):
    """One entry for every neuron, in order.

    `rank_correlation` is Spearman's between the estimate and the exact impact of the neurons in `checked`; 1 where all
    are exact, NaN where the sample cannot tell.
    """

    method: Method = "exact"
    rank_correlation: float = 1.0
    checked: tuple[int, ...] = ()


def importance_of(
    model: nn.Module,
    layer: Layer,
    batches: Sequence[Batch],
    *,
    method: Method = "second-order",
    probes: int = 8,
    sample: int = 16,
    seed: int = 0,
) -> LayerImportance:
    """The importance of every neuron of a layer. To be used under `evaluating`.

    Args:
        method: "second-order", or "exact", which runs the model once for each neuron.
        probes: backward passes for the estimate, for each batch.
        sample: neurons whose exact impact the estimate is held against, from the least to the most important.
        seed: of the probes.

    Where no gradient reaches the neurons (as with raw parameters), all are exact. Raises `ConfigError` for a method
    that is unknown.
    """
    if method not in METHODS:
        raise ConfigError(f"method = {method!r} is unknown.", hint=f"Use one of {', '.join(METHODS)}.")
    if min(probes, sample) < 1:
        raise ConfigError("probes and sample are numbers from 1 up.", hint="Leave them out.")
    dense = [answer(forward(model, batch), batch) for batch in batches]
    scale = Scale(dense, [None] * len(dense))
    magnitude, variance = _activity(model, layer, batches)
    estimate = _estimate(model, layer, batches, probes, seed) if method == "second-order" else None
    found = LayerImportance()
    if estimate is None:
        scores = exact_impacts(model, layer, batches, scale, range(layer.size))
    else:
        order = np.argsort(estimate, kind="stable")
        chosen = np.unique(order[np.linspace(0, layer.size - 1, min(sample, layer.size)).round().astype(int)])
        known = exact_impacts(model, layer, batches, scale, chosen.tolist())
        spread = np.ptp(known) > 0 and np.ptp(estimate[chosen]) > 0
        found.method, found.checked = "second-order", tuple(chosen.tolist())
        found.rank_correlation = float(spearmanr(known, estimate[chosen]).statistic) if spread else math.nan
        scores = estimate
    high = float(np.percentile(scores, 75))
    for neuron, score in enumerate(scores.tolist()):
        critical = score > high and score >= SAFE
        found.append(
            NeuronImportance(layer.index, neuron, float(magnitude[neuron]), float(variance[neuron]), score, critical)
        )
    return found


def exact_impacts(
    model: nn.Module, layer: Layer, batches: Sequence[Batch], scale: Scale, neurons: Sequence[int]
) -> NDArray[np.float64]:
    """The impact score of each of these neurons alone, (neurons,)."""
    totals, places = np.zeros(len(neurons)), 0
    groups = [(group, place) for group in layer.groups for place in range(group.size)]
    replicas = _REPLICAS if _stacks(model, layer, batches[0]) else 1
    chunks = [list(neurons[start : start + replicas]) for start in range(0, len(neurons), replicas)]
    for number, batch in enumerate(batches):
        done = 0
        for chunk in progress(chunks, "Without each neuron") if len(chunks) > 8 else chunks:
            said = _ablated(model, layer, batch, [groups[neuron] for neuron in chunk])
            rows = said.values.unflatten(0, (len(chunk), -1))
            for one in rows:
                totals[done] += float(scale.scores(Answer(one, said.classes), number).sum())
                done += 1
        places += rows.shape[1]
    return totals / places


def _ablated(model: nn.Module, layer: Layer, batch: Batch, gone: Sequence[tuple[NeuronGroup, int]]) -> Answer:
    """The answers to as many copies of a batch as neurons are given, each copy without one of them."""
    repeated = _repeated(batch, len(gone))

    def visit(group: NeuronGroup, read: Read, x: Tensor) -> Tensor | None:
        own = [(copy, place) for copy, (one, place) in enumerate(gone) if one is group]
        if not own:
            return None
        x = x.clone()
        parts = x.unflatten(0, (len(gone), -1))
        for copy, place in own:
            positions = torch.from_numpy(read.positions[place]).to(x.device)
            parts[copy].index_fill_(read.axis, positions, 0)
        return x

    with tap(model, layer.groups, visit):
        return answer(forward(model, repeated), repeated)


def _repeated(batch: Batch, times: int) -> Batch:
    rows = _rows(batch)

    def more(x: Tensor) -> Tensor:
        return x.repeat(times, *[1] * (x.dim() - 1)) if x.dim() and x.shape[0] == rows else x

    args, kwargs = tree_map_only(Tensor, more, (batch.args, batch.kwargs))
    return Batch(args, kwargs, None, None if batch.mask is None else more(batch.mask))


def _rows(batch: Batch) -> int:
    tensors = [x for x in (*batch.args, *batch.kwargs.values()) if isinstance(x, Tensor) and x.dim()]
    return tensors[0].shape[0] if tensors else 1


def _stacks(model: nn.Module, layer: Layer, batch: Batch) -> bool:
    """Whether copies of a batch lie one behind the other wherever the layer is read, tried with the first neuron."""
    group = layer.groups[0]
    try:
        together = _ablated(model, layer, batch, [(group, 0), (group, group.size - 1)]).values.unflatten(0, (2, -1))
        alone = [_ablated(model, layer, batch, [(group, place)]).values for place in (0, group.size - 1)]
    except (RuntimeError, IndexError):
        return False
    largest = max(float(x.abs().max()) for x in alone)
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-4 * largest) for a, b in zip(together, alone, strict=True))


def _activity(
    model: nn.Module, layer: Layer, batches: Sequence[Batch]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean magnitude and variance of each neuron over the inputs, padding left out."""
    watch = Watch(layer.groups)
    with watching(model, watch):
        for batch in batches:
            forward(model, batch)
    blocks, _ = watch.results()
    magnitude, variance = [], []
    for group in layer.groups:
        block = blocks[group.name]
        count = block[Row.COUNT].clamp(min=1)
        magnitude.append(block[Row.MAGNITUDE] / count)
        variance.append(block[Row.M2] / count)
    return torch.cat(magnitude).numpy(), torch.cat(variance).numpy()


def _estimate(
    model: nn.Module, layer: Layer, batches: Sequence[Batch], probes: int, seed: int
) -> NDArray[np.float64] | None:
    """The impact score of every neuron by second order; None where no gradient reaches them."""
    random = torch.Generator().manual_seed(seed)
    total = torch.zeros(layer.size, dtype=torch.float64)
    places, spread = 0, 0.0
    classes = False
    for batch in batches:
        leaves: list[tuple[NeuronGroup, Read, Tensor]] = []

        def visit(group: NeuronGroup, read: Read, x: Tensor, leaves: Any = leaves) -> Tensor:
            leaf = x.detach().requires_grad_()
            leaves.append((group, read, leaf))
            return leaf

        with torch.enable_grad(), tap(model, layer.groups, visit):
            said = answer(forward(model, batch), batch)
            values = said.values.float()
        if not leaves or not values.requires_grad:
            return None
        classes = said.classes and values.shape[-1] > 1
        places += len(values)
        centred = values.detach() - values.detach().mean(0)
        spread += float(centred.double().square().sum())
        for probe in range(probes):
            grads = torch.autograd.grad(
                _probe(values, classes, random),
                [leaf for _, _, leaf in leaves],
                retain_graph=probe + 1 < probes,
                allow_unused=True,
            )
            if any(grad is None for grad in grads):
                return None
            own = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in layer.groups}
            for (group, read, leaf), grad in zip(leaves, grads, strict=True):
                product = (leaf.detach() * grad).double().movedim(read.axis, -1).flatten(0, -2).sum(0).cpu()
                own[group.name] += product[torch.from_numpy(read.positions)].sum(1)
            total += layer.joined(own).square() / probes
    mean = (total / places).numpy()
    if classes:
        # KL = mean / 2, and for a small Gaussian change of the log-probabilities the total variation is √(KL / π).
        score: NDArray[np.float64] = np.sqrt(mean / 2 / math.pi)
    else:
        score = np.sqrt(mean) / max(2 * math.sqrt(spread / places), 1e-300)
    return np.minimum(score, 1.0)


def _probe(values: Tensor, classes: bool, random: torch.Generator) -> Tensor:
    """A random sum over the answers whose gradient has their Fisher information as its second moment."""
    with torch.enable_grad():
        if not classes:
            return (values * torch.randn(values.shape, generator=random).to(values)).sum()
        signs = (torch.randint(0, 2, (len(values),), generator=random) * 2 - 1).to(values)
        drawn = torch.multinomial(values.detach().softmax(-1).cpu(), 1, generator=random).to(values.device)
        return (F.log_softmax(values, -1).gather(-1, drawn).squeeze(-1) * signs).sum()
