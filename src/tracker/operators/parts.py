"""Operators whose rule is what they consist of: other operators, which have rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tracker.operators.registry import operator_rule

if TYPE_CHECKING:
    from tracker.flow import Flow

Parts = Callable[..., Any]


def consists_of(*operators: Any) -> Callable[[Parts], Parts]:
    """Register a function that computes what an operator computes, out of operators that have rules.

    It gets the operator's own arguments, must not write into them, and must not compute with a size as a number.
    """

    def register(parts: Parts) -> Parts:
        @operator_rule(*operators)
        def rule(flow: Flow, out: Any, *args: Any, **kwargs: Any) -> None:
            made = flow.follow(lambda: parts(*args, **kwargs))
            pairs = zip(_tensors(out), _tensors(made), strict=True)
            for result, part in [(result, flow.blocks(part)) for result, part in pairs]:
                flow.put(result, part)

        return parts

    return register


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


@consists_of("pixel_shuffle")
def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """Channels (C, r, r) become pixels."""
    squares = x.unflatten(-3, (-1, factor, factor))
    turned = squares.movedim((-4, -3), (-3, -1))
    pixels: Tensor = turned.flatten(-4, -3).flatten(-2, -1)
    return pixels


@consists_of("pixel_unshuffle")
def pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """Pixels become channels (C, r, r)."""
    squares = x.unflatten(-1, (-1, factor)).unflatten(-3, (-1, factor))
    channels: Tensor = squares.movedim((-3, -1), (-4, -3)).flatten(-5, -3)
    return channels


@consists_of("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Channels (groups, n) become (n, groups)."""
    turned: Tensor = x.unflatten(1, (groups, -1)).transpose(1, 2)
    return turned.flatten(1, 2)


@consists_of("rot90")
def rot90(x: Tensor, k: int, dims: list[int]) -> Tensor:
    """Quarter turns are flips and a transposition."""
    match k % 4:
        case 0:
            return x.clone()
        case 1:
            return x.flip(dims[1]).transpose(dims[0], dims[1])
        case 2:
            return x.flip(dims)
        case _:
            return x.transpose(dims[0], dims[1]).flip(dims[1])


@consists_of("addbmm")
def addbmm(bias: Tensor, x: Tensor, y: Tensor, **scales: Any) -> Tensor:
    """A sum of matrix products, and a bias."""
    return bias + torch.bmm(x, y).sum(0)


@consists_of("addmv")
def addmv(bias: Tensor, x: Tensor, vector: Tensor, **scales: Any) -> Tensor:
    """A matrix times a vector, and a bias."""
    return bias + torch.mv(x, vector)


@consists_of("addr")
def addr(bias: Tensor, x: Tensor, y: Tensor, **scales: Any) -> Tensor:
    """All products of two vectors' entries, and a bias."""
    return bias + x[:, None] * y[None]


@consists_of("_addmm_activation")
def addmm_activation(bias: Tensor, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    """A matrix product, a bias and an activation."""
    return torch.addmm(bias, x, y).relu()


@consists_of("slice_scatter")
def slice_scatter(
    x: Tensor, source: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    """A copy, a slice of which is written."""
    out = x.clone()
    torch.ops.aten.slice(out, dim, start, end, step).copy_(source)
    return out


@consists_of("select_scatter")
def select_scatter(x: Tensor, source: Tensor, dim: int, index: int) -> Tensor:
    """A copy, a position of which is written."""
    out = x.clone()
    out.select(dim, index).copy_(source)
    return out


@consists_of("diagonal_scatter")
def diagonal_scatter(x: Tensor, source: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """A copy, a diagonal of which is written."""
    out = x.clone()
    out.diagonal(offset, dim1, dim2).copy_(source)
    return out


@consists_of("_thnn_fused_lstm_cell")
def lstm_cell(
    read: Tensor, kept: Tensor, cell: Tensor, read_bias: Tensor | None = None, kept_bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What one step of an LSTM does after its two products: four gates, each of every neuron."""
    gates = _biased(read, read_bias) + _biased(kept, kept_bias)
    enter, forget, new, leave = gates.chunk(4, 1)
    cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * cell.tanh(), cell, gates


@consists_of("_thnn_fused_gru_cell")
def gru_cell(
    read: Tensor, kept: Tensor, hidden: Tensor, read_bias: Tensor | None = None, kept_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What one step of a GRU does after its two products: three gates, each of every neuron."""
    read, kept = _biased(read, read_bias), _biased(kept, kept_bias)
    (reset, update, new), (reset_kept, update_kept, new_kept) = read.chunk(3, 1), kept.chunk(3, 1)
    reset, update = (reset + reset_kept).sigmoid(), (update + update_kept).sigmoid()
    new = (new + reset * new_kept).tanh()
    return new + update * (hidden - new), torch.cat([reset, update, new, hidden, new_kept], 1)


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias
