"""Look-ups by index keep the axis whole that is looked into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tracker.labels import Block
from tracker.operators.contractions import axis_block
from tracker.operators.registry import operator_rule

if TYPE_CHECKING:
    from tracker.flow import Flow


@operator_rule("embedding")
def embedding(flow: Flow, out: Tensor, weight: Tensor, index: Tensor, *args: Any, **kwargs: Any) -> None:
    """Rows of a table, chosen by index."""
    flow.fix(weight, 0, "is looked up by index")
    flow.freeze(index, "is used as an index")
    flow.note_writer(weight, 1)
    flow.put(out, axis_block(flow, flow.vector(weight, 1), out.dim() - 1))


@operator_rule("index_select")
def index_select(flow: Flow, out: Tensor, x: Tensor, dim: int, index: Tensor) -> None:
    """Positions of one axis."""
    flow.fix(x, dim, "is looked up by index")
    flow.freeze(index, "is used as an index")
    flow.put(out, flow.blocks(x))


@operator_rule("gather")
def gather(flow: Flow, out: Tensor, x: Tensor, dim: int, index: Tensor, *args: Any, **kwargs: Any) -> None:
    """Positions of one axis, others for every entry of the other axes."""
    flow.fix(x, dim, "is looked up by index")
    flow.fix(index, dim, "is used as an index")
    for axis in range(x.dim()):
        if x.shape[axis] == index.shape[axis]:
            flow.tie_axes(x, axis, index, axis, "is looked up by an index without neurons")
        else:
            flow.fix(x, axis, "is looked up by an index of another size")
            flow.fix(index, axis, "is an index of another size")
    flow.put(out, flow.blocks(x))


@operator_rule("index", "_unsafe_index")
def index(flow: Flow, out: Tensor, x: Tensor, indices: Sequence[Tensor | None], *args: Any) -> None:
    """`x[i, :, j]` with index tensors: their axes are looked into, the others pass."""
    looked = [axis for axis, given in enumerate(indices) if given is not None]
    for axis in looked:
        given = indices[axis]
        spans = given.dim() if given is not None and _is_mask(given) else 1
        for covered in range(axis, axis + spans):
            flow.fix(x, covered, "is looked up by index")
        if given is not None:
            flow.freeze(given, "is used as an index")
    if any(_is_mask(given) for given in indices if given is not None):
        _masked(flow, out, x, looked, indices)
        return
    new = max(given.dim() for given in indices if given is not None)
    together = looked == list(range(looked[0], looked[-1] + 1))
    at = looked[0] if together else 0
    rest = [axis for axis in range(x.dim()) if axis not in looked]
    place = {axis: i + (new if i >= at else 0) for i, axis in enumerate(rest)}
    flow.put(out, [Block(tuple(place[a] for a in b.axes), b.grid) for b in flow.blocks(x)])


def _is_mask(given: Tensor) -> bool:
    return given.dtype in (torch.bool, torch.uint8)


def _masked(flow: Flow, out: Tensor, x: Tensor, looked: list[int], indices: Sequence[Tensor | None]) -> None:
    """A boolean mask over some leading axes becomes one axis."""
    mask = indices[looked[0]]
    if len(looked) != 1 or looked[0] != 0 or mask is None:
        flow.freeze(x, "is looked up by a mask")
        return
    shift = mask.dim() - 1
    flow.put(out, [Block(tuple(a - shift for a in b.axes), b.grid) for b in flow.blocks(x)])
