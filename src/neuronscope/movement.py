"""How far a model's answers move when something in it is changed, on one scale from 0 to 1.

The impact score of a choice among classes (the next token, a label) is 1 − (1 − d)², on the average over all places: d
is the total variation distance between the two distributions, ½ Σ |p − q|, so with a chance of 1 − d the changed model
draws the very token that the dense one draws, and with a chance of 1 − score two in a row. It is bounded, and no single
number can dominate it. For vectors it is ‖y − y′‖ / (‖y − ȳ‖ + ‖y′ − ȳ‖), ȳ the mean of the dense answers, which the
triangle inequality bounds by 1.

Calibrated on the two trained language models that come with the package (`benchmarks/calibration.py`): below 0.1 the
loss of held-out text rises by less than 1 %, above 0.3 by more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pruner.compensation.distance import Answer

SAFE, RISKY = 0.1, 0.3
"""Below the first a removal is safe, above the second it is to be avoided."""


def verdict(score: float) -> str:
    """What people are told of an impact score: "safe", "caution" or "avoid"."""
    return "safe" if score < SAFE else "caution" if score <= RISKY else "avoid"


@dataclass(frozen=True)
class Movement:
    """Over `places` answers: the `score`; the mean divergence `kl` of the choices in nats, KL(before ‖ after), and the
    share of first choices that stay (`top1_agreement`), None for vectors; `relative_l2`, ‖after − before‖ / ‖before‖
    over all numbers; and by how much the loss rises (`loss_change`), in nats a token, where the next token is known.
    """

    score: float
    kl: float | None
    top1_agreement: float | None
    relative_l2: float
    loss_change: float | None
    places: int


class Scale:
    """What the dense model said, to hold other answers against.

    Args:
        dense: its answers, one a batch, padding left out.
        targets: the right answers among classes, where they are known, (places,) each; negative ones do not count.
    """

    def __init__(self, dense: Sequence[Answer], targets: Sequence[Tensor | None]) -> None:
        self._dense = dense
        self._targets = targets
        self._known: dict[int, _Dense] = {}
        self.classes = dense[0].classes and dense[0].values.shape[-1] > 1
        count = sum(len(one.values) for one in dense)
        self._mean = torch.stack([one.values.double().sum(0) for one in dense]).sum(0) / count

    def places(self, number: int) -> int:
        """How many answers a batch has."""
        return len(self._dense[number].values)

    def scores(self, found: Answer, number: int) -> Tensor:
        """The impact score of every place in a batch's answers, (places,)."""
        if not self.classes:
            return _apart(self._dense[number].values, found.values, self._mean)
        score: Tensor = scale_of_choice(_distance(self._of(number).p, found.values.float().softmax(-1)))
        return score

    def _of(self, number: int) -> _Dense:
        if number not in self._known:
            values = self._dense[number].values.float()
            logarithms = values.log_softmax(-1)
            self._known[number] = _Dense(logarithms.exp(), logarithms, values.argmax(-1))
        return self._known[number]

    def movement(self, found: Sequence[Answer]) -> Movement:
        """Between the dense answers and those of a changed model to the same batches."""
        scores, kl, same, error, norm, rises = [], [], [], [], [], []
        for number, (one, dense) in enumerate(zip(found, self._dense, strict=True)):
            ours, theirs = one.values.float(), dense.values.float()
            error.append(torch.linalg.vector_norm(ours - theirs).double().square())
            norm.append(torch.linalg.vector_norm(theirs).double().square())
            if not self.classes:
                scores.append(self.scores(one, number))
                continue
            before, after = self._of(number), ours.log_softmax(-1)
            change = before.log_p - after
            scores.append(scale_of_choice(_distance(before.p, after.exp())))
            kl.append((before.p * change).sum(-1))
            same.append((before.first == ours.argmax(-1)).float())
            target = self._targets[number]
            if target is not None:
                known = target >= 0
                rises.append(change.gather(-1, target.clamp(min=0).unsqueeze(-1)).squeeze(-1)[known])
        score, total = torch.cat(scores), float(torch.stack(norm).sum())
        moved = float(torch.stack(error).sum())
        return Movement(
            score=float(score.mean()),
            kl=float(torch.cat(kl).mean()) if kl else None,
            top1_agreement=float(torch.cat(same).mean()) if same else None,
            relative_l2=(moved / total) ** 0.5 if total else float(moved > 0),
            loss_change=float(torch.cat(rises).mean()) if rises and sum(map(len, rises)) else None,
            places=len(score),
        )


class _Dense(NamedTuple):
    """The dense model's choice at every place of a batch: its chances, their logarithms, the first of them."""

    p: Tensor
    log_p: Tensor
    first: Tensor


def _distance(p: Tensor, q: Tensor) -> Tensor:
    """Total variation of two choices, by place."""
    return 0.5 * (p - q).abs().sum(-1)


def scale_of_choice(distance: Any) -> Any:
    """The impact score for a total variation distance, a tensor or an array."""
    return distance * (2 - distance)


def _apart(dense: Tensor, found: Tensor, mean: Tensor) -> Tensor:
    """Between vectors, (places,)."""
    dense, found = dense.double(), found.double()
    apart = torch.linalg.vector_norm(dense - found, dim=-1)
    reach = torch.linalg.vector_norm(dense - mean, dim=-1) + torch.linalg.vector_norm(found - mean, dim=-1)
    return torch.where(reach > 0, apart / reach.clamp(min=1e-300), 0.0).float()
