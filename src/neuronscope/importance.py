"""How important each neuron is: what the model would say without it, exactly or by an estimate.

The estimate is of second order: a distance from what the dense model says has no gradient there, so first order says
nothing. A neuron's absence changes the log-probability of an answer y by δ(y) ≈ ∂ log p(y) · a, a its activation, and
moves the answers by the total variation ½ Σ p(y) |δ(y)|. With y drawn from the model that is ½ E|δ(y)|: one backward
pass, for one drawn answer a place, with a random sign each so that places do not add up, says it of all neurons of all
layers. Neurons act on the places after them, too; so what they do in windows of four places is summed before the
absolute value is taken, and divided by two, the root of the four answers. The estimate of first order, |∂L · a|
(Molchanov et al. 2017), of the loss against what the model itself finds likeliest, is there to compare. How well an
estimate ranks the neurons is measured each time, against the exact impact of a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from neuronscope.layers import Layer
from neuronscope.movement import SAFE, Scale, scale_of_choice
from neuronscope.stacked import absences, rows_of, single_rows
from pruner.compensation.distance import answer
from tracker.batches import Batch, forward
from tracker.errors import ConfigError
from tracker.moments import Row
from tracker.neuron_map import NeuronGroup, Read
from tracker.progress import progress
from tracker.taps import tap
from tracker.watch import Watch, watching

Method = Literal["second-order", "first-order", "exact"]
METHODS: tuple[Method, ...] = get_args(Method)
WINDOW = 4
"""Places that count together. Of 1 to 32 the best compromise between layers, on the two trained language models."""


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
    are exact, NaN where the sample cannot tell or none was taken.
    """

    method: Method = "exact"
    rank_correlation: float = 1.0
    checked: tuple[int, ...] = ()


def importance_of(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Batch],
    *,
    method: Method = "second-order",
    probes: int = 8,
    sample: int = 16,
    seed: int = 0,
) -> list[LayerImportance]:
    """The importance of every neuron of these layers, all at once. To be used under `evaluating`.

    Args:
        method: "second-order", "first-order", or "exact", as if the model ran once without each neuron.
        probes: backward passes of the second order, for each batch.
        sample: neurons of each layer whose exact impact the estimate is held against, from the least to the most
            important; with 0 it is held against nothing.
        seed: of the probes.

    Where no gradient reaches the neurons (as with raw parameters), all are exact. Raises `ConfigError` for a method
    that is unknown.
    """
    if method not in METHODS:
        raise ConfigError(f"method = {method!r} is unknown.", hint=f"Use one of {', '.join(METHODS)}.")
    if any(type(number) is not int or number < least for number, least in ((probes, 1), (sample, 0))):
        raise ConfigError("probes is a number from 1 up, and sample one from 0 up.", hint="Leave them out.")
    rows = [row for batch in batches for row in single_rows(batch)]
    dense = [answer(forward(model, row), row) for row in rows]
    scale = Scale(dense, [None] * len(dense))
    activity = _activity(model, layers, batches)
    estimates = None if method == "exact" else estimated(model, layers, batches, method, probes, seed)
    return [_assembled(model, layer, rows, scale, activity[layer.index], estimates, method, sample) for layer in layers]


def _assembled(
    model: nn.Module,
    layer: Layer,
    rows: Sequence[Batch],
    scale: Scale,
    activity: tuple[NDArray[np.float64], NDArray[np.float64]],
    estimates: dict[int, NDArray[np.float64]] | None,
    method: Method,
    sample: int,
) -> LayerImportance:
    found = LayerImportance()
    if estimates is None:
        scores = exact_impacts(model, layer, rows, scale, range(layer.size))
    else:
        scores = estimates[layer.index]
        order = np.argsort(scores, kind="stable")
        chosen = np.unique(order[np.linspace(0, layer.size - 1, min(sample, layer.size)).round().astype(int)])
        known = exact_impacts(model, layer, rows, scale, chosen.tolist()) if sample else np.zeros(0)
        found.method, found.checked = method, tuple(chosen.tolist())
        found.rank_correlation = _rank_correlation(known, scores[chosen])
    high = float(np.percentile(scores, 75))
    magnitude, variance = activity
    for neuron, score in enumerate(scores.tolist()):
        critical = score > high and score >= SAFE
        found.append(
            NeuronImportance(layer.index, neuron, float(magnitude[neuron]), float(variance[neuron]), score, critical)
        )
    return found


def _rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Spearman's; NaN where either says the same of all."""
    from scipy.stats import spearmanr  # takes as long to import as all of ours

    spread = len(one) > 0 and np.ptp(one) > 0 and np.ptp(other) > 0
    return float(spearmanr(one, other).statistic) if spread else math.nan


def exact_impacts(
    model: nn.Module, layer: Layer, rows: Sequence[Batch], scale: Scale, neurons: Sequence[int]
) -> NDArray[np.float64]:
    """The impact score of each of these neurons alone, (neurons,); `rows` are inputs one by one, as in `scale`."""
    totals, gone = np.zeros(len(neurons)), [layer.places[neuron] for neuron in neurons]
    steps: Callable[[Sequence[Any]], Any] = partial(progress, description=f"Without each neuron of layer {layer.index}")
    for one in absences(model, gone, rows, steps=steps):
        totals[one.neuron] += float(scale.scores(one.said, one.batch).sum())
    return totals / sum(scale.places(number) for number in range(len(rows)))


def _activity(
    model: nn.Module, layers: Sequence[Layer], batches: Sequence[Batch]
) -> dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Mean magnitude and variance of each neuron over the inputs, padding left out, by layer."""
    watch = Watch([group for layer in layers for group in layer.groups])
    with watching(model, watch):
        for batch in batches:
            forward(model, batch)
    blocks, _ = watch.results()
    found = {}
    for layer in layers:
        own = [blocks[group.name] for group in layer.groups]
        magnitude, variance = (
            torch.cat([block[row] / block[Row.COUNT].clamp(min=1) for block in own]).numpy()
            for row in (Row.MAGNITUDE, Row.M2)
        )
        found[layer.index] = (magnitude, variance)
    return found


def estimated(
    model: nn.Module, layers: Sequence[Layer], batches: Sequence[Batch], method: Method, probes: int, seed: int = 0
) -> dict[int, NDArray[np.float64]] | None:
    """The impact score of every neuron of these layers by an estimate; None where no gradient reaches them."""
    random = torch.Generator().manual_seed(seed)
    groups = [group for layer in layers for group in layer.groups]
    total = {group.name: torch.zeros(group.size, dtype=torch.float64) for group in groups}
    places, spread, classes = 0, 0.0, False
    rounds = 1 if method == "first-order" else probes
    for batch in progress(batches, "Estimating"):
        leaves: list[tuple[NeuronGroup, Read, Tensor]] = []

        def visit(group: NeuronGroup, read: Read, x: Tensor, leaves: Any = leaves) -> Tensor:
            # What is read depends on what was read further up: only the first starts a new graph.
            leaf = x if x.requires_grad else x.detach().requires_grad_()
            leaves.append((group, read, leaf))
            return leaf

        with torch.enable_grad(), tap(model, groups, visit):
            said = answer(forward(model, batch), batch)
            values = said.values.float()
        if not leaves or not values.requires_grad:
            return None
        classes = said.classes and values.shape[-1] > 1
        places += len(values)
        window = WINDOW if len(values) > rows_of(batch) else 0
        centred = values.detach() - values.detach().mean(0)
        spread += float(centred.double().square().sum())
        for probe in range(rounds):
            asked = _own_loss(values, classes) if method == "first-order" else _probe(values, classes, random)
            tensors = [leaf for _, _, leaf in leaves]
            grads = torch.autograd.grad(asked, tensors, retain_graph=probe + 1 < rounds, allow_unused=True)
            if any(grad is None for grad in grads):
                return None
            own: dict[tuple[str, torch.Size], Tensor] = {}
            for (group, read, leaf), grad in zip(leaves, grads, strict=True):
                part = _summed(leaf.detach() * grad, read, window)
                key = (group.name, part.shape)
                own[key] = own[key] + part if key in own else part
            for (name, _), value in own.items():
                if method == "first-order":
                    total[name] += value.sum(0).abs().double().cpu()
                else:
                    total[name] += value.abs().sum(0).double().cpu() * math.sqrt(window or 1) / rounds
    means = {layer.index: layer.joined(total).numpy() / places for layer in layers}
    return {index: _scored(mean, classes, method, spread / places) for index, mean in means.items()}


def _summed(product: Tensor, read: Read, window: int) -> Tensor:
    """Over the windows of places, or over all places of an input (`window` 0); (sums, size)."""
    x = product.movedim(read.axis, -1)
    if x.dim() == 2:
        x = x.unsqueeze(0) if window else x.unsqueeze(1)
    x = x.flatten(1, -2)  # (inputs, places, positions)
    if window:
        x = F.pad(x, (0, 0, 0, -x.shape[1] % window)).unflatten(1, (-1, window)).sum(2).flatten(0, 1)
    else:
        x = x.sum(1)
    return x[:, torch.from_numpy(read.positions).to(x.device)].sum(-1)


def _scored(mean: NDArray[np.float64], classes: bool, method: Method, spread: float) -> NDArray[np.float64]:
    """On the scale of impact scores; the first order is a change of the loss, and kept as it is, at most 1."""
    if method == "first-order":
        score = mean
    elif classes:
        score = scale_of_choice(np.minimum(mean / 2, 1.0))
    else:  # a projection on a random direction: its mean is √(2/π) of the length
        score = mean * math.sqrt(math.pi / 2) / max(2 * math.sqrt(spread), 1e-300)
    return np.minimum(score, 1.0)


def _own_loss(values: Tensor, classes: bool) -> Tensor:
    """The loss against what the model itself finds likeliest; of vectors, half their square."""
    with torch.enable_grad():
        if not classes:
            return values.square().sum() / 2
        return -F.log_softmax(values, -1).max(-1).values.sum()


def _probe(values: Tensor, classes: bool, random: torch.Generator) -> Tensor:
    """A random sum over the answers: of a drawn one a place, or of the shares of a random direction."""
    with torch.enable_grad():
        if not classes:
            return (values * torch.randn(values.shape, generator=random).to(values)).sum()
        signs = (torch.randint(0, 2, (len(values),), generator=random) * 2 - 1).to(values)
        drawn = torch.multinomial(values.detach().softmax(-1).cpu(), 1, generator=random).to(values.device)
        return (F.log_softmax(values, -1).gather(-1, drawn).squeeze(-1) * signs).sum()
