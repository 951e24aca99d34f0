"""Second moments of what a consumer reads, and its cross-moments with what the dense model wrote there.

Both merge by Chan, Golub and LeVeque's formula (1983); what is solved from them is solved in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Of x (n columns read) and y (m columns wanted): how many samples, means, and centred second moments.

    `xx` has shape (n, n), `yx` (m, n), `yy` (m,): all divided by the number of samples.
    """

    count: float
    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor
    yx: Tensor
    yy: Tensor

    @property
    def energy(self) -> float:
        """The variance of y, summed over its columns."""
        return float(self.yy.sum())

    def about_zero(self) -> Moments:
        """The same about zero instead of the means: for a consumer without a bias, which cannot follow a mean."""
        return Moments(
            self.count,
            torch.zeros_like(self.mean_x),
            torch.zeros_like(self.mean_y),
            self.xx + torch.outer(self.mean_x, self.mean_x),
            self.yx + torch.outer(self.mean_y, self.mean_x),
            self.yy + self.mean_y.square(),
        )

    def double(self) -> Moments:
        """In double precision."""
        return Moments(self.count, *(x.double() for x in (self.mean_x, self.mean_y, self.xx, self.yx, self.yy)))


def pooled(one: Moments, other: Moments) -> Moments:
    """The moments of the samples of both."""
    total = one.count + other.count
    if not other.count:
        return one
    share, rest = other.count / total, one.count / total
    dx, dy = other.mean_x - one.mean_x, other.mean_y - one.mean_y
    return Moments(
        total,
        one.mean_x + share * dx,
        one.mean_y + share * dy,
        rest * one.xx + share * other.xx + share * rest * torch.outer(dx, dx),
        rest * one.yx + share * other.yx + share * rest * torch.outer(dy, dx),
        rest * one.yy + share * other.yy + share * rest * dy.square(),
    )
