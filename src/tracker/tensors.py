"""The tensors in what a model takes or answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set, ValuesView
from typing import Any

from torch import Tensor, nn

_CACHES = ("past_key_values", "cache_params", "mems")


def tensors_in(given: Any, *, caches: bool = True) -> list[Tensor]:
    """Every tensor in a value of any structure: tuples, dicts, dataclasses, objects with attributes.

    `caches=False` leaves out what language models keep for their next call.
    """
    found: list[Tensor] = []
    seen: set[int] = set()
    todo: list[Any] = [given]
    while todo:
        value = todo.pop(0)
        if isinstance(value, Tensor):
            found.append(value)
        elif id(value) in seen or isinstance(value, str | bytes | int | float | nn.Module | type(None)):
            continue
        elif isinstance(value, Mapping):
            todo.extend(item for key, item in value.items() if caches or key not in _CACHES)
        elif isinstance(value, Sequence | Set | ValuesView):
            todo.extend(value)
        elif hasattr(value, "__dict__"):
            todo.extend(vars(value).values())
        elif hasattr(value, "__slots__"):
            todo.extend(getattr(value, slot) for slot in value.__slots__ if hasattr(value, slot))
        seen.add(id(value))
    return found
