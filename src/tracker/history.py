"""What was logged of every epoch: loss, accuracy, and how the neurons fared. Summary statistics only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from tracker.activity import ActivityStats
from tracker.errors import DataError
from tracker.files import read_json, write_json


class LayerEpoch(BaseModel):
    """One layer in one epoch: medians over its neurons, and the indices of the dead ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    size: int
    firing_frequency: float
    mean_magnitude: float
    dead: list[int]


class EpochRecord(BaseModel):
    """One epoch. `loss` and `accuracy` are what the caller gave."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epoch: int
    loss: float | None = None
    accuracy: float | None = None
    batches: int = 0
    layers: dict[str, LayerEpoch] = {}

    @property
    def dead(self) -> int:
        """Number of dead neurons."""
        return sum(len(layer.dead) for layer in self.layers.values())


class History(BaseModel):
    """All epochs that were logged, in order."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["neuronscope/history"] = "neuronscope/history"
    version: Literal[1] = 1
    model: str = ""
    fingerprint: str = ""
    epochs: list[EpochRecord] = []

    def log(self, stats: ActivityStats, epoch: int, loss: float | None, accuracy: float | None) -> EpochRecord:
        """Add an epoch; logging the same epoch again replaces it, as after a resumed run.

        Raises `DataError` for a loss or an accuracy that is no number, or NaN or Inf.
        """
        record = EpochRecord(
            epoch=epoch,
            loss=_finite("loss", loss, epoch),
            accuracy=_finite("accuracy", accuracy, epoch),
            batches=stats.batches,
            layers={name: _layer(stats, name) for name in stats.groups},
        )
        self.epochs = sorted([e for e in self.epochs if e.epoch != epoch] + [record], key=lambda e: e.epoch)
        return record

    def deaths(self) -> Iterator[tuple[int, str, list[int]]]:
        """Which neurons were dead in an epoch and not in the one logged before: (epoch, layer, neurons)."""
        before: dict[str, set[int]] = {}
        for record in self.epochs:
            for name, layer in record.layers.items():
                new = sorted(set(layer.dead) - before.get(name, set()))
                if new:
                    yield record.epoch, name, new
                before[name] = set(layer.dead)

    def save(self, path: str | Path) -> None:
        """Write the history, whole or not at all."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: str | Path) -> History:
        """Read a history; raises `DataError` where the file is something else."""
        data: Any = read_json(path, what="history", error=DataError)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            raise DataError(
                f"'{path}' is no history: {'.'.join(map(str, first['loc']))}: {first['msg']}.",
                hint="Write it with History.save.",
            ) from error


def _finite(name: str, value: float | None, epoch: int) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"Epoch {epoch}: the {name} is {value!r}.", hint="Give a number, or None.") from error
    if not math.isfinite(number):
        raise DataError(
            f"Epoch {epoch}: the {name} is {number}.",
            hint="The training has diverged: lower the learning rate, and look for NaN in the data.",
        )
    return number


def _layer(stats: ActivityStats, name: str) -> LayerEpoch:
    group = stats[name]
    return LayerEpoch(
        size=group.size,
        firing_frequency=float(np.median(group.firing_frequency)),
        mean_magnitude=float(np.median(group.mean_magnitude)),
        dead=group.dead.nonzero()[0].tolist(),
    )
