"""Functions of PyTorch that fill a tensor of a size of their own, in operators whose labels tell where it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def _pad(x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Padding; around a circle it is a concatenation."""
    if mode != "circular" or min(pad) < 0:
        return functional.pad(x, pad, mode, value)
    for back, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True), 1):
        size = x.shape[-back]
        ends = (x.narrow(-back, size - before, before), x, x.narrow(-back, 0, after)) if before or after else (x,)
        x = torch.cat(ends, -back)
    return x


def _pad_packed_sequence(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding: float, length: int
) -> tuple[Tensor, Tensor]:
    """Sequences of a batch, packed step by step, side by side again."""
    steps = data.split(batch_sizes.tolist())
    rows = steps[0].shape[0]
    beside = (0, 0) * (data.dim() - 1)
    filled = [functional.pad(step, (*beside, 0, rows - step.shape[0]), value=padding) for step in steps]
    filled += [torch.full_like(filled[0], padding) for _ in range(length - len(steps))]
    lengths = (batch_sizes[:, None] > torch.arange(rows)).sum(0)
    return torch.stack(filled, 0 if not batch_first else 1), lengths


REPHRASED: Mapping[Callable[..., Any], Callable[..., Any]] = {
    functional.pad: _pad,
    torch._VF._pad_packed_sequence: _pad_packed_sequence,
}
