"""A model's bones: its classes, integers and shapes, without the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tracker.admission import unwrapped
from tracker.errors import CheckpointError

MODULE_INTERNALS = frozenset(vars(nn.Module()))


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of `model` without weights: its parameters and buffers are on the meta device and take no memory.

    Raises `CheckpointError` where something in the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    for _, value in plain_tensors(model):
        if not value.is_leaf:  # left by an earlier forward; such a tensor cannot be copied otherwise
            memo.setdefault(id(value), value.detach().clone())
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{type(model).__name__} cannot be copied: {error}.", hint="Pass a callable that builds the model."
        ) from error


def built_by(build: Callable[[], nn.Module]) -> nn.Module:
    """What a callable builds: on the meta device, or for real where it looks at values or keeps tensors to itself."""
    with torch.random.fork_rng(devices=[]):
        built = None
        with suppress(Exception), torch.device("meta"):  # whatever it is, it comes again without the meta device
            built = build()
        if not isinstance(built, nn.Module) or any(tensor.is_meta for _, tensor in plain_tensors(built)):
            built = build()
    if not isinstance(built, nn.Module):
        raise CheckpointError(
            f"The model was to be built by a callable, which returned {type(built).__name__}.",
            hint="Pass a module, or a callable without arguments that returns one.",
        )
    return unwrapped(built)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer under all its names, also the buffers that a state_dict leaves out."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def stored_names(model: nn.Module) -> set[str]:
    """The names that a state_dict holds: all of `named_tensors` but the buffers that are not persistent."""
    transient = {
        f"{name}.{buffer}".lstrip(".")
        for name, module in model.named_modules(remove_duplicate=False)
        for buffer in module._non_persistent_buffers_set
    }
    return {name for name, _ in named_tensors(model)} - transient


def plain_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that modules keep as plain attributes, unknown to `parameters()` and `buffers()`."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute not in MODULE_INTERNALS:
                for leaf in tree_leaves(value):
                    if isinstance(leaf, Tensor):
                        yield f"{name}.{attribute}".lstrip("."), leaf
