"""What a model's code keeps from one forward to the next: function caches, and tensors that modules put into a dict.

Neither may outlive a look at the model, where tensors are not real, nor a pruning, after which their shapes are wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import _lru_cache_wrapper, cache
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


@contextmanager
def function_caches_left(model: nn.Module) -> Iterator[None]:
    """Whatever the `functools` caches of the model's library take in within the block, they forget."""
    packages = {type(module).__module__.partition(".")[0] for module in model.modules()} - {"torch"}
    caches = [found for package in sorted(packages) for found in _of_package(package, len(sys.modules))]
    before = [found.cache_info().misses for found in caches]
    try:
        yield
    finally:
        for found, misses in zip(caches, before, strict=True):
            if found.cache_info().misses != misses:
                found.cache_clear()


@cache
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
    """Attributes that a forward has filled: dicts of nothing but tensors, beside those that the model cannot miss."""
    return [
        (module, name)
        for module in model.modules()
        for name, value in vars(module).items()
        if type(value) is dict
        and value
        and name not in _OWN
        and name not in _needed.get(module, ())
        and all(map(_is_tensors, value.values()))
    ]


def set_needed(module: nn.Module, name: str, is_needed: bool) -> None:
    """Say whether a forward does not fill this attribute, but needs what is in it."""
    names = _needed.setdefault(module, set())
    (names.add if is_needed else names.discard)(name)


_OWN = frozenset(vars(nn.Module()))
_needed: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def _is_tensors(value: Any) -> bool:
    leaves = tree_leaves(value)
    return bool(leaves) and all(isinstance(leaf, Tensor) for leaf in leaves)
