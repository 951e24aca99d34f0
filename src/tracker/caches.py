"""What a model's code keeps from one forward to the next: function caches, and tensors that modules put into a dict.

Neither may outlive a look at the model, where tensors are not real, nor a pruning, after which their shapes are wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import _lru_cache_wrapper, lru_cache
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


@contextmanager
def function_caches_left(model: nn.Module) -> Iterator[None]:
    """The `functools` caches of the model's library that take something in within the block are emptied after it."""
    packages = {type(module).__module__.partition(".")[0] for module in model.modules()} - {"torch"}
    caches = [found for package in sorted(packages) for found in _of_package(package, len(sys.modules))]
    before = [found.cache_info().misses for found in caches]
    try:
        yield
    finally:
        for found, misses in zip(caches, before, strict=True):
            if found.cache_info().misses != misses:
                found.cache_clear()


@lru_cache(maxsize=16)
def _of_package(package: str, loaded: int) -> tuple[_lru_cache_wrapper[Any], ...]:
    """The function caches of a package, looked for again when more modules are `loaded`."""
    found: dict[int, _lru_cache_wrapper[Any]] = {}
    for name, module in list(sys.modules.items()):
        if name == package or name.startswith(f"{package}."):
            for value in list(getattr(module, "__dict__", {}).values()):
                members = vars(value).values() if isinstance(value, type) else ()
                for member in (value, *members):
                    found.update((id(wrapper), wrapper) for wrapper in _within(member))
    return tuple(found.values())


def _within(value: Any) -> Iterator[_lru_cache_wrapper[Any]]:
    """A function cache, or those that a function keeps in its closure, as decorators do."""
    if isinstance(value, _lru_cache_wrapper):
        yield value
    elif isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            try:
                kept = cell.cell_contents
            except ValueError:  # an empty cell
                continue
            if isinstance(kept, _lru_cache_wrapper):
                yield kept


def filled(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Attributes that a forward has filled, and fills again: dicts of tensors of which that is known (`decide`)."""
    return [(module, name) for module, name in _dicts(model) if _refilled.get(module, {}).get(name)]


def undecided(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Dicts of tensors of which it is not known whether a forward fills them, or needs what is in them."""
    return [(module, name) for module, name in _dicts(model) if name not in _refilled.get(module, {})]


def decide(module: nn.Module, name: str, *, refilled: bool) -> None:
    """Say whether a forward fills this attribute again when it is empty."""
    _refilled.setdefault(module, {})[name] = refilled


def _dicts(model: nn.Module) -> list[tuple[nn.Module, str]]:
    return [
        (module, name)
        for module in model.modules()
        for name, value in vars(module).items()
        if type(value) is dict and value and name not in _OWN and all(map(_is_tensors, value.values()))
    ]


_OWN = frozenset(vars(nn.Module()))
_refilled: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()


def _is_tensors(value: Any) -> bool:
    leaves = tree_leaves(value)
    return bool(leaves) and all(isinstance(leaf, Tensor) for leaf in leaves)


@contextmanager
def decoding_off(model: nn.Module) -> Iterator[None]:
    """Within the block, models of transformers keep no keys and values for the next token.

    A block that is run again on what it was given before would find those of its last run in there.
    """
    found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(config): config for config in found if getattr(config, "use_cache", None) is True}
    try:
        for config in configs.values():
            config.use_cache = False
        yield
    finally:
        for config in configs.values():
            config.use_cache = True
