"""Random values for everything a model holds: what fresh models have in zeros and ones hides errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from itertools import chain
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

_PRIME = 1_000_003
_INITIALISERS = [name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")]


@contextmanager
def uninitialised() -> Iterator[None]:
    """Models built within the block skip the initialisers of PyTorch: their values are replaced anyway."""
    with patch.multiple(nn.init, **dict.fromkeys(_INITIALISERS, lambda tensor, *_, **__: tensor)):
        yield


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> None:
    """Fill every floating-point parameter and buffer, in place.

    Matrices and kernels get the scale that keeps activations in range (1/√fan-in), vectors lie around 1 when they are
    weights and around 0 when they are not, and variances are positive.
    """
    random = torch.Generator().manual_seed(seed)
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        last = name.rpartition(".")[2]
        noise = _noise(tensor.numel(), random).reshape(tensor.shape)
        if "var" in last:
            values = 0.5 + noise.abs()
        elif tensor.dim() > 1:
            values = noise * max(float(tensor[0].numel()) ** -0.5, 0.02)
        else:
            values = 0.3 * noise + ("weight" in last)
        tensor.copy_(values)


def _noise(count: int, random: torch.Generator) -> Tensor:
    """Normal numbers; of more than a prime number they repeat, which is faster, and leaves no two rows alike."""
    block = torch.randn(min(count, _PRIME), generator=random)
    return block if count <= _PRIME else block.repeat(-(-count // _PRIME))[:count]


def in_dtype(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point inputs in another type, in tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: in_dtype(item, dtype) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(in_dtype(item, dtype) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: in_dtype(getattr(value, field.name), dtype) for field in fields(value)})
    return value
