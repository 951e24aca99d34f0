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
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pruner.compensation.distance import Answer

SAFE, RISKY = 0.1, 0.3
"""Below the first a removal is safe, above the second it is to be avoided."""


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
        self._chances: dict[int, Tensor] = {}
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
        if number not in self._chances:
            self._chances[number] = self._dense[number].values.float().softmax(-1)
        distance = 0.5 * (self._chances[number] - found.values.float().softmax(-1)).abs().sum(-1)
        score: Tensor = scale_of_choice(distance)
        return score

    def movement(self, found: Sequence[Answer]) -> Movement:
        """Between the dense answers and those of a changed model to the same batches."""
        scores, kl, same, error, norm, rises = [], [], [], [], [], []
        for number, (one, dense) in enumerate(zip(found, self._dense, strict=True)):
            scores.append(self.scores(one, number))
            ours, theirs = one.values.float(), dense.values.float()
            error.append((ours - theirs).double().square().sum())
            norm.append(theirs.double().square().sum())
            if self.classes:
                p, q = F.log_softmax(theirs, -1), F.log_softmax(ours, -1)
                kl.append((p.exp() * (p - q)).sum(-1))
                same.append((theirs.argmax(-1) == ours.argmax(-1)).float())
                target = self._targets[number]
                if target is not None:
                    known = target >= 0
                    places = target.clamp(min=0).unsqueeze(-1)
                    rises.append((p - q).gather(-1, places).squeeze(-1)[known])
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


def scale_of_choice(distance: Any) -> Any:
    """The impact score for a total variation distance, a tensor or an array."""
    return distance * (2 - distance)


def _apart(dense: Tensor, found: Tensor, mean: Tensor) -> Tensor:
    """Between vectors, (places,)."""
    dense, found = dense.double(), found.double()
    apart = torch.linalg.vector_norm(dense - found, dim=-1)
    reach = torch.linalg.vector_norm(dense - mean, dim=-1) + torch.linalg.vector_norm(found - mean, dim=-1)
    return torch.where(reach > 0, apart / reach.clamp(min=1e-300), 0.0).float()
