"""Products: the contracted axis is tied, the output takes the other axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tracker.labels import Block, Labels
from tracker.operators.pointwise import combine
from tracker.operators.registry import operator_rule
from tracker.sizes import Tracked

if TYPE_CHECKING:
    from tracker.flow import Flow

CONSTANT_GROUPS = "is convolved in a constant number of groups"


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
    for axis in range(batch):
        labels = flow.tie_axes(x, axis, y, axis, "is a batch axis of a product with a tensor without neurons")
        blocks += axis_block(flow, labels, axis)
        if labels is not None:
            static = flow.is_static(x) or flow.is_static(y)
            flow.space.mark(labels, "expert" if static else "attention")
            if not static:
                flow.space.heads.append(labels)
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
    flow.put(out, [*passing, *_other_axes(flow, x, [x.dim() - 1]), *written])
    if bias is not None:
        combine(flow, out, [out, bias])


def _other_axes(flow: Flow, x: Tensor, contracted: Sequence[int]) -> list[Block]:
    """What is left of the blocks that span a contracted axis: the margins of their other axes."""
    return [
        block
        for axes, grid in flow.blocks(x)
        if grid.joint and set(axes) & set(contracted)
        for i, axis in enumerate(axes)
        if axis not in contracted
        for block in axis_block(flow, flow.space.margin(grid, i), axis)
    ]


@operator_rule("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution")
def convolution(
    flow: Flow,
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *args: Any,
) -> None:
    """Convolution: plain, depthwise, grouped or transposed; its kernel keeps its size."""
    given = flow.call.argument("groups", 6)
    if isinstance(given, Tracked) and groups != x.shape[1]:
        given.number()
    for axis in range(2, weight.dim()):
        flow.fix(weight, axis, KERNEL)
        flow.fix(x, axis, "is an axis that is convolved over")
    writes, reads = (1, 0) if transposed else (0, 1)
    flow.put(out, axis_block(flow, flow.vector(x, 0), 0))
    if groups > 1 and not flow.is_static(weight):
        flow.fix(x, 1, "is convolved with another activation")
        flow.fix(weight, reads, "is convolved with another activation")
    if groups == 1:
        flow.contract(x, 1, weight, reads, writes)
        written = flow.vector(weight, writes)
    else:
        written = _grouped(flow, x, weight, groups, transposed)
    flow.put(out, [*flow.blocks(out), *axis_block(flow, written, 1)])
    if bias is not None:
        flow.tie_axes(out, 1, bias, 0, "has a bias without neurons")


KERNEL = "is a kernel"


def _grouped(flow: Flow, x: Tensor, weight: Tensor, groups: int, transposed: bool) -> Labels | None:
    """The output's labels. Depthwise: in and out are one neuron. Otherwise the same position goes in every group."""
    channels, columns = flow.vector(x, 1), flow.vector(weight, 1)
    rows = flow.vector(weight, 0)
    if channels is None:
        flow.note_writer(weight, 1 if transposed else 0)
        for labels in (rows, columns):
            if labels is not None:
                flow.space.freeze(labels, flow.located("convolves an axis without neurons in groups"))
        return None
    if groups == x.shape[1]:
        return _depthwise(flow, x, channels, rows, columns, transposed)
    per_group = channels.reshape(groups, -1)
    flow.space.tie(per_group[:1], per_group)
    if transposed:
        # weight is (in, out / groups): rows are the input channels, columns repeat in every group
        if rows is None:
            flow.space.freeze(channels, flow.located(CONSTANT_GROUPS))
        else:
            flow.space.tie(rows, channels)
            flow.note_reader(x, 1, channels, weight, rows)
        flow.note_writer(weight, 1)
        if columns is None:
            return None
        return columns[None].repeat(groups, 0).ravel()
    if columns is not None:
        flow.space.tie(per_group[0], columns)
        flow.note_reader(x, 1, channels, weight, columns)
    else:
        flow.space.freeze(channels, flow.located(CONSTANT_GROUPS))
    if rows is not None:
        written = rows.reshape(groups, -1)
        flow.space.tie(written[:1], written)
        flow.note_writer(weight, 0)
    return rows


def _depthwise(
    flow: Flow, x: Tensor, channels: Labels, rows: Labels | None, columns: Labels | None, transposed: bool
) -> Labels | None:
    """One group a channel: the number of groups must follow the channels."""
    if columns is not None:  # a channel multiplier keeps its size
        flow.space.freeze(columns, flow.located("multiplies channels"))
    if rows is None:
        flow.space.freeze(channels, flow.located("is convolved with a kernel without neurons"))
    else:
        flow.space.tie(channels[:, None], rows.reshape(len(channels), -1))
    given = flow.call.argument("groups", 6)
    found = flow.axis_of(x, 1)
    if isinstance(given, Tracked) and found is not None:
        flow.explain_axis(given.expression, *found)
    else:
        flow.space.freeze(channels, flow.located(CONSTANT_GROUPS))
    if transposed:
        return channels.repeat(columns.size) if columns is not None else channels
    return rows


@operator_rule(
    "scaled_dot_product_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math",
)
def attention(flow: Flow, out: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> None:
    """softmax(query keyᵀ · scale) value: heads are a batch axis, the scale depends on the width of query and key."""
    result = out if isinstance(out, Tensor) else out[0]
    for tensor in (query, key):
        flow.fix(tensor, -1, "is the width that scales attention")
    blocks: list[Block] = []
    for axis in range(result.dim() - 2):
        blocks += axis_block(flow, _heads(flow, (query, key, value), axis), axis)
    for tensor in (query, key, value):
        flow.fix(tensor, -2, "is a sequence")
    blocks += axis_block(flow, flow.vector(value, -1), result.dim() - 1)
    flow.put(result, blocks)
    for leaf in [*args, *kwargs.values()]:
        if isinstance(leaf, Tensor):
            _mask(flow, result, leaf)


def _mask(flow: Flow, result: Tensor, mask: Tensor) -> None:
    """A mask or bias over (…, query, key): heads have their own, or share one."""
    for axis in range(-mask.dim(), 0):
        if axis >= -2:
            flow.fix(mask, axis, "is a sequence")
        elif mask.shape[axis] > 1:
            flow.tie_axes(result, axis, mask, axis, "has an attention mask or bias without heads")


def _heads(flow: Flow, operands: tuple[Tensor, Tensor, Tensor], axis: int) -> Labels | None:
    """Heads go together in query, key and value; a key or value head that serves several query heads goes with them."""
    vectors = [flow.vector(tensor, axis) for tensor in operands]
    labelled = [vector for vector in vectors if vector is not None]
    flow.space.heads += labelled
    if not labelled:
        return None
    query = vectors[0]
    for tensor, vector in zip(operands, vectors, strict=True):
        if vector is not None:
            flow.space.mark(vector, "attention")
        if vector is None or query is None:
            shared = operands[0].shape[axis] > 1 and tensor.shape[axis] == 1 and query is not None
            for labels in labelled if not shared else ():
                flow.space.freeze(labels, flow.located("attends to a tensor without heads"))
        else:
            flow.space.tie(query.reshape(len(vector), -1), vector[:, None])
    return query


@operator_rule("_grouped_mm")
def grouped_mm(flow: Flow, out: Tensor, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> None:
    """Rows of `x` times the matrix of the expert each belongs to: `weight` is (experts, in, out)."""
    flow.contract(x, -1, weight, -2, weight.dim() - 1)
    if weight.dim() == 3:
        flow.fix(weight, 0, "is a list of experts chosen by index")
    flow.put(out, axis_block(flow, flow.vector(weight, -1), out.dim() - 1))
