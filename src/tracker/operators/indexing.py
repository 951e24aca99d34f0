"""Look-ups by index keep the axis whole that is looked into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tracker.labels import Block
from tracker.operators.contractions import axis_block
from tracker.operators.pieces import take
from tracker.operators.registry import operator_rule
from tracker.subscripts import listed

if TYPE_CHECKING:
    from tracker.flow import Flow


AS_INDEX = "is used as an index"
LOOKED_UP = "is looked up by index"


@operator_rule("embedding")
def embedding(flow: Flow, out: Tensor, weight: Tensor, index: Tensor, *args: Any, **kwargs: Any) -> None:
    """Rows of a table, chosen by index."""
    flow.look_up(weight, 0, index, LOOKED_UP)
    flow.freeze_axes(index, AS_INDEX)
    flow.note_writer(weight, 1)
    flow.put(out, axis_block(flow, flow.vector(weight, 1), out.dim() - 1))


@operator_rule("index_select")
def index_select(flow: Flow, out: Tensor, x: Tensor, dim: int, index: Tensor) -> None:
    """Positions of one axis."""
    flow.look_up(x, dim, index, LOOKED_UP)
    flow.freeze_axes(index, AS_INDEX)
    flow.put(out, _beside(flow, x, [dim % x.dim()]))


@operator_rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(flow: Flow, out: Sequence[Tensor], weight: Tensor, index: Tensor, *args: Any, **kwargs: Any) -> None:
    """Sums, means or maxima of rows of a table, chosen by index."""
    for leaf in tree_leaves((index, args, kwargs)):
        if isinstance(leaf, Tensor):
            flow.freeze(leaf, AS_INDEX)
    flow.fix(weight, 0, LOOKED_UP)
    flow.note_writer(weight, 1)
    flow.put(out[0], axis_block(flow, flow.vector(weight, 1), 1))


@operator_rule("_pack_padded_sequence")
def pack(flow: Flow, out: Sequence[Tensor], x: Tensor, *args: Any) -> None:
    """The steps of sequences of several lengths, one after the other: batch and time become one axis."""
    for axis in (0, 1):
        flow.fix(x, axis, "is packed")
    flow.put(out[0], [Block(tuple(axis - 1 for axis in block.axes), block.grid) for block in flow.blocks(x)])


@operator_rule("gather")
def gather(flow: Flow, out: Tensor, x: Tensor, dim: int, index: Tensor, *args: Any, **kwargs: Any) -> None:
    """Positions of one axis, others for every entry of the other axes."""
    entry_by_entry(flow, [x], dim, index, LOOKED_UP)
    flow.put(out, _beside(flow, x, [dim % max(x.dim(), 1)]))


def entry_by_entry(flow: Flow, tensors: Sequence[Tensor], dim: int, index: Tensor, reason: str) -> None:
    """An index along `dim` of the first tensor for every entry of the other axes, which go together.

    An index expanded over an axis holds for whatever is left of it.
    """
    everything = [*tensors, index]
    flow.look_up(tensors[0], dim, index, reason)
    for tensor in everything[1:]:
        flow.fix(tensor, dim, reason)
    for axis in range(index.dim()):
        if axis == dim % index.dim():
            continue
        expanded = (index.stride(axis) == 0 or flow.call.expands(axis)) and flow.axis_of(index, axis) is None
        together = list(tensors) if expanded else everything
        if len({tensor.shape[axis] for tensor in everything}) == 1:
            for other in together[1:]:
                flow.tie_axes(together[0], axis, other, axis, f"{reason}, together with what has no neurons")
        else:
            for tensor in everything:
                flow.fix(tensor, axis, f"{reason} of another size")


@operator_rule(
    "take", "masked_select", "put", "multinomial", "searchsorted", "nonzero", "_unique2", "unique_dim", "equal"
)
@operator_rule("unique_consecutive", "torchvision::nms")
def by_value(flow: Flow, out: Any, *args: Any, **kwargs: Any) -> None:
    """Values decide what comes out, and how much of it."""
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor):
            flow.freeze(leaf, f"enters `{flow.operator}`, where values decide what comes out")


@operator_rule("index", "_unsafe_index")
def index(flow: Flow, out: Tensor, x: Tensor, indices: Sequence[Tensor | None], *args: Any) -> None:
    """`x[i, :, j]` with index tensors or masks: their axes are looked into, the others pass."""
    looked, place, _ = layout(x, indices)
    for given in indices:
        if given is not None:
            flow.freeze_axes(given, AS_INDEX)
    if len(looked) == 1 and (named := _named(flow, x, looked[0])) is not None:
        take(flow, out, x, looked[0], named)
        return
    axis = 0
    for given in indices:
        spans = 1
        if given is not None:
            spans = given.dim() if is_mask(given) else 1
            for at in range(axis, axis + spans):
                flow.look_up(x, at, given, LOOKED_UP)
        axis += spans
    flow.put(out, [Block(tuple(place[axis] for axis in axes), grid) for axes, grid in _beside(flow, x, looked)])


def _beside(flow: Flow, x: Tensor, looked: Sequence[int]) -> list[Block]:
    """The blocks over the axes that are not looked into."""
    return [block for block in flow.blocks(x) if not set(block.axes) & set(looked)]


def _named(flow: Flow, x: Tensor, axis: int) -> list[int] | None:
    """Positions that the code lists: they stay with all before them, or behind them where counted from the end."""
    named = listed(x.dim(), flow.call.args[1], axis) if flow.call.name == "__getitem__" else None
    if named is not None and (labels := flow.vector(x, axis)) is not None:
        for position in named:
            beyond = labels[position:] if position < 0 else labels[: position + 1]
            flow.space.freeze(beyond, flow.located(f"is looked up at the constant position {position}"))
    return named


def is_mask(given: Tensor) -> bool:
    """Whether an index is a mask, which covers as many axes as it has."""
    return given.dtype in (torch.bool, torch.uint8)


def layout(x: Tensor, indices: Sequence[Tensor | None]) -> tuple[list[int], dict[int, int], int]:
    """The axes that `x[indices]` looks into, where it puts every other one, and how many axes it has."""
    looked: list[int] = []
    axis = new = 0
    for given in indices:
        spans = given.dim() if given is not None and is_mask(given) else 1
        if given is not None:
            looked += range(axis, axis + spans)
            new = max(new, 1 if is_mask(given) else given.dim())
        axis += spans
    together = looked == list(range(looked[0], looked[-1] + 1))
    at = looked[0] if together else 0
    rest = [axis for axis in range(x.dim()) if axis not in looked]
    place = {axis: i + (new if i >= at else 0) for i, axis in enumerate(rest)}
    return looked, place, len(rest) + new
