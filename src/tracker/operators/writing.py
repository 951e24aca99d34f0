"""Writing by index: the axis that is written into by index stays whole, the others go with what is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tracker.operators.indexing import entry_by_entry, is_mask, layout
from tracker.operators.pointwise import combine
from tracker.operators.registry import operator_rule

if TYPE_CHECKING:
    from tracker.flow import Flow

WRITTEN = "is written into by index"


@operator_rule("index_add", "index_copy", "index_reduce")
def index_add(
    flow: Flow, out: Tensor, x: Tensor, dim: int, index: Tensor, source: Tensor, *args: Any, **kwargs: Any
) -> None:
    """Rows of `source` go to the rows `index` of `x`."""
    flow.freeze(index, "is used as an index")
    for tensor in (x, source):
        flow.fix(tensor, dim, WRITTEN)
    combine(flow, out, [x, source])


@operator_rule("index_fill")
def index_fill(
    flow: Flow, out: Tensor, x: Tensor, dim: int, index: Tensor, value: Any, *args: Any, **kwargs: Any
) -> None:
    """One number goes to the rows `index` of `x`."""
    flow.freeze(index, "is used as an index")
    flow.fix(x, dim, WRITTEN)
    flow.put(out, flow.blocks(x))


@operator_rule("scatter", "scatter_add", "scatter_reduce")
def scatter(
    flow: Flow, out: Tensor, x: Tensor, dim: int, index: Tensor, source: Any = None, *args: Any, **kwargs: Any
) -> None:
    """Entries of `source` go to positions of one axis of `x`, others for every entry of the other axes."""
    source = kwargs.get("src", source)
    sources = [source] if isinstance(source, Tensor) and source.dim() else []
    entry_by_entry(flow, [x, *sources], dim, index, WRITTEN)
    flow.put(out, flow.blocks(x))


@operator_rule("index_put", "_index_put_impl", "_unsafe_index_put")
def index_put(
    flow: Flow, out: Tensor, x: Tensor, indices: Sequence[Tensor | None], values: Tensor, *args: Any, **kwargs: Any
) -> None:
    """`x[i, :, j] = values` with index tensors or masks."""
    given = [index for index in indices if index is not None]
    if values.numel() == 1 and len(given) == 1 and is_mask(given[0]):
        _fill(flow, out, x, indices.index(given[0]), given[0])
        return
    for index in given:
        flow.freeze(index, "is used as an index")
    looked, place, dims = layout(x, indices)
    for axis in looked:
        flow.fix(x, axis, WRITTEN)
    shift = dims - values.dim()
    passing = {at - shift: axis for axis, at in place.items()}
    for at in range(values.dim()):
        if values.shape[at] == 1:
            continue
        if at in passing:
            flow.tie_axes(x, passing[at], values, at, "is written into what has no neurons, or has none itself")
        else:
            flow.fix(values, at, "is written by index")
    flow.put(out, flow.blocks(x))


def _fill(flow: Flow, out: Tensor, x: Tensor, first: int, mask: Tensor) -> None:
    """One number goes wherever a mask says so: entry by entry, as in `masked_fill`."""
    for axis in range(mask.dim()):
        flow.tie_axes(x, first + axis, mask, axis, "is masked without neurons")
    flow.put(out, flow.blocks(x))


@operator_rule("masked_scatter")
def masked_scatter(flow: Flow, out: Tensor, x: Tensor, mask: Tensor, source: Tensor) -> None:
    """Entries of `source`, one after the other, go where the mask says; whole rows where it is expanded over them."""
    back = 1
    while back <= min(mask.dim(), source.dim()) and mask.stride(-back) == 0 and source.shape[-back] == x.shape[-back]:
        labels = flow.tie_axes(x, -back, source, -back, "is written into what has no neurons, or has none itself")
        if labels is not None and flow.axis_of(mask, -back) is not None:
            flow.tie_axes(x, -back, mask, -back, "is masked without neurons")
        back += 1
    for tensor in (x, mask, source):
        for axis in range(tensor.dim() - back + 1):
            flow.fix(tensor, axis, "is written into by a mask")
    flow.put(out, flow.blocks(x))
