"""Two fingerprints of a model: of its structure, which training keeps, and of its content, which training changes."""

from __future__ import annotations

import hashlib
from itertools import chain

import torch
from torch import nn

from tracker.admission import unwrapped


def structure_fingerprint(model: nn.Module) -> str:
    """Names and shapes of all parameters and buffers, and the model's class; 16 hexadecimal digits.

    The same for a model trained further; another for one that was pruned. Buffers that are not saved do not count:
    some models make them anew in every forward.
    """
    digest = hashlib.sha256(type(unwrapped(model)).__qualname__.encode())
    for name, tensor in _tensors(model):
        digest.update(f"{name}:{tuple(tensor.shape)};".encode())
    return digest.hexdigest()[:16]


def content_fingerprint(model: nn.Module) -> str:
    """Structure plus every value and dtype; 16 hexadecimal digits. Reads all weights once."""
    digest = hashlib.sha256(structure_fingerprint(model).encode())
    for name, tensor in _tensors(model):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{plain.dtype};".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    inner = unwrapped(model)
    passing = {
        f"{name}.{buffer}".lstrip(".")
        for name, module in inner.named_modules(remove_duplicate=False)
        for buffer in module._non_persistent_buffers_set
    }
    both = chain(inner.named_parameters(remove_duplicate=False), inner.named_buffers())
    return sorted(((name, tensor) for name, tensor in both if name not in passing), key=lambda item: item[0])
