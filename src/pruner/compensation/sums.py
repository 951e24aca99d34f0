"""Second moments as they are summed up: over batches, and under distributed training over ranks.

Batches are merged by Chan, Golub and LeVeque's formula (1983), in the precision that the model computes in. This module
is imported only where something is observed, as `tracker.sums` is, and for the same reason.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from pruner.compensation.moments import Moments

_STATES = ("count", "mean_x", "mean_y", "xx", "yx", "yy")


class MomentSums(Metric):
    """`Moments` as they are summed up: over batches, and under distributed training over ranks."""

    full_state_update = False
    count: Tensor
    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor
    yx: Tensor
    yy: Tensor

    def __init__(self, columns: int, targets: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        shapes = {"mean_x": (columns,), "mean_y": (targets,), "xx": (columns, columns), "yx": (targets, columns)}
        self.add_state("count", torch.zeros((), dtype=torch.float64, device=device), dist_reduce_fx=None)
        for name, shape in {**shapes, "yy": (targets,)}.items():
            self.add_state(name, torch.zeros(shape, dtype=dtype, device=device), dist_reduce_fx=None)
        self.to(device)

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add samples: x (samples, n) and y (samples, m)."""
        if not len(x):
            return
        x, y = x.to(self.xx.dtype), y.to(self.xx.dtype)
        mean_x, mean_y = x.mean(0), y.mean(0)
        x, y = x - mean_x, y - mean_y
        self._merge(len(x), mean_x, mean_y, x.T @ x, y.T @ x, y.square().sum(0))

    def merge(self, other: MomentSums) -> None:
        """Add what another one has seen."""
        self._computed = None  # an answer that torchmetrics keeps
        self._merge(other.count, other.mean_x, other.mean_y, other.xx, other.yx, other.yy)

    def compute(self) -> dict[str, Tensor]:
        """The sums of all samples of all ranks; call it on every rank. `moments` gives them meaning."""
        gathered = {name: getattr(self, name) for name in _STATES}
        if self.count.dim():  # one row a rank
            total = MomentSums(self.xx.shape[-1], self.yy.shape[-1], self.xx.device, self.xx.dtype)
            for rank in range(len(self.count)):
                total._merge(*(gathered[name][rank] for name in _STATES))
            gathered = {name: getattr(total, name) for name in _STATES}
        return gathered

    def moments(self) -> Moments:
        """What `compute` found, divided by the number of samples."""
        sums = self.compute()
        n, m = self.xx.shape[-1], self.yy.shape[-1]
        count = float(sums["count"])
        by = max(count, 1.0)
        return Moments(
            count,
            sums["mean_x"].reshape(n),
            sums["mean_y"].reshape(m),
            sums["xx"].reshape(n, n) / by,
            sums["yx"].reshape(m, n) / by,
            sums["yy"].reshape(m) / by,
        )

    def _merge(self, count: Any, mean_x: Tensor, mean_y: Tensor, xx: Tensor, yx: Tensor, yy: Tensor) -> None:
        before, added = self.count, torch.as_tensor(count, dtype=torch.float64, device=self.count.device)
        total = before + added
        share = (added / total.clamp(min=1)).to(self.xx.dtype)
        between = (before * added / total.clamp(min=1)).to(self.xx.dtype)
        dx, dy = mean_x - self.mean_x, mean_y - self.mean_y
        self.xx += xx
        self.xx.addr_(dx * between, dx)
        self.yx += yx
        self.yx.addr_(dy * between, dx)
        self.yy += yy + between * dy.square()
        self.mean_x = self.mean_x + share * dx
        self.mean_y = self.mean_y + share * dy
        self.count = total
