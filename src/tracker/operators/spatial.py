"""Pooling, resizing and padding act on the trailing axes; the channels pass through."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from tracker.labels import Block
from tracker.operators.contractions import axis_block, other_axes
from tracker.operators.pointwise import combine
from tracker.operators.registry import operator_rule

if TYPE_CHECKING:
    from tracker.flow import Flow

_PLANAR = (
    "max_pool2d_with_indices max_pool2d avg_pool2d _adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d "
    "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d _upsample_bilinear2d_aa "
    "_upsample_bicubic2d_aa _upsample_lanczos2d_aa reflection_pad2d replication_pad2d"
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


@operator_rule("max_unpool2d", "max_unpool3d")
def unpool(flow: Flow, out: Tensor, x: Tensor, places: Tensor, *args: Any, **kwargs: Any) -> None:
    """Every entry goes back to where pooling found it."""
    count = 2 if flow.operator.startswith("aten.max_unpool2d") else 3
    for tensor in (x, places):
        for axis in range(-count, 0):
            flow.fix(tensor, axis, "is unpooled")
    combine(flow, out, [x, places])


@operator_rule("grid_sampler_2d", "grid_sampler_3d", "grid_sampler", "_grid_sampler_2d_cpu_fallback")
def grid_sampler(flow: Flow, out: Tensor, x: Tensor, places: Tensor, *args: Any, **kwargs: Any) -> None:
    """Every channel of `x`, read at `places` (batch, …, coordinates)."""
    for axis in range(2, x.dim()):
        flow.fix(x, axis, "is an axis that is sampled")
    for axis in range(1, places.dim()):
        flow.fix(places, axis, "says where to sample")
    flow.tie_axes(x, 0, places, 0, "is sampled at places without neurons")
    flow.put(out, flow.blocks(x))


@operator_rule("affine_grid_generator")
def affine_grid(flow: Flow, out: Tensor, transform: Tensor, *args: Any, **kwargs: Any) -> None:
    """A grid of places for every transformation (batch, 2, 3)."""
    for axis in (1, 2):
        flow.fix(transform, axis, "is a transformation of places")
    flow.put(out, flow.blocks(transform))


@operator_rule("im2col")
def im2col(flow: Flow, out: Tensor, x: Tensor, kernel: Sequence[int], *args: Any, **kwargs: Any) -> None:
    """Windows of pictures (…, C, H, W) become columns (…, C · window, places)."""
    for axis in (-2, -1):
        flow.fix(x, axis, "is cut into windows")
    channel, window = x.dim() - 3, math.prod(kernel)
    blocks = []
    for axes, grid in flow.blocks(x):
        many = grid if channel not in axes else flow.space.grid(grid.cells.repeat(window, axes.index(channel)))
        blocks.append(Block(axes, many))
    flow.put(out, blocks)


@operator_rule("col2im")
def col2im(
    flow: Flow, out: Tensor, x: Tensor, size: Sequence[int], kernel: Sequence[int], *args: Any, **kwargs: Any
) -> None:
    """Columns (…, C · window, places) are added up to pictures (…, C, H, W)."""
    flow.fix(x, -1, "is a list of windows")
    channel, blocks = x.dim() - 2, [block for block in flow.blocks(x) if x.dim() - 2 not in block.axes]
    if (labels := flow.vector(x, channel)) is not None:
        windows = labels.reshape(-1, math.prod(kernel))
        blocks += axis_block(flow, flow.space.tie_along(windows, 1), channel)
    flow.put(out, [*blocks, *other_axes(flow, x, [channel])])


@operator_rule(*(f"torchvision::{name}" for name in ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")))
def regions(flow: Flow, out: Any, x: Tensor, boxes: Tensor, *args: Any) -> None:
    """Regions of pictures, one after the other, in one size; where the name begins with `ps`, channels are places."""
    flow.freeze(boxes, "says which regions to look at")
    for axis in (0, 2, 3) if ".ps_" not in flow.operator else range(4):
        flow.fix(x, axis, "is looked at in regions")
    pooled = out if isinstance(out, Tensor) else out[0]
    flow.put(pooled, flow.blocks(x))
