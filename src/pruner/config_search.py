"""The configurations that build a pruned model's shapes, found by trying and proven by construction.

Which attribute of a configuration is a width, under which name, and by which formula it becomes the sizes of layers
differs between hundreds of architectures. None of that is known here. The class is built from a changed configuration
on the meta device (milliseconds), and a change is kept if it makes sizes what they have to be and moves no others,
until every parameter, every buffer and every integer that pruning changed is as in the pruned model. Where several
attributes could be meant (half the heads, or heads of half the size) there is more than one way, and the caller judges.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
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


_MOST_BUILDS = 200


@dataclass
class Search:
    """A search for configurations that give the sizes of `target`. Iterating gives them, the likeliest first.

    Args:
        config: the dense model's, as nested dicts and lists.
        target: every size of the pruned model.
        build: the sizes of the model that a configuration builds, at the places of `target`; None where it builds none.
        implied: attributes that a configuration may leave out, with the values they then have (`head_dim`). They, and
            those that are None, are written down if they matter, because what implied them may change.

    After an iteration that gave nothing, `reason` says why.
    """

    config: Mapping[str, Any]
    target: Sizes
    build: Callable[[Mapping[str, Any]], Sizes | None]
    implied: Mapping[str, int]
    reason: str = field(default="", init=False)
    _builds_left: int = field(default=_MOST_BUILDS, init=False)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        dense = self.build(self.config)
        if dense is None:
            self.reason = "its configuration does not build its dense architecture"
            return
        found = False
        for start in self._starts(dense):
            for solution in self._solutions(start, dense, set()):
                found = True
                yield solution
            if found:
                return

    def _starts(self, dense: Sizes) -> Iterator[dict[str, Any]]:
        """The configuration, and the same with those implied attributes written down that the class does read.

        One that is read changes nothing at the value that it has, and something at another.
        """
        explicit = copy.deepcopy(dict(self.config))
        yield explicit
        sizes = sorted({dense[place] for place, size in self.target.items() if dense[place] != size})
        wordy = False
        for owner in [(), *_parts(self.config)]:
            part = _at(self.config, owner)
            unsaid = {name: sizes for name, value in part.items() if value is None}
            unsaid |= {name: [value] for name, value in self.implied.items() if part.get(name) is None}
            for name, value in ((name, value) for name, values in unsaid.items() for value in values):
                same, other = (_with(explicit, (Edit((*owner, name), n),)) for n in (value, 2 * value))
                if self.build(same) == dense and self.build(other) not in (dense, None):
                    explicit, wordy = same, True
        if wordy:
            yield explicit

    def _solutions(self, config: dict[str, Any], sizes: Sizes, seen: set[str]) -> Iterator[dict[str, Any]]:
        """Every way from `config` to the target: a change of one attribute first, or of two that only help together."""
        wrong = {place: sizes[place] for place, size in self.target.items() if sizes[place] != size}
        if repr(config) in seen:
            return
        seen.add(repr(config))
        if not wrong:
            yield config
            return
        edits = list(_edits(config, wrong, self.target))
        partial: list[Edit] = []
        reached = self._reached(config, sizes, wrong, ((edit,) for edit in edits), partial)
        for _, changed, built in sorted(reached, key=lambda one: one[0]):
            yield from self._solutions(changed, built, seen)
        pairs = ((one, other) for one, other in combinations(partial, 2) if one.path != other.path)
        for _, changed, built in self._reached(config, sizes, wrong, pairs, []):
            yield from self._solutions(changed, built, seen)
        self.reason = self.reason or _why(wrong, self.target)

    def _reached(
        self,
        config: dict[str, Any],
        sizes: Sizes,
        wrong: Mapping[Place, int],
        changes: Iterable[tuple[Edit, ...]],
        partial: list[Edit],
    ) -> Iterator[tuple[int, dict[str, Any], Sizes]]:
        """Changes that make wrong sizes right and move no others: (sizes left wrong, configuration, its sizes).

        Added to `partial` are edits that lead to no model alone, or move wrong sizes only and not to the end. Unless
        what they move would need more than two values of the attribute: one value cannot be all of them.
        """
        hopeless: set[Path] = set()
        for change in changes:
            if change[0].path in hopeless or self._builds_left <= 0:
                continue
            self._builds_left -= 1
            changed = _with(config, change)
            built = self.build(changed)
            moved = [place for place in self.target if built[place] != sizes[place]] if built is not None else []
            if moved and built is not None and all(built[place] == self.target[place] for place in moved):
                yield len(wrong) - len(moved), changed, built
            elif len({Fraction(self.target[place], sizes[place]) for place in moved}) > 2:
                hopeless.add(change[0].path)
            elif all(place in wrong for place in moved) and (moved or built is None):
                partial += change


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
        _at(changed, path[:-1])[path[-1]] = value
    return changed


def _at(config: Mapping[str, Any], path: Path) -> Any:
    value: Any = config
    for step in path:
        value = value[step]
    return value


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
    return f"no configuration makes {what} {target[place]} wide ({left[place]} before) and keeps the rest"
