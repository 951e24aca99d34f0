"""Reductions drop labels; over neurons they make a removal inexact. Orders keep an axis whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from tracker.labels import Block
from tracker.operators.registry import operator_rule

if TYPE_CHECKING:
    from tracker.flow import Flow


_REDUCTIONS = (
    "mean sum nansum amax amin max min any all argmax argmin prod logsumexp var var_mean std std_mean aminmax nanmean "
    "median nanmedian mode count_nonzero"
).split()


@operator_rule(*_REDUCTIONS)
def reduction(flow: Flow, out: Any, x: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> None:
    """A reduction over `dim`, or over everything."""
    if isinstance(dim, Tensor):  # max(x, y) of two tensors is pointwise
        from tracker.operators.pointwise import pointwise

        pointwise(flow, out, x, dim)
        return
    dim = kwargs.get("dim", dim)
    if dim is None or isinstance(dim, bool) or dim == []:
        dim = range(x.dim())
    reduce_over(flow, out, x, {d % max(x.dim(), 1) for d in ([dim] if isinstance(dim, int) else dim)})


@operator_rule("linalg_vector_norm", "linalg__powsum", "norm")
def vector_norm(flow: Flow, out: Tensor, x: Tensor, order: Any = 2, dim: Any = None, *args: Any, **kwargs: Any) -> None:
    """A norm over `dim`, or over everything."""
    reduction(flow, out, x, dim)


def reduce_over(flow: Flow, out: Any, x: Tensor, gone: set[int]) -> None:
    """The blocks without the reduced axes; neurons that are reduced together are inexact."""
    for axis in gone:
        found = flow.axis_of(x, axis)
        if found is not None:
            flow.inexact_where_used(out, flow.space.margin(*found), "its neurons are reduced together")
    blocks: list[Block] = []
    for axes, grid in flow.blocks(x):
        inside = [axis for axis in axes if axis in gone]
        if not inside:
            blocks.append(Block(axes, grid))
        else:
            for i, axis in enumerate(axes):
                if axis not in gone:
                    blocks.append(Block((axis,), flow.space.grid(flow.space.margin(grid, i))))
    for tensor in tree_leaves(out):
        if isinstance(tensor, Tensor):
            keeps = tensor.dim() == x.dim()
            moved = [Block(tuple(a if keeps else a - sum(g < a for g in gone) for a in b.axes), b.grid) for b in blocks]
            flow.put(tensor, moved)


def whole(flow: Flow, out: Any, x: Tensor, dim: int, reason: str) -> None:
    """An operator along an axis that cannot change its size."""
    flow.fix(x, dim, reason)
    for tensor in tree_leaves(out):
        if isinstance(tensor, Tensor) and tensor.dim() == x.dim():
            same = {axis for axis in range(x.dim()) if tensor.shape[axis] == x.shape[axis]}
            flow.put(tensor, [block for block in flow.blocks(x) if set(block.axes) <= same])


@operator_rule("cumprod", "logcumsumexp", "cummax", "cummin")
def running(flow: Flow, out: Any, x: Tensor, dim: int, *args: Any, **kwargs: Any) -> None:
    """A running product or maximum over an axis, which must stay whole."""
    whole(flow, out, x, dim, "is summed up along")


@operator_rule("sort", "argsort")
def sort(flow: Flow, out: Any, x: Tensor, dim: int = -1, *args: Any, **kwargs: Any) -> None:
    """An order over an axis, which must stay whole."""
    whole(flow, out, x, dim, "is sorted")


@operator_rule("kthvalue")
def kthvalue(flow: Flow, out: Any, x: Tensor, k: int, dim: int = -1, *args: Any, **kwargs: Any) -> None:
    """The largest but k along an axis, which must stay whole."""
    whole(flow, out, x, dim, "is searched for its largest entries")


@operator_rule("tril", "triu")
def triangle(flow: Flow, out: Tensor, x: Tensor, *args: Any) -> None:
    """Positions in the last two axes decide what is kept."""
    for axis in (-1, -2):
        flow.fix(x, axis, "is masked by position")
    flow.put(out, flow.blocks(x))


@operator_rule("glu")
def glu(flow: Flow, out: Tensor, x: Tensor, dim: int = -1) -> None:
    """One half gates the other: they lose the same positions."""
    from tracker.operators.pieces import take

    axis, half = dim % x.dim(), out.shape[dim]
    labels = flow.vector(x, axis)
    if labels is not None:
        flow.space.tie(labels[:half], labels[half:])
    take(flow, out, x, axis, slice(0, half))
