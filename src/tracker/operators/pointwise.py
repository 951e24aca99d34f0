"""Pointwise operators: equal-sized axes go together under broadcasting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tracker.labels import Block
from tracker.operators.registry import operator_rule

if TYPE_CHECKING:
    from tracker.flow import Flow

_ALSO_POINTWISE = (
    "clone _to_copy detach alias lift_fresh lift_fresh_copy contiguous native_dropout copy dropout fill zero "
    "hardswish log_sigmoid log_sigmoid_forward floor_divide complex polar real imag conj "
    "_conj _neg_view conj_physical resolve_conj resolve_neg angle pin_memory lift masked_fill "
    "empty_like zeros_like ones_like full_like prelu _prelu_kernel rrelu_with_noise copy_ fill_ zero_"
).split()

_RANDOM = (
    "rand_like randn_like randint_like normal uniform bernoulli exponential log_normal geometric cauchy random poisson"
).split()


@operator_rule(*_ALSO_POINTWISE)
def pointwise(flow: Flow, out: Any, *args: Any, **kwargs: Any) -> None:
    """Tie the operands' labels axis by axis; an operand of full size without labels fixes the axis."""
    results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()]
    combine(flow, results[0], inputs)
    for other in results[1:]:
        if other.shape == results[0].shape:
            flow.put(other, flow.blocks(results[0]))
    _note_sum(flow, results[0], inputs)


@operator_rule(*_RANDOM)
def random(flow: Flow, out: Tensor, *args: Any, **kwargs: Any) -> None:
    """Random numbers of a tensor's shape: a smaller tensor draws other numbers."""
    pointwise(flow, out, *args, **kwargs)
    for _, grid in flow.blocks(out):
        flow.space.mark_inexact(grid.cells, "random numbers of its width are drawn")


@operator_rule("isin", "bucketize")
def compared_with_a_list(flow: Flow, out: Tensor, x: Any, listed: Any, *args: Any, **kwargs: Any) -> None:
    """Every entry is looked for in a list."""
    if isinstance(listed, Tensor):
        flow.freeze(listed, "is a list that is searched")
    if isinstance(x, Tensor):
        flow.put(out, flow.blocks(x))


def combine(flow: Flow, out: Tensor, inputs: list[Tensor]) -> None:
    """Lay over `out` the blocks of tensors that are broadcast together."""
    bare = {
        axis + out.dim() - tensor.dim()
        for tensor in inputs
        for axis in range(tensor.dim())
        if tensor.shape[axis] > 1 and flow.axis_of(tensor, axis) is None
    }
    entries: list[Block] = []
    for tensor in inputs:
        shift = out.dim() - tensor.dim()
        for axes, grid in flow.blocks(tensor):
            moved = Block(tuple(axis + shift for axis in axes), grid)
            fixed = [axis for axis in moved.axes if axis in bare]
            kept = flow.space.without(moved, fixed, flow.located("meets a tensor without neurons"))
            if kept is not None:
                entries.append(kept)
    flow.put(out, merge(flow, entries))


def merge(flow: Flow, entries: list[Block]) -> list[Block]:
    """Blocks that lie over the same tensor become disjoint: what overlaps is tied."""
    merged: list[Block] = []
    for entry in entries:
        block = entry
        while (other := next((m for m in merged if set(m.axes) & set(block.axes)), None)) is not None:
            merged.remove(other)
            block = _join(flow, other, block)
        merged.append(block)
    return merged


def _join(flow: Flow, a: Block, b: Block) -> Block:
    if len(a.axes) < len(b.axes):
        a, b = b, a
    if a.grid is b.grid and a.axes == b.axes:
        return a
    if set(a.axes) == set(b.axes):
        order = [b.axes.index(axis) for axis in a.axes]
        flow.space.tie(a.grid.cells, b.grid.cells.transpose(order))
        for axis, margin in b.grid.margins.items():
            flow.space.tie(flow.space.margin(a.grid, a.axes.index(b.axes[axis])), margin)
        return a
    if len(b.axes) == 1 and set(b.axes) <= set(a.axes):
        # What lies over one axis of a grid alone concerns the margin, not every cell.
        flow.space.tie(flow.space.margin(a.grid, a.axes.index(b.axes[0])), b.grid.cells)
        return a
    axes = tuple(sorted({*a.axes, *b.axes}))
    left, right = (_spread(block, axes) for block in (a, b))
    flow.space.tie(left, right)
    return Block(axes, flow.space.grid(np.ascontiguousarray(np.broadcast_arrays(left, right)[0])))


def _spread(block: Block, axes: tuple[int, ...]) -> Any:
    order = sorted(range(len(block.axes)), key=lambda i: block.axes[i])
    cells = block.grid.cells.transpose(order)
    sizes = dict(zip(sorted(block.axes), cells.shape, strict=True))
    return cells.reshape([sizes.get(axis, 1) for axis in axes])


def _note_sum(flow: Flow, out: Tensor, inputs: list[Tensor]) -> None:
    """A sum of two activations: several writers share its neurons."""
    if flow.operator.startswith(("aten.add.", "aten.add_.", "aten.sub.")) and len(inputs) == 2:
        a, b = ({id(block.grid) for block in flow.blocks(tensor)} for tensor in inputs)
        if a and b and not a & b and not any(flow.is_static(tensor) for tensor in inputs):
            flow.note_sum(out)
