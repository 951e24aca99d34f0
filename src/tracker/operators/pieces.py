"""Operators that take a tensor apart or put it together along an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from tracker.calls import tie_pieces
from tracker.code_sites import Place
from tracker.labels import Block
from tracker.operators.pointwise import merge
from tracker.operators.registry import operator_rule
from tracker.operators.views import relabel
from tracker.sizes import Tracked
from tracker.subscripts import Bounds

if TYPE_CHECKING:
    from tracker.flow import Flow


def take(flow: Flow, out: Tensor, x: Tensor, axis: int, part: slice | list[int]) -> None:
    """The labels of a part of one axis: a slice, or some positions."""
    blocks = []
    for axes, grid in flow.blocks(x):
        if axis not in axes:
            blocks.append(Block(axes, grid))
            continue
        at = axes.index(axis)
        piece = flow.space.grid(grid.cells[(slice(None),) * at + (part,)])
        piece.margins.update({i: margin for i, margin in grid.margins.items() if i != at})
        if at in grid.margins:
            piece.margins[at] = grid.margins[at][part]
        if not piece.joint:
            piece.margins.clear()
        blocks.append(Block(axes, piece))
    flow.put(out, blocks)


@operator_rule("slice")
def slice_(
    flow: Flow, out: Tensor, x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> None:
    """A slice. Its bounds must follow what is removed before them, or nothing before them is removed."""
    axis = dim % x.dim()
    size = x.shape[axis]
    first, last, _ = slice(start, end, step).indices(size)
    found = flow.axis_of(x, axis)
    if (first, last, step) != (0, size, 1):
        named = flow.call.bounds(first, last, size) or Bounds(first, last)
        if found is not None:
            _cut(flow, x, axis, found, named, (first, last, step))
    take(flow, out, x, axis, slice(first, last, step))


def _cut(flow: Flow, x: Tensor, axis: int, found: tuple[Any, int], named: Bounds, cut: tuple[int, int, int]) -> None:
    """A slice that leaves out part of a labelled axis."""
    first, last, step = cut
    size, labels = x.shape[axis], flow.space.margin(*found)
    if size % step == 0 and first < step != 1 and last == size:  # one of every few, which go together
        few = labels.reshape(-1, step)
        flow.space.tie(few[:, :1], few)
        return
    item = named.item
    if 0 < first < size:
        _bound(flow, found, labels, named.start, first, None if item is None else Place("lower", item))
    if 0 < last < size:
        _bound(flow, found, labels, named.stop, last, None if item is None else Place("upper", item))
    if step != 1:
        flow.fix(x, axis, "is sliced with a step")


def _bound(flow: Flow, found: tuple[Any, int], labels: Any, bound: Any, at: int, place: Place | None) -> None:
    """What a bound inside of a labelled axis means for the labels between it and the end that it is counted from."""
    from_the_end = int(bound) < 0
    beyond = labels[at:] if from_the_end else labels[:at]
    if not isinstance(bound, Tracked):
        flow.space.freeze(beyond, flow.located(f"is sliced at the constant position {int(bound)}"))
        return
    if flow.own_size(bound.expression, *found) and len(labels) % at == 0:
        parts = labels.reshape(-1, at)
        flow.space.tie(parts[:1], parts)
    flow.explain_count((-bound if from_the_end else bound).expression, beyond, None if from_the_end else place)


@operator_rule("select")
def select(flow: Flow, out: Tensor, x: Tensor, dim: int, index: int) -> None:
    """One position of an axis: the axis must keep its size."""
    axis = dim % x.dim()
    flow.fix(x, axis, "is indexed by position")
    relabel(flow, out, x, lambda a: a - (a > axis))


@operator_rule("unbind")
def unbind(flow: Flow, out: Sequence[Tensor], x: Tensor, dim: int = 0) -> None:
    """Every position of an axis: the axis must keep its size."""
    for index, piece in enumerate(out):
        select(flow, piece, x, dim, index)


@operator_rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk")
def split(flow: Flow, out: Sequence[Tensor], x: Tensor, sizes: Any, dim: int = 0) -> None:
    """Pieces of an axis. What the code said of their sizes is read where it said it."""
    axis, start = dim % x.dim(), 0
    for piece in out:
        take(flow, piece, x, axis, slice(start, start + piece.shape[axis]))
        start += piece.shape[axis]
    if not flow.call.names_pieces and len(out) > 1:
        tie_pieces(flow, out, axis)


@operator_rule("cat", "concatenate")
def cat(flow: Flow, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> None:
    """Labels side by side along the axis, and tied along all others."""
    parts = [tensor for tensor in tensors if tensor.numel()]
    axis = dim % out.dim()
    _fix_bare_axes(flow, parts, axis)
    _fix_split_grids(flow, parts, axis)
    along = {a for part in parts for axes, _ in flow.blocks(part) if axis in axes for a in axes}
    if not along:
        flow.put(out, merge(flow, [block for part in parts for block in flow.blocks(part)]))
        return
    axes = tuple(sorted(along))
    cells = np.concatenate([_over(flow, part, axes, axis) for part in parts], axes.index(axis))
    others = [block for part in parts for block in flow.blocks(part) if not set(block.axes) & along]
    flow.put(out, [Block(axes, flow.space.grid(np.ascontiguousarray(cells))), *merge(flow, others)])


def _fix_bare_axes(flow: Flow, parts: Sequence[Tensor], along: int) -> None:
    """An axis that one part has no labels for is fixed in all others."""
    for axis in range(parts[0].dim()):
        if axis != along and any(flow.axis_of(part, axis) is None for part in parts):
            for part in parts:
                flow.fix(part, axis, "is concatenated with a tensor without neurons")


def _fix_split_grids(flow: Flow, parts: Sequence[Tensor], along: int) -> None:
    """Part of a head's width cannot go alone: beside a part without labels a joint grid keeps its other axes only."""
    found = [flow.axis_of(part, along) for part in parts]
    if any(f is None for f in found) and any(f is not None and f[0].joint for f in found):
        for part in parts:
            flow.fix(part, along, "is concatenated beside a part that stays")


def _over(flow: Flow, part: Tensor, axes: tuple[int, ...], along: int) -> Any:
    """The part's labels over `axes`; a part without labels along the axis brings frozen ones."""
    shape = [part.shape[axis] for axis in axes]
    inside = [block for block in flow.blocks(part) if set(block.axes) & set(axes)]
    block = next((block for block in inside if along in block.axes), None)
    if block is None:
        fresh = flow.space.fresh(part.shape[along])
        flow.space.freeze(fresh, flow.located("is concatenated beside neurons"))
        block = Block((along,), flow.space.grid(fresh))
    for other in inside:
        if other is not block:
            for i, axis in enumerate(other.axes):
                flow.space.freeze(flow.space.margin(other.grid, i), flow.located(f"is concatenated across axis {axis}"))
    order = sorted(range(len(block.axes)), key=lambda i: block.axes[i])
    cells = block.grid.cells.transpose(order)
    sizes = dict(zip(sorted(block.axes), cells.shape, strict=True))
    return np.broadcast_to(cells.reshape([sizes.get(axis, 1) for axis in axes]), shape)


@operator_rule("stack")
def stack(flow: Flow, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> None:
    """A concatenation along a new axis, which keeps its size."""
    axis = dim % out.dim()
    for a in range(tensors[0].dim()):
        if any(flow.axis_of(tensor, a) is None for tensor in tensors):
            for tensor in tensors:
                flow.fix(tensor, a, "is stacked with a tensor without neurons")
    layouts = {tuple(sorted(block.axes for block in flow.blocks(tensor))) for tensor in tensors}
    if len(layouts) > 1:
        for tensor in tensors:
            flow.freeze(tensor, "is stacked with a tensor that is laid out otherwise")
        return
    blocks = []
    for axes, _ in flow.blocks(tensors[0]):
        cells = [next(b.grid.cells for b in flow.blocks(tensor) if b.axes == axes) for tensor in tensors]
        moved = tuple(a + (a >= axis) for a in axes)
        stacked = Block((axis, *moved), flow.space.grid(np.stack(cells)))
        blocks.append(stacked)
    if len(blocks) > 1:  # the new axis would lie in several blocks: position by position instead
        blocks = [Block(b.axes[1:], flow.space.grid(flow.space.tie_along(b.grid.cells, 0))) for b in blocks]
    flow.put(out, blocks)
