"""Normalisations: exact where each channel is normalised alone, inexact where neurons are normalised together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tracker.labels import Labels
from tracker.operators.registry import operator_rule
from tracker.sizes import Tracked

if TYPE_CHECKING:
    from tracker.flow import Flow

TOGETHER = "its neurons are normalised together"


@operator_rule(
    "batch_norm",
    "native_batch_norm",
    "cudnn_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_native_batch_norm_legit_functional",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
)
def batch_norm(flow: Flow, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Every channel has a weight, a bias and running statistics of its own; over other axes it is normalised together.

    (Weight standardisation is a batch norm whose other axes are a weight's inputs.)
    """
    for axis in range(x.dim()):
        if axis != 1 and (labels := flow.vector(x, axis)) is not None:
            flow.space.mark_inexact(labels, TOGETHER)
    for tensor in args:
        if isinstance(tensor, Tensor) and tensor.dim():
            flow.tie_axes(x, 1, tensor, 0, "is batch-normalised without neurons")
    flow.put(out if isinstance(out, Tensor) else out[0], flow.blocks(x))


@operator_rule("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(flow: Flow, out: Any, x: Tensor, shape: Sequence[int], *args: Any, **kwargs: Any) -> None:
    """The trailing axes are normalised together."""
    first = x.dim() - len(shape)
    given = flow.call.argument("normalized_shape", 1)
    for offset in range(len(shape)):
        axis = first + offset
        found = flow.axis_of(x, axis)
        if found is None:
            continue
        flow.space.mark_inexact(flow.space.margin(*found), TOGETHER)
        size = given[offset] if isinstance(given, Sequence) and len(given) == len(shape) else None
        if isinstance(size, Tracked):
            flow.explain_axis(size.expression, *found)
        elif size is not None:
            flow.fix(x, axis, f"is normalised with the constant size {int(size)}")
    for tensor in args:
        if isinstance(tensor, Tensor):
            for offset in range(len(shape)):
                flow.tie_axes(x, first + offset, tensor, offset, "is normalised without neurons")
    result = out if isinstance(out, Tensor) else out[0]
    flow.put(result, flow.blocks(x))


@operator_rule("group_norm", "native_group_norm")
def group_norm(flow: Flow, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Channels are normalised in groups, which go as a whole; each alone where there are as many groups as channels."""
    groups = next(value for value in reversed(args) if isinstance(value, int) and not isinstance(value, bool))
    if flow.operator.startswith("aten.group_norm"):
        groups = args[0]
    for tensor in args:
        if isinstance(tensor, Tensor):
            flow.tie_axes(x, 1, tensor, 0, "is normalised without neurons")
    channels, found = flow.vector(x, 1), flow.axis_of(x, 1)
    if channels is not None and found is not None:
        _groups(flow, channels, found, groups)
    flow.put(out if isinstance(out, Tensor) else out[0], flow.blocks(x))


def _groups(flow: Flow, channels: Labels, found: tuple[Any, int], groups: int) -> None:
    given = flow.call.argument("num_groups", 1)
    if groups < len(channels):
        per_group = channels.reshape(groups, -1)
        if isinstance(given, Tracked) and groups > 1:  # a whole group can go, and leaves the others as they are
            flow.explain_count(given.expression, flow.space.tie_along(per_group, 1))
            return
        flow.space.tie(per_group[:1], per_group)
        flow.space.mark_inexact(channels, TOGETHER)
        return
    if isinstance(given, Tracked):
        flow.explain_axis(given.expression, *found)
    else:
        flow.space.freeze(channels, flow.located("is normalised in a constant number of groups"))


@operator_rule("_weight_norm_interface")
def weight_norm(flow: Flow, out: tuple[Tensor, Tensor], weight: Tensor, length: Tensor, dim: int = 0) -> None:
    """`weight · length / ‖weight‖`: each index of `dim` has a norm of its own, which all others make together.

    Where both are parameters, the length can make up for what is gone from the norm.
    """
    dim %= weight.dim()
    others = [flow.vector(weight, axis) for axis in range(weight.dim()) if axis != dim]
    summed = tuple(labels for labels in others if labels is not None)
    for labels in flow.note_length(weight, length, dim, summed):
        flow.space.mark_inexact(labels, TOGETHER)
    flow.tie_axes(weight, dim, length, dim, "is normalised without neurons")
    flow.put(out[0], flow.blocks(weight))
    flow.put(out[1], flow.blocks(length))
