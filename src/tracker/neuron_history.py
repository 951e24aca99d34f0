"""What every single neuron did in every epoch: when it died, whether it came back, when it was removed.

A neuron keeps one column for good: its index in the model as it was first seen. Once it is removed its column says so,
and what is seen of the smaller layer goes into the columns that are left. A neuron takes 13 bytes an epoch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracker.activity import ActivityStats, GroupActivity
from tracker.errors import ConfigError, DataError, UnknownLayerError, nearest
from tracker.neuron_archive import STATISTICS, Archive, read_archive, write_archive

logger = logging.getLogger(__name__)

LIMIT_BYTES = 256 * 2**20
_LARGEST = float(np.finfo(np.float32).max)

Values = NDArray[np.float32]
States = NDArray[np.uint8]
Flags = NDArray[np.bool_]


class State(IntEnum):
    """What is known of a neuron in an epoch. The statistics of one that is unseen or gone are NaN."""

    UNSEEN = 0
    ALIVE = 1
    DEAD = 2
    GONE = 3


class NeuronEvent(NamedTuple):
    """Something that happened to a neuron, and the first logged epoch that shows it."""

    layer: str
    neuron: int
    epoch: int


@dataclass(frozen=True, eq=False)
class LayerHistory:
    """One layer over all epochs: `epochs` (E,), `present` (N,), all other arrays (E, N).

    The statistics are those of `tracker.activity.GroupActivity`, in float32. `state` holds values of `State`; dead is
    what `GroupActivity.dead` says. `present` marks the neurons that are not removed.
    """

    name: str
    epochs: NDArray[np.int64]
    firing_frequency: Values
    mean_magnitude: Values
    variance: Values
    state: States
    present: Flags

    @property
    def size(self) -> int:
        """Number of neurons, with those that were removed."""
        return len(self.present)

    @property
    def dead_since(self) -> NDArray[np.int64]:
        """The index in `epochs` since which a neuron was dead whenever it was seen; -1 for the others. (N,)."""
        since = np.full(self.size, -1, np.int64)
        for index, row in enumerate(self.state):
            since[(row == State.DEAD) & (since < 0)] = index
            since[row == State.ALIVE] = -1
        return since

    @property
    def dead(self) -> Flags:
        """Which neurons are still in the model and were dead when they were last seen. (N,)."""
        dead: Flags = self.present & (self.dead_since >= 0)
        return dead


@dataclass(frozen=True, eq=False)
class _Row:
    """A layer in one epoch: `values` (3, N), in the order of `STATISTICS`, and `state` (N,)."""

    values: Values
    state: States

    @property
    def bytes(self) -> int:
        return self.values.nbytes + self.state.nbytes


class NeuronHistory:
    """The history of every neuron of a model, in bounded memory.

    When the record outgrows `limit_bytes`, every second epoch is dropped, counted back from the newest: the past gets
    coarser the further back it lies, and an event is then dated to the first epoch kept that shows it.
    """

    def __init__(self, model: str = "", *, limit_bytes: int = LIMIT_BYTES) -> None:
        self.model = model
        self.limit_bytes = limit_bytes
        self._present: dict[str, Flags] = {}
        self._epochs: dict[int, dict[str, _Row]] = {}

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs that are kept, in order."""
        return tuple(self._epochs)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in the order in which they were first seen."""
        return tuple(self._present)

    @property
    def bytes(self) -> int:
        """Memory that the record takes."""
        return sum(row.bytes for rows in self._epochs.values() for row in rows.values())

    def unexpected(self, stats: ActivityStats) -> tuple[str, ...]:
        """Layers that are not of the size that is left of them here, as after a removal that was not told."""
        return tuple(
            name for name, group in stats.items() if name in self._present and group.size != self._present[name].sum()
        )

    def log(self, stats: ActivityStats, epoch: int) -> None:
        """Add an epoch; logging the same epoch again replaces it.

        Raises:
            DataError: a layer has another size than is left of it: `removed` was not called. Or a statistic is NaN.
            ConfigError: this epoch alone takes more than `limit_bytes`.
        """
        for name in self.unexpected(stats):
            raise DataError(
                f"Layer '{name}' has {stats[name].size} neurons, and {self._present[name].sum()} were left of it.",
                hint=f"Say which were removed, with removed('{name}', neurons), before the next epoch.",
            )
        new = {name: np.ones(group.size, np.bool_) for name, group in stats.items() if name not in self._present}
        present = {**self._present, **new}
        rows = {name: _row(stats.groups.get(name), columns) for name, columns in present.items()}
        needed = sum(row.bytes for row in rows.values())
        if needed > self.limit_bytes:
            raise ConfigError(
                f"One epoch of every neuron takes {needed / 1e6:.1f} MB; the limit is {self.limit_bytes / 1e6:.1f} MB.",
                hint="Track fewer layers with groups=[...], raise limit_bytes, or leave it out with per_neuron=False.",
            )
        self._present = present
        self._epochs = dict(sorted({**self._epochs, epoch: rows}.items()))
        while self.bytes > self.limit_bytes:
            kept = list(self._epochs)[::-2][::-1]
            self._epochs = {number: self._epochs[number] for number in kept}
            logger.info("The history of every neuron reached its limit: every second epoch was dropped.")

    def removed(self, layer: str, neurons: Iterable[int]) -> None:
        """Say that neurons were removed from the model after the last epoch.

        Args:
            layer: name of the layer.
            neurons: their indices in the layer as it was just before they were removed.

        Raises `UnknownLayerError`, and `DataError` for an index that the layer does not have or that is named twice.
        """
        columns = self._columns(layer)
        chosen = [int(neuron) for neuron in neurons]
        for neuron in chosen:
            if not 0 <= neuron < len(columns):
                raise DataError(
                    f"Neuron {neuron} of layer '{layer}' cannot have been removed: {len(columns)} were left.",
                    hint=f"Use indices from 0 to {len(columns) - 1}, as the layer was before the removal.",
                )
        if len(set(chosen)) < len(chosen):
            raise DataError(f"A neuron of layer '{layer}' is removed twice.", hint="Name every neuron once.")
        self._present[layer][columns[chosen]] = False

    def identities(self, layer: str) -> NDArray[np.int64]:
        """For every neuron that layer has now, its index in the model as it was first seen."""
        return self._columns(layer)

    def layer(self, name: str) -> LayerHistory:
        """All epochs of one layer; raises `UnknownLayerError`."""
        self._known(name)
        present = self._present[name].copy()
        unseen = _row(None, np.ones_like(present))
        rows = [epoch.get(name, unseen) for epoch in self._epochs.values()]
        values = np.array([row.values for row in rows], np.float32).reshape(len(rows), len(STATISTICS), len(present))
        state = np.array([row.state for row in rows], np.uint8).reshape(len(rows), len(present))
        firing_frequency, mean_magnitude, variance = values.swapaxes(0, 1)
        epochs = np.array(self.epochs, np.int64)
        return LayerHistory(name, epochs, firing_frequency, mean_magnitude, variance, state, present)

    def deaths(self) -> list[NeuronEvent]:
        """Neurons that were dead when last seen, and the epoch since which they had always been; removed ones too."""
        events: list[NeuronEvent] = []
        for name in self.layers:
            since = self.layer(name).dead_since
            dead = [int(neuron) for neuron in np.argsort(since, kind="stable") if since[neuron] >= 0]
            events += [NeuronEvent(name, neuron, self.epochs[since[neuron]]) for neuron in dead]
        return events

    def revivals(self) -> list[NeuronEvent]:
        """Every time that a neuron was active and had been dead when it was seen before."""
        return [
            NeuronEvent(name, neuron, self.epochs[index])
            for name in self.layers
            for index, neuron in _revivals(self.layer(name).state)
        ]

    def save(self, path: str | Path) -> None:
        """Write the history as safetensors, whole or not at all; raises `StorageError`."""
        write_archive(path, Archive(self.model, self.epochs, {name: self._stacked(name) for name in self.layers}))

    @classmethod
    def load(cls, path: str | Path, *, limit_bytes: int = LIMIT_BYTES) -> NeuronHistory:
        """Read a history, to look at or to continue.

        Raises `StorageError` where the file cannot be read and `DataError` where it is something else, or takes more
        than `limit_bytes`. Nothing in a file is ever executed.
        """
        archive = read_archive(path, limit_bytes)
        history = cls(archive.model, limit_bytes=limit_bytes)
        history._present = {name: present for name, (_, _, present) in archive.layers.items()}
        for index, epoch in enumerate(archive.epochs):
            history._epochs[epoch] = {
                name: _Row(values[index], state[index]) for name, (values, state, _) in archive.layers.items()
            }
        return history

    def _stacked(self, name: str) -> tuple[Values, States, Flags]:
        layer = self.layer(name)
        return np.stack([getattr(layer, statistic) for statistic in STATISTICS], 1), layer.state, layer.present

    def _columns(self, layer: str) -> NDArray[np.int64]:
        self._known(layer)
        return np.flatnonzero(self._present[layer]).astype(np.int64)

    def _known(self, name: str) -> None:
        if name not in self._present:
            raise UnknownLayerError(f"There is no history of a layer '{name}'.{nearest(name, self._present)}")


def _row(group: GroupActivity | None, present: Flags) -> _Row:
    """What was seen of a layer (None: nothing), in the columns of the neurons that are present."""
    values = np.full((len(STATISTICS), len(present)), np.nan, np.float32)
    state = np.where(present, State.UNSEEN, State.GONE).astype(np.uint8)
    if group is not None:
        # What is beyond float32 is kept as its largest number: still far too large, and still a number.
        values[:, present] = np.clip([getattr(group, name) for name in STATISTICS], 0, _LARGEST)
        if np.isnan(values[:, present]).any():
            raise DataError(f"The activity of layer '{group.name}' is NaN.", hint="Look for NaN in the data.")
        state[present] = np.where(group.dead, State.DEAD, State.ALIVE)
    return _Row(values, state)


def _revivals(state: States) -> Iterator[tuple[int, int]]:
    """(index of the epoch, neuron) for every step from dead to alive."""
    dead = np.zeros(state.shape[1], np.bool_)
    for index, row in enumerate(state):
        for neuron in np.flatnonzero(dead & (row == State.ALIVE)).tolist():
            yield index, neuron
        dead = (dead | (row == State.DEAD)) & (row != State.ALIVE)
