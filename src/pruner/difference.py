"""What a removal changed that no proof covers, measured on data.

A layer that is not exact has no masked model to be equal to: its neurons are normalised together, say. What can be told
is how far the answers are from those before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tracker.batches import Batch

Answers = Mapping[str, Tensor]
"""Every floating-point output of one batch, by name; see `pruner.equivalence.answers`."""


@dataclass(frozen=True)
class Difference:
    """Between the answers of two models to the same batches.

    `relative_error` is ‖after − before‖ / ‖before‖ over everything the main output says. `top1_agreement` is the share
    of places in which its largest class stays the same, None where it holds no classes: they are the last dimension of
    what is called logits, of a matrix, and of an output that the targets fit.
    """

    relative_error: float
    top1_agreement: float | None

    def to_json(self) -> dict[str, Any]:
        """The difference as JSON-ready data."""
        return {"relative_error": self.relative_error, "top1_agreement": self.top1_agreement}


@dataclass(frozen=True)
class Measured:
    """What the removal changed, where `layers`, which are not exact, lost neurons; the value says why they are not.

    `total` is the difference of the pruned from the dense model. `exact_alone` is what zeroing the neurons of the exact
    layers, whose removal is proven, changes by itself; None where none are removed. The accuracies are shares of right
    answers, None where the batches hold no classes to be right about.
    """

    layers: Mapping[str, str]
    batches: int
    total: Difference
    exact_alone: Difference | None
    accuracy_before: float | None
    accuracy_after: float | None

    def to_json(self) -> dict[str, Any]:
        """What was measured as JSON-ready data."""
        return {
            "layers": dict(self.layers),
            "batches": self.batches,
            **self.total.to_json(),
            "exact_alone": None if self.exact_alone is None else self.exact_alone.to_json(),
            "accuracy_before": self.accuracy_before,
            "accuracy_after": self.accuracy_after,
        }


def between(before: Sequence[Answers], after: Sequence[Answers], batches: Sequence[Batch]) -> Difference:
    """How far the answers of one model are from those of another to the same batches; shapes must be the same."""
    error = scale = 0.0
    same = places = 0
    for one, other, batch in zip(before, after, batches, strict=True):
        name = _main(one)
        then, now = one[name], other[name]
        wide = torch.promote_types(then.dtype, torch.float64)
        error += torch.linalg.vector_norm(now.to(wide) - then.to(wide)).item() ** 2
        scale += torch.linalg.vector_norm(then.to(wide)).item() ** 2
        if _holds_classes(name, then, batch):
            same += int((then.argmax(-1) == now.argmax(-1)).sum())
            places += then[..., 0].numel()
    return Difference(math.sqrt(error / scale) if scale else float(error > 0), same / places if places else None)


def accuracy(answers: Sequence[Answers], batches: Sequence[Batch]) -> float | None:
    """Share of right answers, from 0 to 1; None where the batches have no class indices. Negative targets are none."""
    right = seen = 0
    for one, batch in zip(answers, batches, strict=True):
        output = one[_main(one)]
        if batch.target is None or not _fits(output, batch.target):
            return None
        counted = batch.target >= 0
        right += int(((output.argmax(-1) == batch.target) & counted).sum())
        seen += int(counted.sum())
    return right / seen if seen else None


def _main(answers: Answers) -> str:
    """The output that a model is about."""
    return next((name for name in answers if "logits" in name), next(iter(answers)))


def _holds_classes(name: str, output: Tensor, batch: Batch) -> bool:
    if output.is_complex() or output.dim() == 0 or output.shape[-1] < 2:
        return False
    return "logits" in name or output.dim() == 2 or (batch.target is not None and _fits(output, batch.target))


def _fits(output: Tensor, target: Tensor) -> bool:
    return not target.is_floating_point() and output.dim() > 0 and output.shape[:-1] == target.shape
