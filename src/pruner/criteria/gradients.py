"""The first-order criterion: what the loss says about a neuron's absence, sample by sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pruner.compensation.distance import answer
from pruner.criteria.evidence import Evidence, register
from pruner.scores import Scores
from tracker.batches import Batch, forward
from tracker.neuron_map import NeuronGroup, Read
from tracker.taps import tap


@register("taylor")
def taylor(evidence: Evidence) -> Scores:
    """E[(Σ a · ∂L/∂a)²] over samples, a what is read of the neuron (Molchanov et al. 2019, "Importance Estimation for
    Neural Network Pruning", eq. 8).

    The loss is the batch's own where it has labels. Without them, for a choice among classes, labels are drawn from the
    model (the Fisher); for vectors, the loss is the answers' product with a random direction (Gauss–Newton).
    """
    squares = {g.name: torch.zeros(g.size, dtype=torch.float64) for g in evidence.neurons}
    random = torch.Generator().manual_seed(evidence.seed)
    for batch in evidence.data_for("taylor"):
        sums: dict[str, Tensor] = {}

        def visit(group: NeuronGroup, read: Read, x: Tensor, sums: dict[str, Tensor] = sums) -> None:
            if not x.requires_grad:
                return
            value = x.detach()

            def received(gradient: Tensor) -> None:
                product = (value * gradient).movedim(read.axis, -1).float()
                product = product.reshape(product.shape[0], -1, product.shape[-1]).sum(1)
                own = product[:, torch.from_numpy(read.positions).to(product.device)].sum(2)
                known = sums.get(group.name)
                sums[group.name] = own if known is None or known.shape != own.shape else known + own

            x.register_hook(received)

        with torch.enable_grad(), _all_trainable(evidence):
            groups = [g for g in evidence.neurons if g.reads]
            with tap(evidence.model, groups, visit):
                loss = drawn_loss(forward(evidence.model, batch), batch, random)
                parameters = [p for p in evidence.model.parameters() if p.requires_grad]
                torch.autograd.grad(loss, parameters, allow_unused=True)
        for name, product in sums.items():
            squares[name] += product.double().square().sum(0).cpu()
    return squares


class _all_trainable:  # noqa: N801 (a context manager)
    """Gradients reach every neuron, also behind frozen parameters."""

    def __init__(self, evidence: Evidence) -> None:
        self._before = [(p, p.requires_grad) for p in evidence.model.parameters()]

    def __enter__(self) -> None:
        for parameter, _ in self._before:
            parameter.requires_grad_(parameter.is_floating_point())

    def __exit__(self, *_: object) -> None:
        for parameter, required in self._before:
            parameter.requires_grad_(required)


def drawn_loss(output: Any, batch: Batch, random: torch.Generator) -> Tensor:
    """A sum over samples, so that each one's gradient is its own."""
    own = getattr(output, "loss", None)
    said = answer(output, batch)
    if isinstance(own, Tensor) and own.requires_grad:
        return own * len(said.values)
    values = said.values.float()
    target = batch.target
    if target is not None and not target.is_floating_point() and target.numel() == len(values):
        return F.cross_entropy(values, target.flatten(), reduction="sum", ignore_index=-100)
    if said.classes:
        chances = values.detach().softmax(-1).cpu()
        drawn = torch.multinomial(chances, 1, generator=random).squeeze(1).to(values.device)
        return F.cross_entropy(values, drawn, reduction="sum")
    return (values * torch.randn(values.shape, generator=random).to(values)).sum()
