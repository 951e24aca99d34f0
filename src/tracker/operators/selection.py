"""Choices that the model makes among neurons, such as a router's among experts.

What is chosen among may have fewer to choose from: one that is not there is one that is never chosen. So a distribution
over it, its choice and its counts may lose neurons, and the positions that were chosen are followed to where they are
looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tracker.operators.contractions import axis_block
from tracker.operators.reductions import whole
from tracker.operators.registry import operator_rule

if TYPE_CHECKING:
    from tracker.flow import Flow

# Operators that hand the values of their first operand on, or some of them, and change none.
_PASSING = frozenset(
    "view _unsafe_view reshape _reshape_alias expand unsqueeze squeeze transpose t permute clone detach alias _to_copy "
    "contiguous lift_fresh slice select split split_with_sizes unbind sort index index_select gather".split()
)
LARGEST = "is searched for its largest entries"
_SORTED = "sort"  # its second result are positions of another kind


@operator_rule("topk")
def topk(
    flow: Flow, out: Sequence[Tensor], x: Tensor, k: int, dim: int = -1, largest: bool = True, *args: Any, **kwargs: Any
) -> None:
    """The largest along an axis, which must stay whole where nothing is looked up for those that are chosen."""
    found = flow.axis_of(x, dim)
    if found is None or found[0].joint or not largest or flow.is_static(x):
        whole(flow, out, x, dim, LARGEST)
        return
    labels = found[0].cells
    flow.space.freeze_unless_chosen(labels, flow.located(LARGEST))
    flow.space.mark(labels, "expert")
    flow.space.mark_inexact(labels, "the model chooses among them")
    flow.space.keep_at_least(labels, k)
    axis = dim % x.dim()
    for tensor in out:
        flow.put(tensor, [block for block in flow.blocks(x) if axis not in block.axes])
    flow.set_picks(out[1], labels)


@operator_rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax")
def softmax(flow: Flow, out: Tensor, x: Tensor, dim: int, *args: Any, **kwargs: Any) -> None:
    """A distribution over an axis, which must stay whole where it is not one to choose from."""
    _of_present(flow, out, x, dim, "is turned into a distribution")


@operator_rule("cumsum")
def cumsum(flow: Flow, out: Tensor, x: Tensor, dim: int, *args: Any, **kwargs: Any) -> None:
    """A running sum over an axis, which must stay whole where it has no counts of what was chosen."""
    _of_present(flow, out, x, dim, "is summed up along")


def _of_present(flow: Flow, out: Tensor, x: Tensor, dim: int, reason: str) -> None:
    found = flow.axis_of(x, dim)
    if found is None or found[0].joint or flow.is_static(x):
        whole(flow, out, x, dim, reason)
        return
    flow.space.freeze_unless_chosen(found[0].cells, flow.located(reason))
    flow.put(out, flow.blocks(x))


@operator_rule("histc", "bincount")
def counts(flow: Flow, out: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """How often each was chosen: as many counts as there are to choose from (`calls` reads the sizes named here)."""
    picks = flow.picks(x)
    if picks is None or len(picks) != len(out):
        flow.freeze(x, f"enters `{flow.operator}`, where values decide what comes out")
    else:
        flow.space.choose(picks)
        flow.put(out, axis_block(flow, picks, 0))


def carry_on(flow: Flow, func: Any, outputs: Sequence[Tensor], chosen: Tensor) -> None:
    """What becomes of positions that were chosen, in an operator whose rule does not see to them."""
    if id(chosen) in flow.asked:
        return
    picks = flow.carried(chosen).picks
    name = getattr(getattr(func, "overloadpacket", None), "__name__", "")
    if picks is None or getattr(func, "namespace", "") == "prim":  # which ask for the device, not for values
        return
    if name in _PASSING and outputs[0].dtype != torch.bool:
        for tensor in outputs[:1] if name == _SORTED else outputs:
            flow.set_picks(tensor, picks)
    else:
        flow.space.freeze(picks, flow.located(f"enters `{flow.operator}` as positions that were chosen"))
