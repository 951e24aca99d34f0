"""What the neurons do on real data, as their consumers see it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tracker.admission import unwrapped
from tracker.batches import evaluating, forward, iter_batches
from tracker.covariance import LIMIT_BYTES, check_memory, correlation
from tracker.discover import neurons_of
from tracker.errors import DataError, UnknownLayerError, nearest
from tracker.moments import Row, merge
from tracker.neuron_map import Kind, NeuronGroup, NeuronMap
from tracker.progress import progress
from tracker.watch import Watch, watching

# A neuron is dead when it never fires and never leaves this share of its layer's root mean square.
_NEGLIGIBLE = 1e-3
# A neuron is constant when its standard deviation is below this share of its mean: what is left is rounding.
_STILL = 1e-4

Values = NDArray[np.float64]
Flags = NDArray[np.bool_]
FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class GroupActivity:
    """The activity of one group; every array has shape (size,).

    `count` values were seen of every neuron: samples times tokens or pixels, times the positions that belong to a
    neuron (a head has head_dim of them), over all of its consumers. `variance` is that of the population.
    `firing_frequency` is the share of values that fired: that were not zero or, where the layer's activations go below
    zero, that exceeded a tenth of the mean magnitude of those around them.
    """

    name: str
    kind: Kind
    exact: bool
    count: int
    mean: Values
    variance: Values
    minimum: Values
    maximum: Values
    mean_magnitude: Values
    firing_frequency: Values

    @property
    def size(self) -> int:
        """Number of neurons."""
        return len(self.mean)

    @cached_property
    def dead(self) -> Flags:
        """Never fired, and never more than a thousandth of the layer's root mean square away from zero."""
        scale = math.sqrt(float(np.mean(self.variance + self.mean**2)))
        largest = np.maximum(np.abs(self.minimum), np.abs(self.maximum))
        dead: Flags = (self.firing_frequency == 0) & (largest <= _NEGLIGIBLE * scale)
        return dead

    @cached_property
    def constant(self) -> Flags:
        """Always the same value, and not dead."""
        constant: Flags = (np.sqrt(self.variance) <= _STILL * np.abs(self.mean)) & ~self.dead
        return constant

    @cached_property
    def saturation(self) -> Values:
        """How much of the activity sits at the layer's extremes: 1 if all of it does, 1/3 for a uniform spread.

        Variance over the largest it can have between bounds a and b, (b - mean)(mean - a): Bhatia & Davis 2000, "A
        better bound on the variance". 0 where a neuron does not vary.
        """
        low, high = float(self.minimum.min()), float(self.maximum.max())
        bound = (high - self.mean) * (self.mean - low)
        return np.divide(self.variance, bound, out=np.zeros_like(bound), where=(bound > 0) & (self.variance > 0))

    @property
    def one_sided(self) -> bool:
        """Whether no activation of the layer goes below zero, as after a ReLU."""
        return bool(self.minimum.min() >= 0)

    def merged(self, other: GroupActivity) -> GroupActivity:
        """The activity on the data of both."""
        return _activity(self, merge(_block(self), _block(other)))


@dataclass(frozen=True)
class Untracked:
    """A group without statistics, and why."""

    name: str
    kind: Kind
    exact: bool
    size: int
    reason: str


@dataclass(frozen=True, eq=False)
class ActivityStats(Mapping[str, GroupActivity]):
    """The activity of all groups that were tracked, by name. `batches` forwards were seen (by this process).

    `covariance` holds a matrix (size, size) for each group where it was asked for; JSON leaves it out.
    """

    model: str
    fingerprint: str
    batches: int
    groups: Mapping[str, GroupActivity]
    untracked: tuple[Untracked, ...] = ()
    covariance: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> GroupActivity:
        if name in self.groups:
            return self.groups[name]
        for entry in self.untracked:
            if entry.name == name:
                raise UnknownLayerError(f"Layer '{name}' was not tracked: {entry.reason}.")
        raise UnknownLayerError(f"There is no activity of a layer '{name}'.{nearest(name, self.groups)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def dead(self) -> dict[str, tuple[int, ...]]:
        """Indices of the dead neurons, for the groups that have any."""
        found = {name: tuple(np.flatnonzero(group.dead).tolist()) for name, group in self.groups.items()}
        return {name: neurons for name, neurons in found.items() if neurons}

    def correlation(self, name: str) -> NDArray[np.float64]:
        """Correlation matrix (size, size) of a group; raises `DataError` where its covariance was not tracked."""
        if name not in self.covariance:
            raise DataError(
                f"The covariance of layer '{self[name].name}' was not tracked.", hint="Observe with covariance=True."
            )
        return correlation(self.covariance[name])

    def merge(self, other: ActivityStats) -> ActivityStats:
        """The statistics of the data of both, as from one pass over all of it; covariances are dropped.

        Raises `DataError` for statistics of another structure.
        """
        if self.fingerprint != other.fingerprint:
            raise DataError(
                f"These are the statistics of different models: structure {self.fingerprint} and {other.fingerprint}.",
                hint="Merge statistics of one structure only.",
            )
        names = dict.fromkeys((*self.groups, *other.groups))
        groups = {
            name: self.groups[name].merged(other.groups[name])
            if name in self.groups and name in other.groups
            else self.groups.get(name) or other.groups[name]
            for name in names
        }
        untracked = tuple(entry for entry in self.untracked if entry.name not in names)
        return ActivityStats(self.model, self.fingerprint, self.batches + other.batches, groups, untracked)

    def to_json(self) -> dict[str, Any]:
        """The statistics as JSON-ready data, without covariances; `from_json` is its inverse."""
        return {
            "format": "neuronscope/activity",
            "version": FORMAT_VERSION,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "batches": self.batches,
            "groups": [
                {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in _fields(group).items()}
                for group in self.groups.values()
            ],
            "untracked": [_fields(entry) for entry in self.untracked],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ActivityStats:
        """Rebuild statistics; raises `DataError` where the data is something else."""
        if data.get("format") != "neuronscope/activity" or data.get("version") != FORMAT_VERSION:
            raise DataError(
                f"Not activity statistics of version {FORMAT_VERSION}: format {data.get('format')!r}, "
                f"version {data.get('version')!r}.",
                hint="Observe the model again.",
            )
        try:
            groups = [_group_from_json(entry) for entry in data["groups"]]
            untracked = tuple(Untracked(**entry) for entry in data["untracked"])
            return cls(
                str(data["model"]),
                str(data["fingerprint"]),
                int(data["batches"]),
                {group.name: group for group in groups},
                untracked,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"The activity statistics are malformed: {error!r}.", hint="Observe the model again."
            ) from error


def observe(
    model: nn.Module,
    data_loader: Iterable[Any],
    neurons: NeuronMap | None = None,
    *,
    groups: Sequence[str] | None = None,
    include_inexact: bool = False,
    covariance: bool = False,
    covariance_limit: int = LIMIT_BYTES,
) -> ActivityStats:
    """Run the model over all of the data, in evaluation mode, and return what its neurons did.

    The model, its mode, gradients and all random numbers are afterwards as before.

    Args:
        model: any model; a compiled one is run uncompiled.
        data_loader: batches as `tracker.batches.as_batch` takes them.
        neurons: the neuron map; by default the one last discovered for this model, or a new one.
        groups: names of the groups to track; by default all exact ones, since no strategy touches the others unasked.
        include_inexact: track groups that are not exact too.
        covariance: also keep the covariance of every tracked group, n² float64 numbers each, and about one more
            forward's worth of arithmetic.
        covariance_limit: bytes that the covariances may take.

    Raises:
        DataError: an empty loader, a batch that cannot be used, NaN or Inf in data or activations.
        UnknownLayerError: a name in `groups` that the model does not have.
        ConfigError: covariances that would take more than the limit.
    """
    model = unwrapped(model)
    data_loader, first = _peeked(data_loader)
    with evaluating(model):
        neurons = neurons_of(model, neurons, data_loader=first)
        tracked = tracked_groups(neurons, groups, include_inexact)
        if covariance:
            check_memory(tracked, covariance_limit)
        total = len(data_loader) if isinstance(data_loader, Sized) else None
        watch = Watch(tracked, covariance=covariance)
        with watching(model, watch):
            for index, batch in enumerate(progress(iter_batches(data_loader, model), "Observing", total)):
                try:
                    forward(model, batch)
                except Exception as error:
                    error.add_note(f"This happened in the model's forward, with batch {index} of the data.")
                    raise
    return stats_of(watch, neurons)


def tracked_groups(
    neurons: NeuronMap, groups: Sequence[str] | None = None, include_inexact: bool = False
) -> tuple[NeuronGroup, ...]:
    """The groups to track: those named, or all that are exact, or all."""
    if groups is not None:
        asked = {neurons[name].name for name in groups}
        return tuple(group for group in neurons if group.name in asked)
    return tuple(group for group in neurons if group.exact or include_inexact)


def stats_of(watch: Watch, neurons: NeuronMap) -> ActivityStats:
    """The statistics of what was watched so far; raises `DataError` for NaN or Inf in the activations."""
    blocks, covariance = watch.results()
    seen = {name: block for name, block in blocks.items() if block.shape[1] and block[Row.COUNT, 0] > 0}
    watched = {group.name for group in watch.groups}
    untracked = [
        Untracked(group.name, group.kind, group.exact, group.size, _why_untracked(group, group.name in watched))
        for group in neurons
        if group.name not in seen
    ]
    return ActivityStats(
        model=neurons.model,
        fingerprint=neurons.fingerprint,
        batches=watch.batches,
        groups={group.name: _activity(group, seen[group.name]) for group in watch.groups if group.name in seen},
        untracked=tuple(untracked),
        covariance=covariance,
    )


def _why_untracked(group: NeuronGroup, watched: bool) -> str:
    if not watched:
        note = f" ({group.note})" if group.note else ""
        return (
            f"it is not exact{note}; ask for it with groups= or include_inexact=True"
            if not group.exact
            else "not asked for"
        )
    return "its consumers never ran on this data" if group.reads else "it is not known where its consumers read it"


def _activity(group: NeuronGroup | GroupActivity, block: Tensor) -> GroupActivity:
    count, mean, m2, low, high, magnitude, fired = block.numpy()
    return GroupActivity(
        name=group.name,
        kind=group.kind,
        exact=group.exact,
        count=int(count[0]),
        mean=mean,
        variance=m2 / count,
        minimum=low,
        maximum=high,
        mean_magnitude=magnitude / count,
        firing_frequency=fired / count,
    )


def _block(group: GroupActivity) -> Tensor:
    count = np.full(group.size, float(group.count))
    rows = (
        count,
        group.mean,
        group.variance * count,
        group.minimum,
        group.maximum,
        group.mean_magnitude * count,
        np.rint(group.firing_frequency * count),
    )
    return torch.from_numpy(np.stack(rows))


def _fields(entry: GroupActivity | Untracked) -> dict[str, Any]:
    return {spec.name: getattr(entry, spec.name) for spec in fields(entry)}


def _group_from_json(entry: Mapping[str, Any]) -> GroupActivity:
    values: dict[str, Any] = {name: np.array(v, np.float64) if isinstance(v, list) else v for name, v in entry.items()}
    group = GroupActivity(**values)
    arrays = [value for value in values.values() if isinstance(value, np.ndarray)]
    if any(array.shape != (group.size,) for array in arrays) or group.count < 1:
        raise ValueError(f"the arrays of layer {group.name!r} differ in length, or it has no values")
    return group


def _peeked(data_loader: Iterable[Any]) -> tuple[Iterable[Any], Iterable[Any]]:
    """The loader, and one that gives its first batch; both differ where reading a batch would use it up."""
    if not isinstance(data_loader, Iterator):
        return data_loader, data_loader
    first = next(data_loader, None)
    return ([], []) if first is None else (chain([first], data_loader), [first])
