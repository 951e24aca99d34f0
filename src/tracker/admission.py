"""Which models are let in: the module under a wrapper, or a clear word why not and what to do."""

from __future__ import annotations

from torch import nn

from tracker.errors import DiscoveryError


def unwrapped(model: nn.Module) -> nn.Module:
    """The module under `torch.compile`'s wrapper, or the model itself."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def admitted(model: nn.Module) -> nn.Module:
    """The module to be looked at; raises `DiscoveryError` where its weights are none that neurons can be cut from."""
    model = unwrapped(model)
    if not isinstance(model, nn.Module):
        raise DiscoveryError(f"A model is a torch.nn.Module, not {type(model).__name__}.")
    if next(model.parameters(), None) is None:
        raise DiscoveryError(f"{type(model).__name__} has no parameters.", hint="Nothing can be pruned.")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise DiscoveryError(
                f"Parameter '{name}' is not initialised yet.", hint="Run one forward of the lazy model first."
            )
        if parameter.is_quantized or not (parameter.is_floating_point() or parameter.is_complex()):
            raise DiscoveryError(
                f"Parameter '{name}' holds quantised weights ({parameter.dtype}).",
                hint="Prune the model before it is quantised.",
            )
    return model
