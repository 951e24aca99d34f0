"""Attention as one operator: heads are a batch axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule, symbolic_trace
from torch.utils._pytree import tree_leaves

from tracker.labels import Block, Labels
from tracker.operators.contractions import axis_block
from tracker.operators.registry import operator_rule

if TYPE_CHECKING:
    from tracker.flow import Flow


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
    """Heads go together in query, key and value. A key or value that serves several queries goes with all of them, or
    each of these loses as many; which of both is decided with everything else.
    """
    vectors = [flow.vector(tensor, axis) for tensor in operands]
    labelled = [vector for vector in vectors if vector is not None]
    if not labelled:
        return None
    query = vectors[0]
    flow.space.heads += [vector for vector in labelled if query is None or len(vector) == len(query)]
    for tensor, vector in zip(operands, vectors, strict=True):
        if vector is not None:
            flow.space.mark(vector, "attention")
        if vector is None or query is None:
            shared = operands[0].shape[axis] > 1 and tensor.shape[axis] == 1 and query is not None
            for labels in labelled if not shared else ():
                flow.space.freeze(labels, flow.located("attends to a tensor without heads"))
        elif len(vector) == len(query):
            flow.space.tie(query, vector)
        else:
            shared_by = flow.space.fresh(len(query) // len(vector))
            flow.space.virtual.append(shared_by)
            flow.space.grid(query.reshape(len(vector), -1)).margins.update({0: vector, 1: shared_by})
    return query


@operator_rule("higher_order::flex_attention")
def flex_attention(
    flow: Flow, out: Any, query: Tensor, key: Tensor, value: Tensor, score: Any, mask: Any, *args: Any, **kwargs: Any
) -> None:
    """Attention whose scores and mask are functions of their position, of which the head is part."""
    if _names_head(score, 2) or _names_head(mask[-1], 1):
        for tensor in (query, key, value):
            flow.fix(tensor, 1, "has a number that the attention's scores or mask are computed from")
    attention(flow, out[0], query, key, value)
    for leaf in tree_leaves((mask, args, kwargs)):
        if isinstance(leaf, Tensor):
            flow.freeze(leaf, "is read inside of the attention's scores or mask")


def _names_head(function: Any, argument: int) -> bool:
    """Whether a function uses its argument of this number; one that cannot be traced may."""
    try:
        with torch._C._EnableTorchFunction():
            traced = function if isinstance(function, GraphModule) else symbolic_trace(function)
    except Exception:  # noqa: BLE001 (whatever a function does with what it is given)
        return True
    given = [node for node in traced.graph.nodes if node.op == "placeholder"]
    return bool(given[argument].users)
