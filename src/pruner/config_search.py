"""The configuration that builds a pruned model's shapes, found by trying and proven by construction.

Which attribute of a configuration is a width, under which name, and by which formula it becomes the sizes of layers
differs between hundreds of architectures. None of that is known here. The class is built from a changed configuration
on the meta device (milliseconds), and a change is kept if it mends shapes and breaks none, until every parameter, every
buffer and every integer that pruning changed is as in the pruned model, or no change helps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any, NamedTuple

Place = tuple[str, str | int | tuple[str | int, ...]]
"""A size in a model: a tensor's name and a dimension, or a module's name and the path to an integer."""
Sizes = Mapping[Place, int]
Path = tuple[str | int, ...]


class Edit(NamedTuple):
    """One attribute of a (nested) configuration, and its new value."""

    path: Path
    value: int


class Search(NamedTuple):
    """What a search found: the configuration, or why there is none."""

    config: dict[str, Any] | None
    reason: str


def search(
    config: Mapping[str, Any],
    target: Sizes,
    build: Callable[[Mapping[str, Any]], Sizes | None],
    implied: Mapping[str, int],
) -> Search:
    """A configuration for which `build` gives the sizes of `target`.

    Args:
        config: the dense model's, as nested dicts and lists.
        target: every size of the pruned model.
        build: the sizes of the model that a configuration builds, restricted to the places in `target`; None where it
            builds none, or one with other names.
        implied: attributes that a configuration may leave out, with the values they then have (`head_dim`). They are
            written down if they matter, because what implied them changes.
    """
    dense = build(config)
    if dense is None:
        return Search(None, "its configuration does not build its dense architecture")
    found, left = _descend(dict(config), dense, target, build)
    if left:
        explicit = _made_explicit(config, dense, build, implied)
        if explicit is not None:
            found, left = _descend(explicit, dense, target, build)
    return Search(None, _why(left, target)) if left else Search(found, "")


def _descend(
    config: dict[str, Any], built: Sizes, target: Sizes, build: Callable[[Mapping[str, Any]], Sizes | None]
) -> tuple[dict[str, Any], dict[Place, int]]:
    """The best configuration that can be reached, and the sizes that it still gets wrong, as they are built."""
    wrong = _wrong(built, target)
    while wrong:
        promising: list[Edit] = []
        for change in _changes(_edits(config, wrong, target), promising):
            tried = _with(config, change)
            sizes = build(tried)
            if sizes is not None and (left := _wrong(sizes, target)).keys() < wrong.keys():
                config, wrong = tried, left
                break
            if len(change) == 1 and (sizes is None or any(sizes[place] != size for place, size in wrong.items())):
                promising += change
        else:
            break
    return config, wrong


def _changes(edits: Iterable[Edit], promising: list[Edit]) -> Iterator[tuple[Edit, ...]]:
    """Single edits, then pairs of those that, alone, led to no model or moved a wrong size without mending it."""
    yield from ((edit,) for edit in edits)
    yield from (pair for pair in combinations(promising, 2) if pair[0].path != pair[1].path)


def _wrong(built: Sizes, target: Sizes) -> dict[Place, int]:
    return {place: built[place] for place, size in target.items() if built[place] != size}


def _edits(config: Mapping[str, Any], wrong: Mapping[Place, int], target: Sizes) -> Iterator[Edit]:
    """Attributes that shrink as a wrong size has to; those that are that very size first, then those that divide it."""
    ratios = {(built, target[place]): None for place, built in wrong.items()}
    numbers = list(_numbers(config))
    direct = {Edit(path, new): None for path, value in numbers for old, new in ratios if value == old}
    scaled = {
        Edit(path, value * new // old): None
        for path, value in numbers
        for old, new in ratios
        if old % value == 0 and value * new % old == 0
    }
    yield from {**direct, **scaled}


def _numbers(value: Any, path: Path = ()) -> Iterator[tuple[Path, int]]:
    if type(value) is int and value > 1:
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _numbers(item, (*path, index))


def _with(config: dict[str, Any], change: tuple[Edit, ...]) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    for path, value in change:
        owner: Any = changed
        for step in path[:-1]:
            owner = owner[step]
        owner[path[-1]] = value
    return changed


def _made_explicit(
    config: Mapping[str, Any],
    dense: Sizes,
    build: Callable[[Mapping[str, Any]], Sizes | None],
    implied: Mapping[str, int],
) -> dict[str, Any] | None:
    """The configuration with those implied attributes written down that the class does read; None if it reads none.

    One that is read changes nothing at the value that it has, and something at another.
    """
    explicit = copy.deepcopy(dict(config))
    found = False
    for owner in [(), *_parts(config)]:
        for name, value in implied.items():
            place: Any = explicit
            for step in owner:
                place = place[step]
            if place.get(name) is not None:
                continue
            if build(_with(explicit, (Edit((*owner, name), value),))) == dense and (
                build(_with(explicit, (Edit((*owner, name), 2 * value),))) != dense
            ):
                place[name], found = value, True
    return explicit if found else None


def _parts(config: Mapping[str, Any], path: Path = ()) -> Iterator[Path]:
    """Paths to the configurations inside a configuration."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            if "model_type" in value:
                yield (*path, key)
            yield from _parts(value, (*path, key))


def _why(left: Mapping[Place, int], target: Sizes) -> str:
    place = next(iter(left))
    name, where = place
    what = f"dimension {where} of '{name}'" if isinstance(where, int) else f"'{where}' of '{name}'"
    return (
        f"no value of any of its attributes makes {what} {target[place]} wide (it was {left[place]}) and keeps the rest"
    )
