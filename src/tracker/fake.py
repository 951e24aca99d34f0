"""Running a model on fake tensors: its own `forward`, every shape, no memory and no arithmetic."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from tracker.example_inputs import Call


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer once, by its first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """All names of every parameter and buffer, by its first name (tied weights and shared modules have several)."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    both = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in both:
        names.setdefault(first.setdefault(id(tensor), name), []).append(name)
    return {name: tuple(found) for name, found in names.items()}


@contextmanager
def stand_ins(
    model: nn.Module, shapes: Mapping[str, tuple[int, ...]] | None = None, *, real: bool = False
) -> Iterator[tuple[dict[str, Tensor], Callable[[Call], Call]]]:
    """Stand-ins for a model's tensors, and a function that makes a call out of them.

    Inside, operators run on shapes alone. `shapes` overrides the shape of tensors by their first name. With
    `real=True` the stand-ins are the values themselves (cut to `shapes` from the front), for models that look at them.
    """
    shapes = shapes or {}
    if real:
        yield (
            {name: _cut(t.detach(), shapes.get(name)) for name, t in tensors(model).items()},
            lambda call: Call(*tree_map_only(Tensor, Tensor.detach, (call.args, call.kwargs))),
        )
        return
    with FakeTensorMode(allow_non_fake_inputs=True), _quiet():

        def fake(tensor: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
            device = "cpu" if tensor.device.type == "meta" else tensor.device
            if shape is None and tensor.layout == torch.strided:
                return torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device=device)
            return torch.empty(shape or tuple(tensor.shape), dtype=tensor.dtype, device=device)

        yield (
            {name: fake(tensor, shapes.get(name)) for name, tensor in tensors(model).items()},
            lambda call: Call(*tree_map_only(Tensor, fake, (call.args, call.kwargs))),
        )


def run(model: nn.Module, stand_in: Mapping[str, Tensor], call: Call) -> Any:
    """The model's forward with stand-ins in place of its tensors."""
    return functional_call(model, dict(stand_in), call.args, call.kwargs, tie_weights=True)


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is as it was, whatever its forward kept."""
    saved = [(module, dict(vars(module))) for module in model.modules()]
    contents = [
        (value, value.copy())
        for _, attributes in saved
        for value in attributes.values()
        if isinstance(value, dict | list | set)
    ]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), unfused():
            for module in model.modules():
                module.training = False
            yield
    finally:
        for module, attributes in saved:
            vars(module).clear()
            vars(module).update(attributes)
        for container, content in contents:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)


@contextmanager
def unfused() -> Iterator[None]:
    """Attention and recurrent layers run as the operators they consist of, not as one that hides what reads what."""
    backends: Any = torch.backends
    before = backends.mha.get_fastpath_enabled(), backends.mkldnn.enabled
    backends.mha.set_fastpath_enabled(False)
    backends.mkldnn.enabled = False
    try:
        yield
    finally:
        backends.mha.set_fastpath_enabled(before[0])
        backends.mkldnn.enabled = before[1]


@contextmanager
def _quiet() -> Iterator[None]:
    """Failures on fake tensors are answers here; torch would log each with a traceback."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _cut(tensor: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    return tensor if shape is None else tensor[tuple(slice(0, size) for size in shape)].contiguous()
