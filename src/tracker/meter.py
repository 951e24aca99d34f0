"""The statistics of all channels of the tensors that one consumer reads, in as few passes and calls as possible.

Shapes: N rows (batch, or tokens), C channels, I values of one channel in one row (pixels). Sums run over rows first,
which leaves (C, I), where channels are short; over a channel's own values first, which leaves (N, C), where they are
long.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tracker.moments import Row, merge

# Where activations go below zero, one fires when it exceeds this share of the mean magnitude around it.
FIRING_SHARE = 0.1

# Values that are worked on together: few enough to stay in a processor's cache over the seven passes, enough to be
# worth the calls. Accelerators take larger bites.
_PIECE_ON_CPU = 2**19
_PIECE_ELSEWHERE = 2**24
# From this many values per channel and row on, or this few rows in a piece, summing along the channel first is faster.
_LONG_CHANNEL = 128
_FEW_ROWS = 16
# Rows that lie a power of two apart fall into the same cache lines; with this many values in between they do not.
_PADDING = 16
# Values of which the mean makes a good point to measure deviations from.
_FIRST_GUESS = 64


class Scratch:
    """Memory that meters write to and use again, one after the other: fresh memory costs more than the arithmetic."""

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


class Meter:
    """Sums over the channels along one axis of every tensor added.

    A value fires when it is not zero; where the activation goes below zero, when its magnitude exceeds `FIRING_SHARE`
    of the mean magnitude of the values it is measured with (so that the tail of a GELU, which is never quite zero, is
    off, and a gated unit that is always negative is on).

    Squares are summed around a value close to the mean, in float32 within a piece of the data that fits in cache, in
    float64 from there on. Half precision is widened first. No step waits for an accelerator.
    """

    def __init__(self, axis: int, scratch: Scratch) -> None:
        self.channels: int | None = None
        self._axis = axis
        self._scratch = scratch
        self._kind: tuple[int, int, torch.dtype, torch.device] | None = None
        self._folded: Tensor | None = None
        self.bad = False  # NaN or -Inf was noticed, which happens on the CPU only

    def add(self, x: Tensor, rows: Tensor | None = None) -> None:
        """Add a tensor, or only some of its `rows`: indices into its first two dimensions, flattened.

        All tensors added must have the same number of channels.
        """
        data, rows = as_channels(x, self._axis, rows)
        _, channels, inner = data.shape
        count = data.shape[0] if rows is None else rows.numel()
        if count * inner == 0:
            return
        dtype = torch.float64 if data.dtype == torch.float64 else torch.float32
        kind = (channels, inner, dtype, data.device)
        if kind != self._kind:
            self._fold()
            self._start(kind, data, rows)
        for start in range(0, count, self._step):
            stop = min(start + self._step, count)
            if rows is None:
                piece = data[start:stop] if stop - start < count else data
            else:
                piece = self._scratch.take("rows", stop - start, channels, inner, data, data.dtype)
                torch.index_select(data, 0, rows[start:stop], out=piece)
            self._add(piece.to(dtype))
        self._count += count * inner

    def block(self) -> Tensor | None:
        """The block (7, C) of everything added, see `tracker.moments`; the meter starts again from nothing."""
        self._fold()
        block, self._folded, self.bad = self._folded, None, False
        return block

    def _start(self, kind: tuple[int, int, torch.dtype, torch.device], data: Tensor, rows: Tensor | None) -> None:
        channels, inner, dtype, device = self._kind = kind
        self.channels = channels
        piece = _PIECE_ON_CPU if device.type == "cpu" else _PIECE_ELSEWHERE
        self._step = max(1, piece // (channels * inner))
        self._inner_first = inner >= _LONG_CHANNEL or (inner > 1 and self._step < _FEW_ROWS)
        few = max(1, _FIRST_GUESS // inner)
        first = data[:few] if rows is None else data.index_select(0, rows[:few])
        self._shift = first.to(dtype).mean((0, 2)).unsqueeze(1)  # (C, 1)
        shape = (channels,) if self._inner_first else (channels, inner)
        self._count = 0
        # sums of: values, squared deviations from the shift, magnitudes, firing values
        self._sums = torch.zeros(4, *shape, dtype=torch.float64, device=device)
        self._low = torch.full(shape, math.inf, dtype=dtype, device=device)
        self._high = torch.full(shape, -math.inf, dtype=dtype, device=device)

    def _add(self, piece: Tensor) -> None:
        rows, channels, inner = piece.shape
        values = self._scratch.take("values", rows, channels, inner, piece, piece.dtype)
        over = 2 if self._inner_first else 0
        total, low, high = piece.sum(over), piece.amin(over), piece.amax(over)
        # (x - shift)², in one pass and without a third array.
        torch.ops.aten.mse_loss.out(piece, self._shift, 0, out=values)
        squares = values.sum(over)
        # On the CPU a look at the data costs nothing, and saves the work where magnitude and value are the same.
        lowest = low.min().item() if piece.device.type == "cpu" else -1.0
        self.bad = self.bad or not math.isfinite(lowest)
        if lowest >= 0:
            magnitude = total
            torch.gt(piece, 0, out=values)
        else:
            torch.abs(piece, out=values)
            magnitude = values.sum(over)
            threshold = magnitude.sum() * (FIRING_SHARE / piece.numel())
            torch.gt(values, torch.where(low.min() < 0, threshold, 0.0), out=values)
        sums = torch.stack((total, squares, magnitude, values.sum(over)))
        if self._inner_first:
            sums, low, high = sums.sum(1, dtype=torch.float64), low.amin(0), high.amax(0)
        self._sums += sums
        torch.minimum(self._low, low, out=self._low)
        torch.maximum(self._high, high, out=self._high)

    def _fold(self) -> None:
        """Put what was summed since the start into the block."""
        if self._kind is None:
            return
        sums, low, high = self._sums, self._low.double(), self._high.double()
        if not self._inner_first:
            sums, low, high = sums.sum(2), low.amin(1), high.amax(1)
        total, squares, magnitude, fired = sums
        mean = total / self._count
        offset = mean - self._shift.squeeze(1)
        block = torch.empty(len(Row), len(mean), dtype=torch.float64, device=mean.device)
        block[Row.COUNT] = self._count
        block[Row.MEAN] = mean
        block[Row.M2] = (squares - self._count * offset.square()).clamp(min=0)
        block[Row.LOW] = low
        block[Row.HIGH] = high
        block[Row.MAGNITUDE] = magnitude
        block[Row.FIRED] = fired
        self._folded = block if self._folded is None else merge(self._folded.to(block.device), block)
        self._kind = None


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
