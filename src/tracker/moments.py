"""What one tensor says about each of its channels, and how two such answers become one.

A *block* is a float64 tensor of shape (7, n): one column a neuron, one row a statistic. Blocks of different data merge
exactly (Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances",
eq. 2.1), so streams, batches and ranks all add up the same way.

Shapes: N rows (batch, or tokens), C channels, I values of one channel in one row (pixels), k positions of one neuron.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum

import torch
from torch import Tensor

# Where activations go below zero, one fires when it exceeds this share of the mean magnitude around it.
FIRING_SHARE = 0.01

# Values that are worked on together: few enough to stay in a processor's cache over the seven passes, enough to be
# worth the calls. Measured on two cores with 1 MB of second-level cache each; accelerators take larger bites.
_BLOCK_VALUES = {"cpu": 2**19}
_BLOCK_VALUES_ELSEWHERE = 2**24
# From this many values per channel and row on, summing along them first is the faster order.
_LONG_CHANNEL = 128
_FEW_ROWS = 16
# Rows that lie a power of two apart fall into the same cache lines; this many values more and they do not.
_PADDING = 16


class Row(IntEnum):
    """What each row of a block holds."""

    COUNT = 0
    MEAN = 1
    M2 = 2  # sum of squared deviations from the mean
    LOW = 3
    HIGH = 4
    MAGNITUDE = 5  # sum of magnitudes
    FIRED = 6  # number of values that fired


class Scratch:
    """Memory that `measure` writes to and uses again: fresh memory costs more than the arithmetic."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, purpose: str, rows: int, channels: int, inner: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Uninitialised memory of shape (rows, channels, inner), valid until the same purpose asks again."""
        stride = channels * inner + _PADDING
        key = (purpose, dtype, like.device)
        held = self._held.get(key)
        if held is None or held.numel() < rows * stride:
            held = self._held[key] = torch.empty(rows * stride, dtype=dtype, device=like.device)
        return held.as_strided((rows, channels, inner), (stride, inner, 1))


def empty(size: int) -> Tensor:
    """The block of no data: merging it with another gives the other."""
    block = torch.zeros(len(Row), size, dtype=torch.float64)
    block[Row.LOW] = math.inf
    block[Row.HIGH] = -math.inf
    return block


def merge(one: Tensor, other: Tensor) -> Tensor:
    """The block of the data of both, shape (7, n)."""
    added = one + other  # right for the counts and sums; the other rows are set below
    share = other[Row.COUNT] / added[Row.COUNT].clamp(min=1)
    step = other[Row.MEAN] - one[Row.MEAN]
    added[Row.MEAN] = one[Row.MEAN] + step * share
    added[Row.M2] += step.square() * one[Row.COUNT] * share
    torch.minimum(one[Row.LOW], other[Row.LOW], out=added[Row.LOW])
    torch.maximum(one[Row.HIGH], other[Row.HIGH], out=added[Row.HIGH])
    return added


def merge_stacked(blocks: Tensor) -> Tensor:
    """The block of the data of all, from a stack of shape (ranks, 7, n): the reduction over ranks."""
    merged = blocks[0]
    for block in blocks[1:]:
        merged = merge(merged, block)
    return merged


def pool(block: Tensor, positions: Tensor) -> Tensor:
    """A block over neurons, from a block over channels: `positions` (size, k) are the channels of each neuron."""
    size, k = positions.shape
    gathered = block.index_select(1, positions.flatten())
    if k == 1:
        return gathered
    gathered = gathered.view(len(Row), size, k)
    pooled = gathered.sum(2)
    pooled[Row.MEAN] /= k  # all channels of one tensor have the same count
    deviation = gathered[Row.MEAN] - pooled[Row.MEAN].unsqueeze(1)
    pooled[Row.M2] += (gathered[Row.COUNT] * deviation.square()).sum(1)
    pooled[Row.LOW] = gathered[Row.LOW].amin(1)
    pooled[Row.HIGH] = gathered[Row.HIGH].amax(1)
    return pooled


def as_channels(x: Tensor, axis: int, rows: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """`x` as (N, C, I) with C its `axis`, copying only where strides demand it, and `rows` as indices into N.

    `rows` picks tokens: indices into the first two dimensions of `x`, flattened.
    """
    axis %= x.ndim
    if axis == 0:
        x, axis = x.unsqueeze(0), 1
    if axis < x.ndim - 1 and not x.is_contiguous():
        last = x.movedim(axis, -1)
        if last.is_contiguous():  # the channels-last memory format
            x, axis = last, x.ndim - 1
    inner = math.prod(x.shape[axis + 1 :])
    between = math.prod(x.shape[2:axis]) if axis > 2 else 1
    if rows is not None and between > 1:
        rows = (rows.unsqueeze(1) * between + torch.arange(between, device=rows.device)).flatten()
    return x.reshape(-1, x.shape[axis], inner), rows


def measure(x: Tensor, axis: int, rows: Tensor | None, scratch: Scratch) -> Tensor:
    """The block over the channels along `axis` of `x`, shape (7, C).

    A value fires when it is not zero; where the activation goes below zero, when its magnitude exceeds `FIRING_SHARE`
    of the mean magnitude of the values it is measured with (so that the tail of a GELU, which is never quite zero, is
    off, and a gated unit that is always negative is on).

    float32 within a piece of the data that fits in cache, around a value close to the mean; float64 from there on. Half
    precision is widened first. No step waits for an accelerator.
    """
    data, rows = as_channels(x.detach(), axis, rows)
    _, channels, inner = data.shape
    count = data.shape[0] if rows is None else rows.numel()
    if count * inner == 0:
        return empty(channels).to(x.device)
    on_cpu = x.device.type == "cpu"
    dtype = torch.float64 if data.dtype == torch.float64 else torch.float32
    columns = channels * inner
    step = min(count, max(1, _BLOCK_VALUES.get(x.device.type, _BLOCK_VALUES_ELSEWHERE) // max(columns, 1)))
    inner_first = inner >= _LONG_CHANNEL or (inner > 1 and step < _FEW_ROWS)
    first, second = (2, 1) if inner_first else (0, 2)  # `second` counts in stacks of what `first` leaves
    room = scratch.take("values", step, channels, inner, data, dtype)

    few = max(1, 64 // inner)
    shift = (data[:few] if rows is None else data.index_select(0, rows[:few])).to(dtype).mean((0, 2)).unsqueeze(1)
    sums: list[Tensor] = []
    lows: list[Tensor] = []
    highs: list[Tensor] = []
    for start in range(0, count, step):
        piece = _piece(data, rows, start, min(start + step, count), dtype, scratch)
        values = room[: piece.shape[0]]
        total, low, high = piece.sum(first), piece.amin(first), piece.amax(first)
        # (x - shift)², in one pass and without a third array.
        torch.ops.aten.mse_loss.out(piece, shift.expand_as(piece), 0, out=values)
        squares = values.sum(first)
        # On the CPU a look at the data costs nothing, and saves the work where magnitude and value are the same.
        if on_cpu and low.min().item() >= 0:
            magnitude = total
            torch.gt(piece, 0, out=values)
        else:
            torch.abs(piece, out=values)
            magnitude = values.sum(first)
            threshold = magnitude.mean() * (FIRING_SHARE * magnitude.numel() / piece.numel())
            torch.gt(values, torch.where(low.min() < 0, threshold, 0.0), out=values)
        sums.append(torch.stack((total, squares, magnitude, values.sum(first))).sum(second, dtype=torch.float64))
        lows.append(low.amin(second - 1))
        highs.append(high.amax(second - 1))

    total, squares, magnitude, fired = _fold(sums, torch.sum).unbind()
    number = count * inner
    mean = total / number
    offset = mean - shift.squeeze(1)
    m2 = torch.addcmul(squares, offset, offset, value=-number).clamp_(min=0)
    low, high = _fold(lows, torch.amin).double(), _fold(highs, torch.amax).double()
    return torch.stack((torch.full_like(mean, number), mean, m2, low, high, magnitude, fired))


def _fold(parts: list[Tensor], how: Callable[..., Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else how(torch.stack(parts), 0)


def _piece(data: Tensor, rows: Tensor | None, start: int, stop: int, dtype: torch.dtype, scratch: Scratch) -> Tensor:
    """Rows `start` to `stop` of those asked for, in the working precision."""
    if rows is None:
        return data[start:stop].to(dtype)
    picked = scratch.take("rows", stop - start, data.shape[1], data.shape[2], data, data.dtype)
    torch.index_select(data, 0, rows[start:stop], out=picked)
    return picked.to(dtype)
