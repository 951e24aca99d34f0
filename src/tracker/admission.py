"""Which models are let in: the module under a wrapper, or a clear word why not and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from tracker.errors import DiscoveryError

_BEFORE_QUANTISING = "Prune the model before it is quantised or prepared for that."
_QUANTISERS = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.sparse.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.ao.nn.intrinsic.qat",
    "torch.ao.nn.qat",
    "torch.ao.quantization",
    "torchao",
    "bitsandbytes",
)
_BY_NAME = (Mapping, nn.ModuleDict, nn.ParameterDict)
_PACKED = (torch.int8, torch.uint8, torch.int32)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module under the wrappers of `torch.compile`, `DataParallel` and `DistributedDataParallel`."""
    while True:
        inside = getattr(model, "_modules", {})
        if "_orig_mod" in inside:  # torch.compile's, whose class takes seconds to import
            model = inside["_orig_mod"]
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def admitted(model: nn.Module) -> nn.Module:
    """The module under the wrappers, if its neurons can be looked at.

    Raises `DiscoveryError` where its weights are none that neurons can be cut from: sharded, offloaded, quantised,
    sparse, of an unknown kind, not initialised, or held by adapters that are not in use.
    """
    model = unwrapped(model)
    if not isinstance(model, nn.Module):
        raise DiscoveryError(f"A model is a torch.nn.Module, not {type(model).__name__}.", hint=_parts(model))
    for name, module in model.named_modules():
        _check_module(name, module)
    for name, parameter in model.named_parameters():
        _check_parameter(name, parameter)
    for name, buffer in model.named_buffers():
        _check_kind(f"Buffer '{name}'", buffer)
    if next(model.parameters(), None) is None:
        raise DiscoveryError(f"{type(model).__name__} has no parameters.", hint="Nothing can be pruned.")
    return model


def admitted_for_change(model: nn.Module) -> nn.Module:
    """The module under the wrappers, if neurons can be cut from it.

    Raises `DiscoveryError` where `admitted` does, and for a wrapper that has to be told of new sizes.
    """
    for name, module in getattr(model, "named_modules", tuple)():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise DiscoveryError(
                f"{_called(name, module)} holds buffers of the sizes that the gradients have now.",
                hint="Prune the model inside of it (its `.module`), on every process alike, and wrap it again.",
            )
    return admitted(model)


def _check_module(name: str, module: nn.Module) -> None:
    kind, package = type(module).__name__, type(module).__module__
    if isinstance(module, torch.jit.ScriptModule) and not name:
        raise DiscoveryError(f"{kind} is a scripted or traced model.", hint="Prune the model it was made from.")
    if isinstance(module, fx.GraphModule) and "eval" in vars(module):
        raise DiscoveryError(
            f"{_called(name, module)} comes from torch.export, which wrote today's sizes into it.",
            hint="Prune the model it was exported from, and export it again.",
        )
    if kind == "FullyShardedDataParallel":
        raise _sharded(_called(name, module))
    if any(package == quantiser or package.startswith(f"{quantiser}.") for quantiser in _QUANTISERS):
        raise DiscoveryError(
            f"{_called(name, module)} is of {package}: it holds quantised weights or prepares for them.",
            hint=_BEFORE_QUANTISING,
        )
    own = list(chain(module._parameters.items(), module._buffers.items()))
    packed = [key for key, tensor in own if tensor is not None and tensor.dtype in _PACKED and tensor.dim() > 1]
    if packed and any("scale" in key for key, _ in own):
        dtype = getattr(module, packed[0]).dtype
        raise DiscoveryError(
            f"{_called(name, module)} holds quantised weights ('{packed[0]}', {dtype}).", hint=_BEFORE_QUANTISING
        )
    hook = vars(module).get("_hf_hook")
    if any(getattr(one, "offload", False) for one in (hook, *getattr(hook, "hooks", ()))):
        raise DiscoveryError(
            f"{_called(name, module)} has weights that accelerate keeps elsewhere and brings for each forward.",
            hint="Load the model without offloading; its weights may then be on any device.",
        )
    if hasattr(type(module), "merged_adapters"):
        _check_adapters(name, module)


def _check_adapters(name: str, module: Any) -> None:
    """All adapters of a layer (peft's) must take part in its forward, or they would keep the old shapes."""
    kept = (getattr(module, attribute, None) for attribute in getattr(module, "adapter_layer_names", ()))
    adapters = {key for layers in kept if isinstance(layers, _BY_NAME) for key in layers}
    if module.merged_adapters:
        raise DiscoveryError(
            f"{_called(name, module)}: the adapter {_listed(module.merged_adapters)} is merged but still there, and "
            "could not be unmerged from smaller weights.",
            hint="Call merge_and_unload() for a plain model, or unmerge_adapter().",
        )
    idle = adapters if module.disable_adapters else adapters - set(module.active_adapters)
    if idle:
        raise DiscoveryError(
            f"{_called(name, module)}: the adapter {_listed(sorted(idle))} is not in use, so it would keep its shapes.",
            hint="Use all adapters (enable_adapter_layers(), set_adapter([...])), or delete those that are not needed.",
        )


def _check_parameter(name: str, parameter: Tensor) -> None:
    where = f"Parameter '{name}'"
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise DiscoveryError(f"{where} is not initialised yet.", hint="Run one forward of the lazy model first.")
    numbers = parameter.is_floating_point() or parameter.is_complex()
    if parameter.is_quantized or not numbers or parameter.itemsize == 1:
        raise DiscoveryError(f"{where} holds quantised weights ({parameter.dtype}).", hint=_BEFORE_QUANTISING)
    if parameter.layout != torch.strided:
        raise DiscoveryError(f"{where} is sparse ({parameter.layout}).", hint="Make it dense: parameter.to_dense().")
    if hasattr(parameter, "ds_id"):
        raise _sharded(where)
    _check_kind(where, parameter)


def _check_kind(where: str, tensor: Tensor) -> None:
    """A tensor that acts in its own way may hide its values anywhere."""
    kind = type(tensor)
    if kind.__name__ == "DTensor":
        raise _sharded(where)
    own = {name for base in kind.__mro__[: -len(Tensor.__mro__)] if base is not nn.Parameter for name in vars(base)}
    if own & {"__torch_function__", "__torch_dispatch__"}:
        raise DiscoveryError(
            f"{where} is a {kind.__module__}.{kind.__qualname__}, and it is not known how to cut one.",
            hint="Use plain tensors while pruning. If it holds quantised weights, prune before quantising.",
        )


def _sharded(where: str) -> DiscoveryError:
    return DiscoveryError(
        f"{where} is spread over processes.",
        hint="Prune the whole model before it is sharded (FSDP, tensor parallelism, ZeRO), on every process alike. "
        "A sharded one: save its full state dict, load it into a plain model, and prune that.",
    )


def _parts(given: Any) -> str:
    """What to do with something that is no module but may hold some."""
    if type(given).__name__ == "ExportedProgram":
        return "Prune the model it was exported from, and export it again."
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(given, Mapping):
        items = given.items()
    elif isinstance(given, Sequence):
        items = enumerate(given)
    elif hasattr(given, "__dict__"):
        items = vars(given).items()
    inside = [key for key, value in items if isinstance(value, nn.Module)]
    return f"Prune the modules in it one by one: {_listed(inside)}." if inside else ""


def _called(name: str, module: nn.Module) -> str:
    return f"'{name}' ({type(module).__name__})" if name else type(module).__name__


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(repr(name) for name in names)
