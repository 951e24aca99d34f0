"""Views move labels; none decides which factor of a split axis is the neuron."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from tracker.labels import Block
from tracker.operators.registry import operator_rule

if TYPE_CHECKING:
    from tracker.flow import Flow


def relabel(flow: Flow, out: Tensor, x: Tensor, move: Callable[[int], int]) -> None:
    """The same blocks on moved axes."""
    flow.put(out, [Block(tuple(move(axis) for axis in axes), grid) for axes, grid in flow.blocks(x)])


@operator_rule("t", "numpy_T")
def transpose_all(flow: Flow, out: Tensor, x: Tensor) -> None:
    """All axes in reverse."""
    relabel(flow, out, x, lambda axis: x.dim() - 1 - axis)


@operator_rule("transpose", "swapaxes")
def transpose(flow: Flow, out: Tensor, x: Tensor, first: int, second: int) -> None:
    """Two axes change places."""
    swap = {first % x.dim(): second % x.dim(), second % x.dim(): first % x.dim()}
    relabel(flow, out, x, lambda axis: swap.get(axis, axis))


@operator_rule("permute")
def permute(flow: Flow, out: Tensor, x: Tensor, dims: Sequence[int]) -> None:
    """Axes in another order."""
    order = [dim % x.dim() for dim in dims]
    relabel(flow, out, x, order.index)


@operator_rule("unsqueeze")
def unsqueeze(flow: Flow, out: Tensor, x: Tensor, dim: int) -> None:
    """A new axis of size one."""
    dim %= x.dim() + 1
    relabel(flow, out, x, lambda axis: axis + (axis >= dim))


@operator_rule("squeeze")
def squeeze(flow: Flow, out: Tensor, x: Tensor, dim: int | Sequence[int] | None = None) -> None:
    """Axes of size one go; they carry no labels. One neuron stays where an axis would go as well if it had but one."""
    dims = range(x.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    for d in dims:
        if (labels := flow.vector(x, d)) is not None:
            flow.space.freeze(labels[-1:], flow.located("`squeeze` takes an axis of one neuron away"))
    gone = {d % x.dim() for d in dims if x.shape[d] == 1}
    relabel(flow, out, x, lambda axis: axis - sum(d < axis for d in gone))


@operator_rule("expand")
def expand(flow: Flow, out: Tensor, x: Tensor, size: Sequence[int], **kwargs: Any) -> None:
    """Axes of size one grow; they carry no labels.

    One that grows inside a function that matches its operands follows the operand it is matched with.
    """
    new = out.dim() - x.dim()
    relabel(flow, out, x, lambda axis: axis + new)
    if flow.call.matches_operands:
        for axis in range(out.dim()):
            if out.shape[axis] > 1 and (axis < new or x.shape[axis - new] == 1):
                flow.follow_others(out, axis)


@operator_rule("view_as_complex")
def view_as_complex(flow: Flow, out: Tensor, x: Tensor) -> None:
    """The last axis, of two, becomes a complex number."""
    flow.fix(x, -1, "is a pair of numbers")
    flow.put(out, flow.blocks(x))


@operator_rule("view_as_real")
def view_as_real(flow: Flow, out: Tensor, x: Tensor) -> None:
    """A complex number becomes a last axis of two."""
    flow.put(out, flow.blocks(x))


@operator_rule("flip")
def flip(flow: Flow, out: Tensor, x: Tensor, dims: Sequence[int]) -> None:
    """Reversed axes: what is removed is reversed alike."""
    flipped = {dim % x.dim() for dim in dims}
    blocks = []
    for axes, grid in flow.blocks(x):
        turned = [i for i, axis in enumerate(axes) if axis in flipped]
        blocks.append(Block(axes, flow.space.grid(np.flip(grid.cells, tuple(turned)))) if turned else Block(axes, grid))
    flow.put(out, blocks)


@operator_rule("roll")
def roll(flow: Flow, out: Tensor, x: Tensor, shifts: Any, dims: Sequence[int] = ()) -> None:
    """Rolled positions depend on the size of the axis."""
    for dim in [dims] if isinstance(dims, int) else dims or range(x.dim()):
        flow.fix(x, dim, "is rolled")
    flow.put(out, flow.blocks(x))


@operator_rule("repeat")
def repeat(flow: Flow, out: Tensor, x: Tensor, repeats: Sequence[int]) -> None:
    """Copies side by side carry the same labels."""
    shift = out.dim() - x.dim()
    blocks = []
    for axes, grid in flow.blocks(x):
        times = [repeats[axis + shift] for axis in axes]
        tiled = grid if all(n == 1 for n in times) else flow.space.grid(np.tile(grid.cells, times))
        blocks.append(Block(tuple(axis + shift for axis in axes), tiled))
    flow.put(out, blocks)


@operator_rule("diagonal", "trace", "linalg_diagonal")
def diagonal(flow: Flow, out: Tensor, x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> None:
    """Two axes, whose positions are compared, become one at the end, or a sum."""
    gone = [dim % x.dim() for dim in (dim1, dim2)]
    for dim in gone:
        flow.fix(x, dim, "is an axis of a diagonal")
    relabel(flow, out, x, lambda axis: axis - sum(dim < axis for dim in gone))


@operator_rule("diag_embed")
def diag_embed(flow: Flow, out: Tensor, x: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> None:
    """The last axis becomes the diagonal of two."""
    flow.fix(x, -1, "becomes a diagonal")
    new = {dim % out.dim() for dim in (dim1, dim2)}
    old = [axis for axis in range(out.dim()) if axis not in new]
    relabel(flow, out, x, lambda axis: old[axis])


@operator_rule("unfold")
def unfold(flow: Flow, out: Tensor, x: Tensor, dim: int, size: int, step: int) -> None:
    """Windows along one axis; their insides become a last axis."""
    flow.fix(x, dim, "is cut into windows")
    flow.put(out, flow.blocks(x))


@operator_rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "flatten")
def view(flow: Flow, out: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Axes split and merge; the labels are reshaped with them."""
    if x.numel() == 0 or x.shape == out.shape:
        relabel(flow, out, x, lambda axis: axis)
    else:
        flow.put(out, _reshaped(flow, x, out))
    if flow.call.constant_sizes:
        for axis in range(out.dim()):
            flow.fix(out, axis, f"`{flow.call.name}` computes its sizes itself")


def _reshaped(flow: Flow, x: Tensor, out: Tensor) -> list[Block]:
    factors = _factors(x.shape, out.shape)
    blocks: list[Block] = []
    for block in _one_block_a_factor(flow, x, factors):
        hit = [factor for factor in factors if set(factor[0]) & set(block.axes)]
        before = [axis for ins, _ in hit for axis in ins]
        after = [axis for _, outs in hit for axis in outs]
        if not after:
            continue
        order = sorted(range(len(block.axes)), key=lambda i: before.index(block.axes[i]))
        cells = block.grid.cells.transpose(order)
        spread = cells.reshape([x.shape[axis] if axis in block.axes else 1 for axis in before])
        if [x.shape[axis] for axis in before] == [out.shape[axis] for axis in after] and len(before) == len(block.axes):
            blocks.append(Block(tuple(after[before.index(axis)] for axis in block.axes), block.grid))
            continue
        full = np.broadcast_to(spread, [x.shape[axis] for axis in before])
        blocks.append(Block(tuple(after), flow.space.grid(full.reshape([out.shape[axis] for axis in after]))))
    return blocks


def _one_block_a_factor(flow: Flow, x: Tensor, factors: list[tuple[list[int], list[int]]]) -> list[Block]:
    """Where axes of several blocks merge into one, a joint grid takes their place, with the blocks as its margins."""
    blocks = list(flow.blocks(x))
    for inputs, outputs in factors:
        meeting = [block for block in blocks if set(block.axes) & set(inputs)]
        if len(meeting) < 2 or (len(inputs) == 1 and len(outputs) == 1):
            continue
        for block in meeting:
            blocks.remove(block)
        for block in [block for block in meeting if block.grid.joint]:
            meeting.remove(block)
            for i, axis in enumerate(block.axes):
                margin = Block((axis,), flow.space.grid(flow.space.margin(block.grid, i)))
                (meeting if axis in inputs else blocks).append(margin)
        axes = tuple(block.axes[0] for block in meeting)
        sizes = [x.shape[axis] for axis in axes]
        grid = flow.space.grid(flow.space.fresh(math.prod(sizes)).reshape(sizes))
        grid.margins.update({i: block.grid.cells for i, block in enumerate(meeting)} if grid.joint else {})
        blocks.append(Block(axes, grid))
    return blocks


def _factors(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes, before and after, that hold the same elements; axes of size one are left out."""
    ins = [axis for axis, size in enumerate(before) if size != 1]
    outs = [axis for axis, size in enumerate(after) if size != 1]
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(ins):
        run_in, run_out = [ins[i]], [outs[j]]
        i, j = i + 1, j + 1
        have_in, have_out = before[run_in[0]], after[run_out[0]]
        while have_in != have_out:
            if have_in < have_out:
                run_in.append(ins[i])
                have_in *= before[ins[i]]
                i += 1
            else:
                run_out.append(outs[j])
                have_out *= after[outs[j]]
                j += 1
        runs.append((run_in, run_out))
    return runs
