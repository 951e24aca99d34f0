"""Which slices a subscript such as `x[:, :n, None]` makes, and with which bounds the code named them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, SupportsIndex

import torch
from torch import Tensor


class Bounds(NamedTuple):
    """Where a slice starts and stops, as the code named it; `item` is its place in the subscript, if it is in one."""

    start: Any
    stop: Any
    item: int | None = None


class Slice(NamedTuple):
    """A slice of one axis: its bounds as given, and whether it leaves something out."""

    axis: int
    bounds: Bounds
    cuts: bool


def slices(shape: Sequence[int], index: Any) -> Iterator[Slice]:
    """Every slice in a subscript, in the order of the axes."""
    items = index if isinstance(index, tuple) else (index,)
    taken = [_axes_taken(item) for item in items]
    axis = 0
    for number, (item, count) in enumerate(zip(items, taken, strict=True)):
        if item is Ellipsis:
            axis += len(shape) - sum(taken)
        elif isinstance(item, slice):
            size = shape[axis]
            cuts = slice(*map(_plain, (item.start, item.stop, item.step))).indices(size) != (0, size, 1)
            start, stop = 0 if item.start is None else item.start, size if item.stop is None else item.stop
            yield Slice(axis, Bounds(start, stop, number), cuts)
        axis += count


def listed(dims: int, index: Any, axis: int) -> list[int] | None:
    """The positions that a subscript such as `x[..., [-2], :]` lists of an axis; None where it lists none."""
    items = index if isinstance(index, tuple) else (index,)
    if not all(item is Ellipsis or isinstance(item, slice | list) for item in items):
        return None
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items = (*items[:at], *[slice(None)] * (dims + 1 - len(items)), *items[at + 1 :])
    found = items[axis] if axis < len(items) else None
    plain = isinstance(found, list) and all(type(position) is int for position in found)
    return found if plain and sum(isinstance(item, list) for item in items) == 1 else None


def resolved(bounds: Bounds, size: int) -> tuple[int, int]:
    """Bounds as positions on an axis of `size`: counted from the front, and not beyond its ends."""
    first, last = (_plain(bound) or 0 for bound in (bounds.start, bounds.stop))
    start, stop, _ = slice(first, last).indices(size)
    return start, stop


def _plain(bound: SupportsIndex | None) -> int | None:
    """Without its origin, whose comparisons would count as the model's."""
    return None if bound is None else int(bound.__index__())


def _axes_taken(item: Any) -> int:
    """How many axes of a tensor one item of a subscript takes up."""
    if item is None or item is Ellipsis or isinstance(item, bool):
        return 0
    return item.dim() if isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8) else 1
