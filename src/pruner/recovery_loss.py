"""What a pruned model is trained on to recover: the labels of the data, the dense model's answers and hidden states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruner.compensation.distance import Answer, answer, distance, mean_error, rows, spread, written
from pruner.compensation.stages import blocks_of, calls_of
from tracker.batches import Batch, as_batch, evaluating, forward, logits
from tracker.errors import DataError, PlanError

Loss = Callable[[Any, Any], Tensor]
"""(the model's output, the batch as the loader gave it) → the loss to fall."""


@dataclass(frozen=True)
class Weights:
    """How much each part of the loss counts."""

    labels: float
    answers: float
    hidden: float


@dataclass
class Objective:
    """The loss of one batch.

    With a `teacher`: the distance of the answers (Hinton et al. 2015: Kullback–Leibler at a `temperature`, times its
    square; the squared difference for vectors), and the mean over the blocks of the squared difference of what they
    write, in units of its variance (Romero et al. 2015, FitNets). With labels: the model's own loss, cross-entropy, or
    the mean square; or `loss`, the caller's.
    """

    model: nn.Module
    weights: Weights
    teacher: nn.Module | None = None
    temperature: float = 1.0
    loss: Loss | None = None
    blocks: tuple[str, ...] = ()
    _unit: float | None = None

    def look(self, raw: Any, batch: Batch) -> None:
        """See with a first batch that teacher and model fit; raises `PlanError` where they do not."""
        if self.teacher is None:
            return
        with evaluating(self.model), evaluating(self.teacher):
            said, wanted = answer(forward(self.model, batch), batch), self._taught(self.teacher, raw, batch)
            if said.values.shape != wanted.values.shape:
                raise PlanError(
                    f"The teacher answers with {tuple(wanted.values.shape)} numbers (samples, features), the model "
                    f"with {tuple(said.values.shape)}.",
                    hint="Give the dense model that this one was pruned from.",
                )
            self._unit = spread([wanted])
            if self.weights.hidden:
                self.blocks = _common_blocks(self.model, self.teacher, raw, batch)

    def __call__(self, raw: Any, batch: Batch) -> Tensor:
        """The loss, differentiable in the model's parameters."""
        parts: list[Tensor] = []
        with written(self.model, self.blocks) as ours:
            output = forward(self.model, batch)
        if self.weights.labels:
            parts.append(self.weights.labels * (self.loss(output, raw) if self.loss else labelled(output, batch)))
        if self.teacher is not None:
            with torch.no_grad(), written(self.teacher, self.blocks) as theirs:
                wanted = self._taught(self.teacher, raw, batch)
            if self.weights.answers:
                parts.append(self.weights.answers * self._distance(answer(output, batch), wanted))
            if self.weights.hidden:
                errors = [_error(ours[block], theirs[block], batch) for block in self.blocks]
                parts.append(self.weights.hidden * torch.stack(errors).mean())
        return torch.stack([part.float() for part in parts]).sum()

    def _distance(self, said: Answer, wanted: Answer) -> Tensor:
        t = self.temperature if wanted.classes else 1.0
        ours, theirs = (Answer(one.values / t, one.classes) for one in (said, wanted))
        return t * t * distance(ours, theirs, self._unit or 1.0)

    def _taught(self, teacher: nn.Module, raw: Any, batch: Batch) -> Answer:
        """What the teacher says, brought to where the model computes."""
        own = as_batch(raw, teacher)
        said = answer(forward(teacher, own), own)
        device = next((x.device for x in (*batch.args, *batch.kwargs.values()) if isinstance(x, Tensor)), None)
        return Answer(said.values.to(device or said.values.device), said.classes)


def labelled(output: Any, batch: Batch) -> Tensor:
    """The loss by the batch's labels: the model's own, cross-entropy of class indices, or the mean square.

    Raises `DataError` for a batch without labels.
    """
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor) and own.dim() == 0:
        return own
    target = batch.target
    if target is None:
        raise DataError(
            "The batch holds no labels to learn from.",
            hint="Give (inputs, labels), or a mapping with labels; or give a teacher, whose answers are learned then.",
        )
    said = logits(output)
    if not target.is_floating_point() and target.shape == said.shape[:-1]:
        return F.cross_entropy(said.float().flatten(0, -2), target.flatten(), ignore_index=-100)
    if target.is_floating_point() and target.numel() == said.numel():
        return F.mse_loss(said.float(), target.float().view_as(said))
    raise DataError(
        f"It is not known how labels of shape {tuple(target.shape)} ({target.dtype}) judge an output of shape "
        f"{tuple(said.shape)}.",
        hint="Give loss=, a function of the model's output and the batch.",
    )


def _common_blocks(model: nn.Module, teacher: nn.Module, raw: Any, batch: Batch) -> tuple[str, ...]:
    """The blocks that write tensors of the same shapes in both models."""
    own = as_batch(raw, teacher)
    leaves = [name for name, module in teacher.named_modules() if module._parameters]
    known = dict(model.named_modules())
    names = [name for name in blocks_of(teacher, calls_of(teacher, own), leaves) if name in known]
    names = [name for name in names if next(known[name].children(), None) is not None] or names  # no head, no embedding
    shapes: list[dict[str, list[torch.Size]]] = []
    for one, given in ((model, batch), (teacher, own)):
        with written(one, names) as found:
            forward(one, given)
        shapes.append({name: [x.shape for x in outputs] for name, outputs in found.items()})
    same = tuple(name for name in names if shapes[0].get(name) and shapes[0].get(name) == shapes[1].get(name))
    if not same:
        raise PlanError(
            "No block of the model writes what the same block of the teacher does, in shape.",
            hint="Leave `hidden` out: the answers can be distilled without.",
        )
    return same


def _error(ours: list[Tensor], theirs: list[Tensor], batch: Batch) -> Tensor:
    parts = []
    for x, taught in zip(ours, theirs, strict=True):
        y = taught.to(x.device)
        real = rows(y, batch).float()
        variance = (real - real.mean(0)).square().mean().clamp_min(1e-12)
        parts.append(mean_error([x], [y], batch, [1.0]) / variance)
    return torch.stack(parts).mean()
