"""Which layers a strategy may touch: all exact ones, or those that the configuration chooses by name and by kind.

A pattern is one of `fnmatch` (`*` anything, `?` one character, `[ab]` one of several). It matches a layer by the
layer's own name, or by the name of any module that produces its neurons.

A layer that is not exact is chosen only by somebody who means it: by the kind "residual" or "expert" in
`strategy.kinds`, by its own name in `strategy.include`, or by a pattern there that matches no exact layer.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Self

from pruner.config import Strategy
from tracker.errors import UnknownLayerError
from tracker.neuron_map import NeuronGroup, NeuronMap


@dataclass(frozen=True)
class Scope:
    """`layers` may lose neurons without being given a share of their own; `excluded` are those that may not."""

    layers: frozenset[str]
    excluded: frozenset[str]

    @classmethod
    def of(cls, neurons: NeuronMap, first: NeuronMap, options: Strategy) -> Self:
        """What `options` choose from a model with the map `neurons`, which had the map `first` when first seen.

        Layers that have shrunk to a single neuron since are still there in `first`.

        Raises `UnknownLayerError`, which names the nearest layer, for a pattern that matches none. A pattern in
        `strategy.exclude` may also match what cannot be removed anyway.
        """
        groups = tuple(({group.name: group for group in first} | {group.name: group for group in neurons}).values())
        included: set[str] = set()
        meant: set[str] = set()
        for pattern in options.include:
            found = _matched(pattern, "include", groups, neurons)
            included.update(group.name for group in found)
            meant.update(group.name for group in found if group.name == pattern)
            if not any(group.exact for group in found):
                meant.update(group.name for group in found)
        excluded = frozenset(
            group.name for pattern in options.exclude for group in _matched(pattern, "exclude", groups, neurons)
        )
        for kind in {"residual", "expert"} & set(options.kinds):
            meant.update(group.name for group in groups if group.kind == kind)
        layers = frozenset(
            group.name
            for group in groups
            if (group.exact or group.name in meant)
            and (not options.include or group.name in included)
            and (not options.kinds or group.kind in options.kinds)
        )
        return cls(layers - excluded, excluded)


def _matched(pattern: str, option: str, groups: Sequence[NeuronGroup], neurons: NeuronMap) -> list[NeuronGroup]:
    found = [group for group in groups if _matches(pattern, (group.name, *group.modules))]
    modules_unknown = not any(group.modules for group in groups)  # a map made from recommendations alone
    if found or modules_unknown:
        return found
    frozen = [e for e in neurons.frozen if _matches(pattern, (e.name, *(site.module for site in e.sites)))]
    if frozen and option == "exclude":
        return []
    if frozen:
        raise UnknownLayerError(
            f"strategy.include = '{pattern}' matches '{frozen[0].name}' only, which has no neurons that can be "
            f"removed: {frozen[0].reason}.",
            hint="Print the neuron map to see which layers can be pruned.",
        )
    names = list(dict.fromkeys(name for group in groups for name in (group.name, *group.modules)))
    closest = get_close_matches(pattern, names, n=1, cutoff=0.0)
    inside = any(name.startswith(f"{pattern}.") for name in names)
    raise UnknownLayerError(
        f"strategy.{option} = '{pattern}' matches no layer."
        + (f" The nearest is '{closest[0]}'." if closest else " The model has none."),
        hint=f"Write '{pattern}.*' for all layers inside '{pattern}'."
        if inside
        else "Write names as the neuron map prints them, or patterns such as 'blocks.*.mlp.*'.",
    )


def _matches(pattern: str, names: Collection[str]) -> bool:
    """By the very name, too: that of a second layer in one module ends in brackets, which are special in a pattern."""
    return any(name == pattern or fnmatchcase(name, pattern) for name in names)
