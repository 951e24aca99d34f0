"""Pooling, resizing and padding act on the trailing axes; the channels pass through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from tracker.operators.registry import operator_rule

if TYPE_CHECKING:
    from tracker.flow import Flow

_PLANAR = (
    "max_pool2d_with_indices max_pool2d avg_pool2d _adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d "
    "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d _upsample_bilinear2d_aa "
    "_upsample_bicubic2d_aa reflection_pad2d replication_pad2d grid_sampler_2d grid_sampler"
).split()
_LINEAR = (
    "max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d upsample_nearest1d upsample_linear1d "
    "_upsample_nearest_exact1d reflection_pad1d replication_pad1d"
).split()
_VOLUME = (
    "max_pool3d_with_indices max_pool3d avg_pool3d _adaptive_avg_pool3d adaptive_avg_pool3d adaptive_max_pool3d "
    "upsample_nearest3d upsample_trilinear3d _upsample_nearest_exact3d reflection_pad3d replication_pad3d"
).split()


def _trailing(flow: Flow, out: Any, x: Tensor, count: int) -> None:
    for axis in range(x.dim() - count, x.dim()):
        flow.fix(x, axis, f"is an axis that `{flow.operator}` works along")
    for tensor in tree_leaves(out):
        if isinstance(tensor, Tensor):
            flow.put(tensor, flow.blocks(x))


@operator_rule(*_LINEAR)
def linear(flow: Flow, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """One trailing axis."""
    _trailing(flow, out, x, 1)


@operator_rule(*_PLANAR)
def planar(flow: Flow, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Two trailing axes."""
    _trailing(flow, out, x, 2)


@operator_rule(*_VOLUME)
def volume(flow: Flow, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Three trailing axes."""
    _trailing(flow, out, x, 3)


@operator_rule("constant_pad_nd", "pad")
def pad(flow: Flow, out: Tensor, x: Tensor, padding: list[int], *args: Any, **kwargs: Any) -> None:
    """`padding` names (before, after) from the last axis on; an axis that is padded keeps its size."""
    for i in range(len(padding) // 2):
        if any(padding[2 * i : 2 * i + 2]):
            flow.fix(x, -1 - i, "is padded")
    flow.put(out, flow.blocks(x))
