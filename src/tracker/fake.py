"""Running a model on fake tensors: its own `forward`, every shape, no memory and no arithmetic."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from tracker.attention import let_follow
from tracker.caches import filled, function_caches_left
from tracker.compiled import as_written
from tracker.example_inputs import Call
from tracker.layouts import Shapes


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
    `real=True` the stand-ins are copies of the values (cut to `shapes` from the front), for models that look at them.
    To be used under `left_as_found`.
    """
    shapes = shapes or {}
    if real:
        _lend_attributes(model, _copied)
        yield (
            {name: _cut(t.detach(), shapes.get(name)) for name, t in tensors(model).items()},
            lambda call: Call(*tree_map_only(Tensor, _copied, (call.args, call.kwargs))),
        )
        return
    with Shapes() as mode, _quiet():

        def fake(tensor: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
            device = torch.device("cpu") if tensor.device.type == "meta" else tensor.device
            if shape is None and tensor.layout == torch.strided:
                return mode.empty(tensor.shape, tensor.stride(), tensor.dtype, device)
            return torch.empty(shape or tuple(tensor.shape), dtype=tensor.dtype, device=device)

        _lend_attributes(model, lambda tensor: fake(tensor) if tensor.is_meta else _copied(tensor))
        yield (
            {name: fake(tensor, shapes.get(name)) for name, tensor in tensors(model).items()},
            lambda call: Call(*tree_map_only(Tensor, fake, (call.args, call.kwargs))),
        )


def run(model: nn.Module, stand_in: Mapping[str, Tensor], call: Call) -> Any:
    """The model's forward with stand-ins in place of its tensors."""
    own = tensors(model)
    lent = {id(tensor): stand_in[name] for name, tensor in own.items()}
    places: list[tuple[Any, str, Tensor]] = [
        (place, name, tensor)
        for module in model.modules()
        for place in (module._parameters, module._buffers)
        for name, tensor in place.items()
        if tensor is not None
    ]
    try:
        for place, name, tensor in places:
            place[name] = lent[id(tensor)]
        return model(*call.args, **call.kwargs)
    finally:
        for place, name, tensor in places:
            place[name] = tensor


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, layers as they run with fewer neurons; afterwards everything is as it was,
    whatever the forward kept.
    """
    found = [_Found(module, type(module), module.training, dict(vars(module))) for module in model.modules()]
    contents = [
        (value, value.copy() if value else None)
        for one in found
        for value in one.attributes.values()
        if isinstance(value, dict | list | set)
    ]
    interrupt: KeyboardInterrupt | None = None
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=_cuda_devices(model)),
            unfused(),
            as_written(),
            function_caches_left(model),
        ):
            for module, name in filled(model):
                vars(module)[name].clear()
            for module in model.modules():
                module.training = False
                let_follow(module)
            yield
    finally:
        settled = False
        while not settled:
            try:
                _put_back(found, contents)
                settled = True
            except KeyboardInterrupt as again:  # must not leave half of each state: first put all back, then obey
                interrupt = again
        if interrupt is not None:
            raise interrupt


class _Found(NamedTuple):
    """A module before its forward ran."""

    module: nn.Module
    kind: type[nn.Module]
    training: bool
    attributes: dict[str, Any]


def _put_back(found: Sequence[_Found], contents: Sequence[tuple[Any, Any]]) -> None:
    """Every module's attributes, class and mode, and what the containers among the attributes held (None: nothing)."""
    for module, kind, training, attributes in found:
        own = vars(module)
        own.update(attributes)  # first, so that an error here leaves nothing missing
        for name in own.keys() - attributes.keys():
            del own[name]
        if type(module) is not kind:
            module.__class__ = kind
        if module.training is not training:  # a scripted module does not keep it among its attributes
            module.training = training
    for container, content in contents:
        if content is None:
            if container:
                container.clear()
        elif isinstance(container, list):
            container[:] = content
        else:
            container.update(content)
            if len(container) > len(content):
                for surplus in [key for key in container if key not in content]:
                    container.pop(surplus) if isinstance(container, dict) else container.discard(surplus)


@contextmanager
def unfused() -> Iterator[None]:
    """Attention and recurrent layers run as the operators they consist of, not as one that hides what reads what."""
    backends: Any = torch.backends
    before = backends.mha.get_fastpath_enabled(), backends.mkldnn.enabled, backends.cudnn.enabled
    try:
        backends.mha.set_fastpath_enabled(False)
        backends.mkldnn.enabled = backends.cudnn.enabled = False
        yield
    finally:
        backends.mha.set_fastpath_enabled(before[0])
        backends.mkldnn.enabled, backends.cudnn.enabled = before[1:]


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


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    return list({tensor.device for tensor in tensors(model).values() if tensor.device.type == "cuda"})


def _lend_attributes(model: nn.Module, stand_in: Callable[[Tensor], Tensor]) -> None:
    """Replace the tensors that modules keep beside parameters and buffers; `left_as_found` brings them back."""
    for module in model.modules():
        vars(module).update({name: stand_in(_leaf(t)) for name, t in vars(module).items() if isinstance(t, Tensor)})


def _leaf(tensor: Tensor) -> Tensor:
    """The tensor without the graph it came from, which nobody but a fake of it would look into."""
    with torch._C._DisableTorchDispatch():
        return tensor.detach()


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _cut(tensor: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    return _copied(tensor if shape is None else tensor[tuple(slice(0, size) for size in shape)])
