"""Running a model once: every tensor it answers with, and what was seen on the way (attention, casts)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def outputs(model: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Every floating-point tensor of the answer, from a fixed seed, in evaluation mode, without gradients."""
    torch.manual_seed(0)
    with torch.no_grad():
        answer = model.eval()(*args, **kwargs)
    return [x for x in tensors_in(answer) if x.is_floating_point() or x.is_complex()]


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists, dicts and objects."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [x for item in value.values() for x in tensors_in(item)]
    if isinstance(value, tuple | list):
        return [x for item in value for x in tensors_in(item)]
    return [x for item in vars(value).values() for x in tensors_in(item)] if hasattr(value, "__dict__") else []


def difference(left: list[Tensor], right: list[Tensor]) -> float:
    """max|a - b| / max|b|, the worst of all outputs; infinite where shapes or the number of outputs differ."""
    if [x.shape for x in left] != [x.shape for x in right]:
        return float("inf")
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        if b.numel():
            wide = torch.promote_types(b.dtype, torch.float64)
            error = float((a.to(wide) - b.to(wide)).abs().max() / (b.to(wide).abs().max() + torch.finfo(wide).tiny))
            worst = max(worst, float("inf") if error != error else error)
    return worst


class Seen(TorchDispatchMode):
    """What ran: whether there is attention, where float64 became something narrower, and who reads the inputs.

    Attention is a fused operator of that name, or a softmax over the product of two activations (both with equally many
    rows). Linear attention, which has no such softmax, does not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attention = False
        self.casts: Counter[str] = Counter()
        self.reading_inputs: set[nn.Module] = set()
        self.used: set[int] = set()  # where the memory of what operators read begins
        self._products: set[int] = set()
        self._running: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and look at what went in and came out."""
        result = operator(*args, **(kwargs or {}))
        name = str(operator)
        inputs = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
        self.used |= {x.untyped_storage().data_ptr() for x in inputs}
        if any(word in name for word in ("scaled_dot_product", "multi_head_attention", "transformer_encoder_layer")):
            self.attention = True
        elif "bmm" in name and not any(isinstance(x, nn.Parameter) for x in inputs):
            self._products.add(_rows(result))
        elif "_softmax" in name and "log" not in name and _rows(inputs[0]) in self._products:
            self.attention = True
        if any(x.dtype == torch.float64 for x in inputs):
            for x in tree_leaves(result):
                if isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64:
                    where = self._running[-1] if self._running else "the model"
                    self.casts[f"{str(x.dtype).removeprefix('torch.')} in {where}"] += 1
        return result

    @contextmanager
    def looking(self, inputs: Any = ()) -> Iterator[Seen]:
        """See what runs within the block, in which module, and which modules read these inputs."""
        given = {x.untyped_storage().data_ptr() for x in tensors_in(inputs)}

        def enter(module: nn.Module, args: Any) -> None:
            self._running.append(type(module).__name__)
            if any(x.untyped_storage().data_ptr() in given for x in tensors_in(args)):
                self.reading_inputs.add(module)

        hooks = (
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(lambda *_: self._running.pop() and None, always_call=True),
        )
        try:
            with self:
                yield self
        finally:
            for hook in hooks:
                hook.remove()


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1]
