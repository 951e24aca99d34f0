"""Tensors made to order: their values do not come from a neuron, only their sizes might (`calls` reads those)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from tracker.operators.registry import operator_rule

if TYPE_CHECKING:
    from tracker.flow import Flow


@operator_rule("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided")
def new(flow: Flow, out: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """A tensor of another's dtype and device."""


@operator_rule("as_strided")
def as_strided(flow: Flow, out: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """The same elements in another memory format, as pooling makes it; any other use of strides is out of sight."""
    axes = [axis for axis in range(out.dim()) if out.shape[axis] > 1]
    same = out.shape == x.shape and all(out.stride(axis) == x.stride(axis) for axis in axes)
    if same and sorted(axes, key=out.stride, reverse=True) == axes:
        flow.put(out, flow.blocks(x))
    else:
        flow.freeze(x, "is viewed by strides")
