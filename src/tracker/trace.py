"""One run of a model's own `forward` with labels on its tensors.

Two modes look on. `Operators` sees every aten operator and lets its rule (`tracker.operators`) say which labels the
output carries and which it ties together; an operator without a rule freezes what enters it. `_Functions` sees the
calls above, where integers still know their origin (`tracker.sizes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tracker import calls
from tracker.findings import Frame
from tracker.flow import Flow, storage
from tracker.numbers import use_of
from tracker.operators import rule_for
from tracker.operators.selection import carry_on
from tracker.rephrased import REPHRASED
from tracker.tensors import tensors_in


class Operators(TorchDispatchMode):
    """Applies the rule of every operator."""

    supports_higher_order_operators = True

    def __init__(self, flow: Flow) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flow = flow

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and to say so at every operator takes time

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # every other operator is this question
            return func(*args)
        with torch._C.DisableTorchFunction():  # what reads sizes in here is not the model's code
            return self._apply(func, args, kwargs or {})

    def _apply(self, func: Any, args: Any, kwargs: Any) -> Any:
        flow = self.flow
        flow.constants.extend(use_of(func, args, kwargs))
        rule = rule_for(func)
        if rule is None and _is_composite(func):  # these come here in inference mode only
            return flow.follow(lambda: func.decompose(*args, **kwargs))
        given = args
        if torch.Tag.inplace_view in getattr(func, "tags", ()):  # its rule needs to see the tensor as it was
            given = (flow.as_it_is(args[0]), *args[1:])
        out = func(*args, **kwargs)
        inputs = list(_tensors((*args, *kwargs.values())))
        outputs = [out] if isinstance(out, Tensor) else list(_tensors((out,)))
        for tensor in inputs if flow.unused else ():
            flow.used(tensor)
        origins = [flow.origin(tensor) for tensor in inputs]
        known = [origin for origin in origins if origin is not None]
        origin = frozenset().union(*known) if len(known) == len(origins) else None
        flow.operator = str(func)
        picked = [tensor for tensor in inputs if flow.carried(tensor).picks is not None]
        labelled = bool(picked) or any(flow.blocks(tensor) for tensor in inputs)
        flow.asked.clear()
        if rule is not None and (labelled or flow.call.matches_operands):
            rule(flow, out, *given, **kwargs)
        elif labelled and outputs:
            flow.operators_without_rule[flow.operator] += 1
            for tensor in inputs:
                flow.freeze(tensor, f"enters `{flow.operator}`, which has no rule")
        elif origin is None:
            for tensor in inputs:
                flow.note_unlabelled(tensor)
        for tensor in outputs:
            flow.set_origin(tensor, origin)
        for tensor in picked:
            carry_on(flow, func, outputs, tensor)
        if origin is None and isinstance(func, torch._ops.OpOverload) and func._schema.is_mutable:
            for argument, value in zip(func._schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    flow.overwritten.update((storage(leaf), leaf) for leaf in tree_leaves(value))
        return out


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments, also in lists (most arguments are neither)."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple | dict):
            yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _is_composite(func: Any) -> bool:
    """Whether PyTorch itself says which operators this one consists of."""
    return (
        isinstance(func, torch._ops.OpOverload)
        and func.namespace == "aten"
        and func.has_kernel_for_dispatch_key(_COMPOSITE)
    )


_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


class _Functions(TorchFunctionMode):
    """Watches sizes where they still know their origin."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flow = self.flow
        if func == calls.SHAPE_GETTER:
            func(*args)
            return torch.Size(flow.tracked_shape(args[0]))
        if func is Tensor.size:
            axis = args[1] if len(args) > 1 else kwargs.get("dim")
            return torch.Size(flow.tracked_shape(args[0])) if axis is None else flow.tracked_size(args[0], axis)
        if func in (Tensor.numel, Tensor.nelement, torch.numel):
            count: int = 1
            for size in flow.tracked_shape(args[0]):
                count = size * count
            return count
        outer, flow.call = flow.call, calls.Call.of(func, args, kwargs)
        try:
            out = REPHRASED.get(func, func)(*args, **kwargs)
            calls.interpret(flow, flow.call, out)
            return out
        finally:
            flow.call = outer


def run(flow: Flow, model: nn.Module, call: Callable[[], Any]) -> Any:
    """Run `call` (a forward of `model`) with labels flowing; the stack of running modules is kept by hooks."""
    handles = []
    flow.watching = partial(Operators, flow)
    for name, module in model.named_modules():
        flow.names[id(module)] = name
        if isinstance(module, torch.jit.ScriptModule):
            continue

        def enter(module: nn.Module, args: Any, name: str = name) -> None:
            flow.frames.append(Frame(name, module))

        def leave(module: nn.Module, args: Any, out: Any) -> None:
            flow.frames.pop()

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave))
    try:
        with _Functions(flow), Operators(flow):
            return call()
    finally:
        for handle in handles:
            handle.remove()


def freeze_outputs(flow: Flow, output: Any) -> None:
    """What the model returns must stay as it is."""
    for tensor in tensors_in(output, caches=False):
        flow.used(tensor)
        flow.freeze(tensor, "is the model's output")
