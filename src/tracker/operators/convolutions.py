"""Convolutions: plain, depthwise, grouped, transposed, deformable; kernels keep their size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from tracker.labels import Labels
from tracker.operators.contractions import axis_block
from tracker.operators.registry import operator_rule
from tracker.sizes import Tracked

if TYPE_CHECKING:
    from tracker.flow import Flow

CONSTANT_GROUPS = "is convolved in a constant number of groups"
KERNEL = "is a kernel"


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


@operator_rule("conv_tbc")
def conv_tbc(flow: Flow, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *args: Any) -> None:
    """A convolution over time of (time, batch, channel) with (kernel, in, out)."""
    flow.fix(weight, 0, KERNEL)
    flow.fix(x, 0, "is an axis that is convolved over")
    flow.contract(x, 2, weight, 1, 2)
    flow.put(out, [*axis_block(flow, flow.vector(x, 1), 1), *axis_block(flow, flow.vector(weight, 2), 2)])
    flow.tie_axes(out, 2, bias, 0, "has a bias without neurons")


@operator_rule("torchvision::deform_conv2d")
def deformable(
    flow: Flow, out: Tensor, x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *numbers: int
) -> None:
    """A convolution that looks where `offset` says; `numbers` end with its groups, those of the offsets and a flag."""
    for tensor in (offset, mask):
        for axis in range(1, tensor.dim()):
            flow.fix(tensor, axis, "says where to convolve")
    for axis in (2, 3):
        flow.fix(weight, axis, KERNEL)
        flow.fix(x, axis, "is an axis that is convolved over")
    *_, groups, offset_groups, _ = numbers
    if (groups, offset_groups) != (1, 1):
        for axis in (0, 1):
            flow.fix(weight, axis, CONSTANT_GROUPS)
        flow.fix(x, 1, CONSTANT_GROUPS)
    flow.contract(x, 1, weight, 1, 0)
    flow.put(out, [*axis_block(flow, flow.vector(x, 0), 0), *axis_block(flow, flow.vector(weight, 0), 1)])
    flow.tie_axes(out, 1, bias, 0, "has a bias without neurons")
