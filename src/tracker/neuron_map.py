"""The map of a model's neurons: plain, immutable, serialisable data.

`discover` makes it; everything after it (statistics, plans, slicing, masking, reports) only reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from tracker.errors import DiscoveryError, PlanError, UnknownLayerError, nearest
from tracker.files import read_json, write_json

Kind = Literal["mlp", "attention", "channel", "residual", "expert", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Positions = NDArray[np.int64]
FORMAT_VERSION = 1
_MOST_POSITIONS = 2**26  # of one group on one dimension: half a gigabyte, so that a small file cannot ask for more


class Site(NamedTuple):
    """One dimension of one parameter or buffer."""

    parameter: str
    dim: int

    @property
    def module(self) -> str:
        """Name of the module that owns the parameter."""
        return self.parameter.rpartition(".")[0]


@dataclass(frozen=True)
class Read:
    """Where a consumer reads the neurons' activations.

    `positions` has shape (size, k): the indices of each neuron along `axis` of what is read. With `how="input"` that is
    the first positional input of `module`; with `how="operator"` it is the operand that `operator` contracts with
    `parameter` (a raw parameter, for which no module's input is it), and with `how="computed"` the one that it
    contracts with a weight computed from `parameter`.
    """

    module: str
    parameter: str
    axis: int
    positions: Positions
    how: Literal["input", "operator", "computed"] = "input"
    operator: str = ""


@dataclass(frozen=True)
class NeuronGroup:
    """All neurons that touch the same parameter dimensions; what the guides call a layer.

    `members` gives, for every site, the positions of each neuron there, shape (size, k). `exact` means that removing a
    neuron is the same function as zeroing what its consumers read; `note` says why not. Some operators take only widths
    that are multiples of something: then a multiple of `multiple` neurons stays. At least `minimum` of them stay: so
    many the model's code needs.
    """

    name: str
    size: int
    kind: Kind
    exact: bool
    producers: tuple[Site, ...]
    consumers: tuple[Site, ...]
    members: Mapping[Site, Positions]
    reads: tuple[Read, ...] = ()
    note: str = ""
    multiple: int = 1
    minimum: int = 1

    @property
    def removable(self) -> int:
        """The most neurons that can go."""
        return max(0, (self.size - max(self.minimum, self.multiple)) // self.multiple * self.multiple)

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that write these neurons, in the model's order."""
        return tuple(dict.fromkeys(site.module for site in self.producers))

    def slices(self, neurons: Iterable[int]) -> dict[Site, torch.Tensor]:
        """The positions that belong to `neurons`, ascending, at every site the group touches.

        Raises `PlanError` for an index out of range or given twice.
        """
        chosen = self.indices(neurons)
        return {site: torch.from_numpy(np.sort(positions[chosen].ravel())) for site, positions in self.members.items()}

    def indices(self, neurons: Iterable[int]) -> Positions:
        """`neurons` as an ascending index array, checked against the size of the group."""
        raw = neurons.tolist() if isinstance(neurons, torch.Tensor | np.ndarray) else list(neurons)
        for value in raw:
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise PlanError(
                    f"Layer '{self.name}': neuron {value!r} is not an integer index.",
                    hint="Give the indices of the neurons to remove, such as [0, 5].",
                )
        chosen = np.sort(np.asarray(raw, dtype=np.int64))
        if len(chosen) and (chosen[0] < 0 or chosen[-1] >= self.size):
            bad = next(int(value) for value in chosen if not 0 <= value < self.size)
            raise PlanError(
                f"Layer '{self.name}' has {self.size} neurons; index {bad} is out of range.",
                hint=f"Use indices from 0 to {self.size - 1}.",
            )
        repeated = chosen[:-1][chosen[1:] == chosen[:-1]]
        if len(repeated):
            raise PlanError(
                f"Layer '{self.name}': neuron {int(repeated[0])} is listed more than once.",
                hint="List every neuron once.",
            )
        return chosen


@dataclass(frozen=True)
class Frozen:
    """Positions that cannot be removed, and why."""

    name: str
    size: int
    reason: str
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class Integer:
    """An integer attribute of a module that follows the neurons: `num_heads`, `groups`, `normalized_shape[0]` …

    `path` leads to it from the module; it falls by `follows[g]` for every neuron removed from group `g`.
    """

    module: str
    path: tuple[str | int, ...]
    follows: Mapping[str, int]


class Length(NamedTuple):
    """A weight kept as a direction and a length (weight norm): it is `length · direction / ‖direction‖`.

    Both are names of parameters. Each index of `dim` has a norm of its own, over all other dimensions: what is removed
    there makes the direction shorter, and the length has to make up for it.
    """

    direction: str
    length: str
    dim: int


@dataclass(frozen=True)
class NeuronMap:
    """Every neuron of a model, what is frozen and why, and the integers and lengths that must follow a removal."""

    groups: tuple[NeuronGroup, ...]
    frozen: tuple[Frozen, ...] = ()
    integers: tuple[Integer, ...] = ()
    fingerprint: str = ""
    model: str = ""
    operators_without_rule: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    lengths: tuple[Length, ...] = ()

    @property
    def neurons(self) -> int:
        """Number of neurons over all groups."""
        return sum(group.size for group in self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[NeuronGroup]:
        return iter(self.groups)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> NeuronGroup:
        """The group called `name`, or written by the module `name`; raises `UnknownLayerError` otherwise."""
        found = self._by_name.get(name)
        if found is not None:
            return found
        for entry in self.frozen:
            if name in (entry.name, *(site.module for site in entry.sites)):
                raise UnknownLayerError(
                    f"Layer '{name}' has no neurons that can be removed: {entry.reason}.",
                    hint="Print the neuron map to see which layers can be pruned.",
                )
        raise UnknownLayerError(
            f"The model has no layer '{name}'.{nearest(name, self._by_name)}",
            hint="Print the neuron map to see the names of all layers.",
        )

    @cached_property
    def _by_name(self) -> dict[str, NeuronGroup]:
        """Groups by their own names and, where no group has that name, by the modules that produce them."""
        table: dict[str, NeuronGroup] = {}
        for group in self.groups:
            for module in group.modules:
                table.setdefault(module, group)
        table.update({group.name: group for group in self.groups})
        return table

    def __str__(self) -> str:
        from tracker.neuron_table import neuron_table

        return neuron_table(self)

    def to_json(self) -> dict[str, Any]:
        """The map as JSON-ready data; `from_json` is its inverse."""
        return {
            "format": "neuronscope/neuron-map",
            "version": FORMAT_VERSION,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "groups": [_group_to_json(group) for group in self.groups],
            "frozen": [
                {"name": f.name, "size": f.size, "reason": f.reason, "sites": [list(site) for site in f.sites]}
                for f in self.frozen
            ],
            "integers": [{"module": i.module, "path": list(i.path), "follows": dict(i.follows)} for i in self.integers],
            "operators_without_rule": dict(self.operators_without_rule),
            "lengths": [list(length) for length in self.lengths],
        }

    @classmethod
    def from_json(cls, data: Any) -> NeuronMap:
        """Rebuild a map; raises `DiscoveryError` where the data is not one."""
        head = data if isinstance(data, Mapping) else {}
        if head.get("format") != "neuronscope/neuron-map" or head.get("version") != FORMAT_VERSION:
            raise DiscoveryError(
                f"Not a neuron map of version {FORMAT_VERSION}: format {head.get('format')!r}, "
                f"version {head.get('version')!r}.",
                hint="Write the map again with NeuronMap.save or `neuronscope map --json`.",
            )
        try:
            return cls(
                groups=tuple(_group_from_json(entry) for entry in data["groups"]),
                frozen=tuple(
                    Frozen(f["name"], f["size"], f["reason"], tuple(Site(*site) for site in f["sites"]))
                    for f in data["frozen"]
                ),
                integers=tuple(Integer(i["module"], tuple(i["path"]), dict(i["follows"])) for i in data["integers"]),
                fingerprint=data["fingerprint"],
                model=data["model"],
                operators_without_rule=dict(data["operators_without_rule"]),
                lengths=tuple(
                    Length(str(direction), str(length), int(dim)) for direction, length, dim in data.get("lengths", ())
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DiscoveryError(
                f"The neuron map is malformed: {error!r}.", hint="Discover the model again and save the map."
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the map as JSON, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> NeuronMap:
        """Read a map written by `save`."""
        return cls.from_json(read_json(path, what="neuron map", error=DiscoveryError))


def _group_to_json(group: NeuronGroup) -> dict[str, Any]:
    return {
        "name": group.name,
        "size": group.size,
        "kind": group.kind,
        "exact": group.exact,
        "note": group.note,
        "multiple": group.multiple,
        "minimum": group.minimum,
        "producers": [list(site) for site in group.producers],
        "consumers": [list(site) for site in group.consumers],
        "members": [[*site, _runs(positions)] for site, positions in group.members.items()],
        "reads": [
            {
                "module": read.module,
                "parameter": read.parameter,
                "axis": read.axis,
                "how": read.how,
                "operator": read.operator,
                "positions": _runs(read.positions),
            }
            for read in group.reads
        ],
    }


def _group_from_json(data: Mapping[str, Any]) -> NeuronGroup:
    size = int(data["size"])
    if data["kind"] not in KINDS:
        raise ValueError(f"unknown kind {data['kind']!r}")
    return NeuronGroup(
        name=data["name"],
        size=size,
        kind=cast("Kind", data["kind"]),
        exact=bool(data["exact"]),
        note=data["note"],
        multiple=int(data.get("multiple", 1)),
        minimum=int(data.get("minimum", 1)),
        producers=tuple(Site(*site) for site in data["producers"]),
        consumers=tuple(Site(*site) for site in data["consumers"]),
        members={Site(parameter, dim): _from_runs(runs, size) for parameter, dim, runs in data["members"]},
        reads=tuple(
            Read(r["module"], r["parameter"], r["axis"], _from_runs(r["positions"], size), r["how"], r["operator"])
            for r in data["reads"]
        ),
    )


def _runs(positions: Positions) -> list[list[int]]:
    """Row-major positions as [first, length] runs of consecutive integers: one run for a plain layer."""
    flat = positions.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=flat[:1] - 2) != 1)
    lengths = np.diff(starts, append=len(flat))
    return [[int(flat[start]), int(length)] for start, length in zip(starts, lengths, strict=True)]


def _from_runs(runs: list[list[int]], size: int) -> Positions:
    if any(first < 0 or length < 1 for first, length in runs) or sum(length for _, length in runs) > _MOST_POSITIONS:
        raise ValueError("positions out of range")
    flat = np.concatenate([np.arange(first, first + length, dtype=np.int64) for first, length in runs])
    return flat.reshape(size, -1)
