"""From components to neuron groups: components that touch the same parameter dimensions belong together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import lcm
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tracker.findings import Consumption, Writing
from tracker.flow import Flow
from tracker.labels import Labels, distinct
from tracker.neuron_map import Frozen, Kind, NeuronGroup, Positions, Read, Site
from tracker.resolve import Components

Found = TypeVar("Found")

UNSEEN = "is read by what is no parameter's dimension"
INSIDE = "a weight is computed from a sum over it"
_SILENT = ("is a kernel",)


@dataclass(frozen=True)
class LabelledSite:
    """The labels of one parameter dimension, under every name that the tensor has."""

    names: tuple[str, ...]
    dim: int
    labels: Labels

    @property
    def sites(self) -> tuple[Site, ...]:
        """One site a name."""
        return tuple(Site(name, self.dim) for name in self.names)


@dataclass(frozen=True)
class Grouping:
    """The groups, and for every component its group (-1: none)."""

    groups: tuple[NeuronGroup, ...]
    group_of: NDArray[np.int64]


def group(flow: Flow, parts: Components, sites: Sequence[LabelledSite]) -> Grouping:
    """All neuron groups, in the order of the model's parameters."""
    owners_of = _Owners(parts, sites)
    reads = _distinct_reads(flow.consumptions, owners_of)
    vectors = [parts.of[site.labels] for site in sites] + [parts.of[read.activation] for read, _ in reads]
    touched = np.zeros(parts.count, dtype=bool)
    for vector in vectors[: len(sites)]:
        touched[vector] = True
    alive = touched & ~parts.frozen
    group_of, rank = _partition(vectors, alive)
    positions = _shared(vectors, lambda vector: _by_group(vector, group_of, rank))
    count = int(group_of.max(initial=-1)) + 1
    facts = _Facts.of(flow, owners_of, group_of, count)
    members: list[dict[Site, Positions]] = [{} for _ in range(count)]
    owners: list[list[int]] = [[] for _ in range(count)]
    for number, (site, found) in enumerate(zip(sites, positions, strict=False)):
        for index, where in found.items():
            owners[index].append(number)
            members[index].update(dict.fromkeys(site.sites, where))
    readers: list[list[Read]] = [[] for _ in range(count)]
    for (read, name), found in zip(reads, positions[len(sites) :], strict=True):
        for index, where in found.items():
            readers[index].append(Read(read.module, name, read.axis, where, read.how, read.operator))
    used = [i for i in range(count) if any(n in facts.consumed or n in facts.written for n in owners[i])]
    made = [facts.describe(i, owners[i], members[i], tuple(readers[i])) for i in used]
    number_of = np.full(count + 1, -1)
    number_of[used] = np.arange(len(used))
    return Grouping(tuple(_unique_names(made)), number_of[group_of])


def frozen_parts(flow: Flow, parts: Components, sites: Sequence[LabelledSite]) -> tuple[Frozen, ...]:
    """What writes activations but cannot be removed, with the first reason that froze it."""
    first_reason = np.full(parts.count, -1)
    for index in reversed(range(len(flow.space.frozen))):
        first_reason[parts.of[flow.space.frozen[index][0]]] = index
    written = _Owners(parts, sites).all_of(flow.written)
    written |= {number for number, site in enumerate(sites) if site.names[0] in flow.unlabelled}
    entries: dict[tuple[str, str], tuple[int, list[Site]]] = {}
    for number, site in enumerate(sites):
        components = parts.of[site.labels]
        stays = components[parts.frozen[components]]
        if number not in written or not len(stays):
            continue
        (index, _), *_ = Counter(first_reason[stays].tolist()).most_common(1)
        reason = flow.space.frozen[index][1]
        if reason.startswith(_SILENT):
            continue
        key = (site.sites[0].module or site.names[0], reason)
        size, where = entries.get(key, (0, []))
        entries[key] = (max(size, len(stays)), [*where, *site.sites])
    return tuple(Frozen(name, size, reason, tuple(where)) for (name, reason), (size, where) in entries.items())


def _partition(vectors: Sequence[Labels], alive: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Group number and rank in the group of every component, both -1 where it has none.

    The signature of a component is a sum of random numbers, one for each place it touches: 128 bits, so that two
    different sets of places do not meet.
    """
    random = np.random.default_rng(0).integers(1, 2**63, size=(len(vectors), 2), dtype=np.uint64)
    signature = np.zeros((2, len(alive)), dtype=np.uint64)
    first = np.full(len(alive), -1, dtype=np.int64)
    offset = 0
    codes = _shared(vectors, lambda _: np.zeros(2, dtype=np.uint64))  # one array for all places of the same neurons
    for code, numbers in zip(codes, random, strict=True):
        code += numbers
    done: set[int] = set()
    for vector, code in zip(vectors, codes, strict=True):
        if id(code) not in done:
            done.add(id(code))
            new = np.flatnonzero(first[vector] < 0)[::-1]  # the first of several positions is written last
            first[vector[new]] = offset + new
            components = distinct(vector)
            times = np.bincount(np.searchsorted(components, vector)) if len(components) < len(vector) else 1
            signature[:, components] += code[:, None] * np.asarray(times, dtype=np.uint64)
        offset += len(vector)
    chosen = np.flatnonzero(alive)
    group_of = np.full(len(alive), -1, dtype=np.int64)
    rank = np.full(len(alive), -1, dtype=np.int64)
    if not len(chosen):
        return group_of, rank
    order = np.lexsort(signature[:, chosen])
    changes = (np.diff(signature[:, chosen[order]]) != 0).any(axis=0)
    inverse = np.empty(len(chosen), dtype=np.int64)
    inverse[order] = np.concatenate([[0], np.cumsum(changes)])
    start = np.full(int(inverse.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(start, inverse, first[chosen])
    order = np.argsort(np.argsort(start))
    group_of[chosen] = order[inverse]
    by_place = chosen[np.lexsort((first[chosen], group_of[chosen]))]
    sizes = np.bincount(group_of[by_place])
    rank[by_place] = np.arange(len(by_place)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return group_of, rank


def _shared(vectors: Sequence[Labels], compute: Callable[[Labels], Found]) -> list[Found]:
    """`compute` of every vector; those that are equal, as along a residual stream, share one result."""
    known: dict[tuple[int, ...], list[tuple[Labels, Found]]] = {}
    results = []
    for vector in vectors:
        alike = known.setdefault((len(vector), *vector[:1].tolist(), *vector[-1:].tolist()), [])
        result = next((found for other, found in alike if np.array_equal(vector, other)), None)
        if result is None:
            result = compute(vector)
            alike.append((vector, result))
        results.append(result)
    return results


def _by_group(vector: Labels, group_of: NDArray[np.int64], rank: NDArray[np.int64]) -> dict[int, Positions]:
    """For each group that touches this place: the positions of its neurons, shape (size, k)."""
    where = np.flatnonzero(group_of[vector] >= 0)
    groups, ranks = group_of[vector[where]], rank[vector[where]]
    if (np.diff(groups) < 0).any() or (np.diff(ranks)[np.diff(groups) == 0] < 0).any():
        order = np.lexsort((where, ranks, groups))
        where, groups, ranks = where[order], groups[order], ranks[order]
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    pieces = zip(starts, np.append(starts, len(groups))[1:], strict=True)
    # Every neuron of a group takes as many positions here, in the order of its rank: the last rank tells their number.
    return {int(groups[a]): where[a:b].astype(np.int64).reshape(ranks[b - 1] + 1, -1) for a, b in pieces}


@dataclass
class _Facts:
    """What the trace knows about sites and groups, for the description of groups."""

    sites: Sequence[LabelledSite]
    consumed: set[int]
    written: set[int]
    convolved: set[int]
    notes: list[str]
    multiples: list[int]
    minima: list[int]
    marked: Mapping[str, set[int]]

    @classmethod
    def of(cls, flow: Flow, owners_of: _Owners, group_of: NDArray[np.int64], count: int) -> _Facts:
        """Gather the facts of a trace."""
        parts = owners_of.parts
        marked: dict[str, set[int]] = {"attention": set(), "stream": _streams(flow, parts, group_of), "expert": set()}
        for labels, mark in flow.space.marks:
            marked[mark].update(distinct(group_of[parts.of[labels]]).tolist())
        notes = [""] * count
        unseen = [(c.activation, UNSEEN) for c in flow.consumptions if not owners_of.find(c)]
        within = [(labels, INSIDE) for labels in _summed_in_weights(flow, parts.of, group_of)]
        for labels, reason in reversed([*unseen, *within, *flow.space.inexact]):
            for index in distinct(group_of[parts.of[labels]]).tolist():
                if index >= 0:
                    notes[index] = reason
        multiples, minima = [1] * count, [1] * count
        for demands, meet, of_all in ((flow.space.multiples, lcm, multiples), (flow.space.minima, max, minima)):
            for labels, demand in demands:
                for index in distinct(group_of[parts.of[labels]]).tolist():
                    if index >= 0:
                        of_all[index] = meet(of_all[index], demand)
        return cls(
            owners_of.sites,
            owners_of.all_of(flow.consumptions),
            owners_of.all_of(flow.written),
            owners_of.all_of([w for w in flow.written if "convolution" in w.operator]),
            notes,
            multiples,
            minima,
            marked,
        )

    def describe(
        self, index: int, owners: list[int], members: dict[Site, Positions], reads: tuple[Read, ...]
    ) -> NeuronGroup:
        """The group that lies on the sites `owners`."""
        others = [number for number in owners if number not in self.consumed]
        # A tied embedding reads the neurons as the output layer, and writes them.
        writers = [n for n in owners if n in self.written and (n in others or len(self.sites[n].names) > 1)]
        modules = {site.module for number in writers for site in self.sites[number].sites}
        beside = [n for n in others if n not in writers and self.sites[n].sites[0].module in modules]
        producers = tuple(site for n in [*writers, *beside] or others or owners for site in self.sites[n].sites)
        note = self.notes[index] or ("" if reads else "no weight reads it")
        return NeuronGroup(
            name=producers[0].module or producers[0].parameter,
            size=len(next(iter(members.values()))),
            kind=self._kind(index, writers, note),
            exact=not note,
            producers=producers,
            consumers=tuple(site for n in owners if n in self.consumed for site in self.sites[n].sites),
            members=members,
            reads=reads,
            note=note,
            multiple=self.multiples[index],
            minimum=self.minima[index],
        )

    def _kind(self, index: int, writers: list[int], note: str) -> Kind:
        stream = index in self.marked["stream"]
        if index in self.marked["attention"]:
            return "attention"
        if index in self.marked["expert"]:
            return "expert"
        if any(number in self.convolved for number in writers) and not (stream and note):
            return "channel"
        if stream:
            return "residual"
        return "mlp" if writers else "other"


def _streams(flow: Flow, parts: Components, group_of: NDArray[np.int64]) -> set[int]:
    """Groups whose neurons were read before something was added to them, as along a residual stream.

    A sum of two that nobody read before is one layer in two parts, such as a linear one and its low-rank adapter.
    """
    first_read = np.full(parts.count, len(flow.consumptions))
    for number, consumption in reversed(list(enumerate(flow.consumptions))):
        first_read[parts.of[consumption.activation]] = number
    streams: set[int] = set()
    for labels, before in flow.sums:
        components = distinct(parts.of[labels])
        streams.update(group_of[components[first_read[components] < before]].tolist())
    return streams


def _summed_in_weights(flow: Flow, of: Labels, group_of: NDArray[np.int64]) -> list[Labels]:
    """Neurons that a weight is computed from a sum over, so that the weight is another one without some of them.

    What exists inside of a weight alone, such as the rank of a product of two, is no such neuron.
    """
    weights: dict[str, set[frozenset[str]]] = {}
    for origin in {use.origin for use in flow.consumptions} | {use.origin for use in flow.written}:
        for name in origin if len(origin) > 1 else ():
            weights.setdefault(name, set()).add(origin)
    inside = [
        c.activation
        for c in flow.consumptions
        if c.beneath and any(c.beneath | c.origin <= whole for whole in weights.get(min(c.beneath), ()))
    ]
    if not inside:
        return []
    active = np.zeros(len(of) + 1, dtype=bool)
    for c in flow.consumptions:
        active[group_of[of[c.activation]]] |= not c.beneath
    active[-1] = False  # what is in no group
    return [labels for labels in inside if active[group_of[of[labels]]].any()]


class _Owners:
    """Which parameter dimensions the labels of a weight belong to."""

    def __init__(self, parts: Components, sites: Sequence[LabelledSite]) -> None:
        self.parts, self.sites = parts, sites
        self._starts = np.array([int(site.labels[0]) for site in sites], dtype=np.int64)
        self._order = np.argsort(self._starts)
        self._sorted = self._starts[self._order]
        self._ends = self._sorted + np.array([len(sites[number].labels) for number in self._order], dtype=np.int64)
        self._by_tensor: dict[str, list[int]] = {}
        for number, site in enumerate(sites):
            self._by_tensor.setdefault(site.names[0], []).append(number)

    def find(self, use: Consumption | Writing) -> set[int]:
        """The sites that own the labels of a weight's axis; of a computed weight, those that it was computed from."""
        alone = int(np.searchsorted(self._sorted, use.weight.min(), side="right")) - 1
        if alone >= 0 and use.weight.max() < self._ends[alone]:
            return {int(self._order[alone])}
        at = self._order[np.searchsorted(self._starts[self._order], use.weight, side="right") - 1]
        found = {int(n) for n in np.unique(at) if use.weight[at == n][0] < self._starts[n] + len(self.sites[n].labels)}
        if found:
            return found
        wanted = self.parts.of[use.weight]
        candidates = [number for name in use.origin for number in self._by_tensor.get(name, ())]
        return {n for n in candidates if np.isin(self.parts.of[self.sites[n].labels], wanted).any()}

    def all_of(self, uses: Iterable[Consumption | Writing]) -> set[int]:
        """The sites of several uses of weights."""
        return {number for use in uses for number in self.find(use)}


def _distinct_reads(consumptions: Sequence[Consumption], owners_of: _Owners) -> list[tuple[Consumption, str]]:
    """Every place where a weight reads activations, once, with the weight's name."""
    found: dict[tuple[str, int, int], tuple[Consumption, str]] = {}
    for consumption in consumptions:
        for number in sorted(owners_of.find(consumption)):
            name = _name_in(owners_of.sites[number].names, consumption.module)
            found.setdefault((consumption.module, number, consumption.axis), (consumption, name))
    return list(found.values())


def _name_in(names: tuple[str, ...], module: str) -> str:
    return next((name for name in names if name.rpartition(".")[0] == module), names[0])


def _unique_names(groups: Sequence[NeuronGroup]) -> Iterator[NeuronGroup]:
    """Two groups that one module produces are told apart by a number in brackets."""
    seen: Counter[str] = Counter()
    for made in groups:
        seen[made.name] += 1
        yield made if seen[made.name] == 1 else replace(made, name=f"{made.name}[{seen[made.name] - 1}]")
