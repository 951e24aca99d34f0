"""Products: the contracted axis is tied, the output takes the other axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tracker.labels import Block, Labels
from tracker.operators.pointwise import combine
from tracker.operators.registry import operator_rule

if TYPE_CHECKING:
    from tracker.flow import Flow

GROUPED_WIDTHS = 8  # rows of 16 bytes, which hold 8 numbers of half precision


def axis_block(flow: Flow, labels: Labels | None, axis: int) -> list[Block]:
    """A block over one axis, or none."""
    return [] if labels is None else [Block((axis,), flow.space.grid(labels))]


def product(flow: Flow, out: Tensor, x: Tensor, y: Tensor, batch: int) -> None:
    """`out[b, i, j] = Σ_k x[b, i, k] y[b, k, j]` with `batch` leading axes b."""
    weight_left = flow.is_static(x) and not flow.is_static(y)
    if weight_left:
        flow.contract(y, batch, x, batch + 1, batch)
    else:
        flow.contract(x, batch + 1, y, batch, batch + 1)
    blocks = []
    static = flow.is_static(x) or flow.is_static(y)
    for axis in range(batch):
        labels = flow.tie_axes(x, axis, y, axis, "is a batch axis of a product with a tensor without neurons")
        blocks += axis_block(flow, labels, axis)
        if labels is not None:
            if not static:
                flow.space.mark(labels, "attention")
                flow.space.heads.append(labels)
            elif 1 not in (x if flow.is_static(x) else y).shape[batch:]:  # what reads or writes one number is no expert
                flow.space.mark(labels, "expert")
    blocks += axis_block(flow, flow.vector(x, batch), batch)
    blocks += axis_block(flow, flow.vector(y, batch + 1), batch + 1)
    flow.put(out, blocks)


@operator_rule("mm")
def mm(flow: Flow, out: Tensor, x: Tensor, y: Tensor) -> None:
    """A matrix product."""
    product(flow, out, x, y, 0)


@operator_rule("bmm")
def bmm(flow: Flow, out: Tensor, x: Tensor, y: Tensor) -> None:
    """A batch of matrix products."""
    product(flow, out, x, y, 1)


@operator_rule("addmm")
def addmm(flow: Flow, out: Tensor, bias: Tensor, x: Tensor, y: Tensor, **kwargs: Any) -> None:
    """A matrix product and a bias."""
    product(flow, out, x, y, 0)
    combine(flow, out, [out, bias])


@operator_rule("baddbmm")
def baddbmm(flow: Flow, out: Tensor, bias: Tensor, x: Tensor, y: Tensor, **kwargs: Any) -> None:
    """A batch of matrix products and a bias."""
    product(flow, out, x, y, 1)
    combine(flow, out, [out, bias])


@operator_rule("mv")
def mv(flow: Flow, out: Tensor, x: Tensor, vector: Tensor) -> None:
    """A matrix times a vector."""
    if flow.is_static(x) and not flow.is_static(vector):
        flow.contract(vector, 0, x, 1, 0)
    else:
        flow.contract(x, 1, vector, 0, None)
    flow.put(out, axis_block(flow, flow.vector(x, 0), 0))


@operator_rule("dot", "vdot")
def dot(flow: Flow, out: Tensor, x: Tensor, y: Tensor) -> None:
    """A product of two vectors."""
    if flow.is_static(x) and not flow.is_static(y):
        x, y = y, x
    flow.contract(x, 0, y, 0, None)


@operator_rule("linear")
def linear(flow: Flow, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """`out = x weightᵀ + bias`."""
    flow.contract(x, -1, weight, 1, 0)
    passing = [block for block in flow.blocks(x) if x.dim() - 1 not in block.axes]
    written = axis_block(flow, flow.vector(weight, 0), out.dim() - 1)
    flow.put(out, [*passing, *other_axes(flow, x, [x.dim() - 1]), *written])
    if bias is not None:
        combine(flow, out, [out, bias])


def other_axes(flow: Flow, x: Tensor, contracted: Sequence[int]) -> list[Block]:
    """What is left of the blocks that span a contracted axis: the margins of their other axes."""
    return [
        block
        for axes, grid in flow.blocks(x)
        if grid.joint and set(axes) & set(contracted)
        for i, axis in enumerate(axes)
        if axis not in contracted
        for block in axis_block(flow, flow.space.margin(grid, i), axis)
    ]


@operator_rule("_grouped_mm")
def grouped_mm(
    flow: Flow, out: Tensor, x: Tensor, weight: Tensor, offs: Tensor | None = None, *args: Any, **kwargs: Any
) -> None:
    """Rows of `x` times the matrix of the expert each belongs to: `weight` is (experts, in, out).

    `offs` has the end of each expert's rows, shape (experts).
    """
    if (x.dim(), weight.dim()) != (2, 3):
        for tensor in (x, weight):
            flow.freeze(tensor, "is multiplied in groups of another kind")
        return
    flow.contract(x, 1, weight, 1, 2)
    for axis in (1, 2):
        if (labels := flow.vector(weight, axis)) is not None:
            flow.space.keep_multiple(labels, GROUPED_WIDTHS)
    flow.fix(x, 0, "is a list of rows, each for an expert")
    if offs is None:
        flow.fix(weight, 0, "is a list of experts chosen by index")
    else:
        flow.tie_axes(weight, 0, offs, 0, "is a list of experts chosen by index")
    flow.put(out, axis_block(flow, flow.vector(weight, 2), 1))


@operator_rule("_trilinear")
def trilinear(
    flow: Flow,
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    expand_x: Sequence[int],
    expand_weight: Sequence[int],
    expand_y: Sequence[int],
    summed: Sequence[int],
    *args: Any,
) -> None:
    """`out[b, o] = Σ x[b, i] weight[o, i, j] y[b, j]`, as `bilinear` asks for it."""
    if (expand_x, expand_weight, expand_y, summed) != ([1, 3], [0], [1, 2], [2, 3]):
        for tensor in (x, weight, y):
            flow.freeze(tensor, "is in a product of three of another kind")
        return
    flow.contract(x, 1, weight, 1, 0)
    flow.contract(y, 1, weight, 2, 0)
    rows = flow.tie_axes(x, 0, y, 0, "is multiplied with rows without neurons")
    flow.put(out, [*axis_block(flow, rows, 0), *axis_block(flow, flow.vector(weight, 0), 1)])


@operator_rule("_cdist_forward", "_euclidean_dist")
def distances(flow: Flow, out: Tensor, x: Tensor, y: Tensor, *args: Any) -> None:
    """Distances between the rows of two tensors: a neuron that is zero in one of them still has one."""
    labels = flow.tie_axes(x, -1, y, -1, "is the distance to what has no neurons")
    if labels is not None:
        flow.space.mark_inexact(labels, "its neurons make a distance together")
    blocks = [*other_axes(flow, x, [x.dim() - 1])]
    blocks += [block for block in flow.blocks(x) if x.dim() - 1 not in block.axes]
    for axis in range(x.dim() - 2):
        flow.tie_axes(x, axis, y, axis, "is the distance to what has no neurons")
    flow.put(out, [*blocks, *axis_block(flow, flow.vector(y, -2), out.dim() - 1)])
