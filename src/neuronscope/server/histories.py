"""Training runs to look back on: neuron histories in the one file or folder that the server was started with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronscope.server.problems import Problem
from tracker.errors import DataError, NeuronScopeError
from tracker.history import History
from tracker.neuron_archive import STATISTICS
from tracker.neuron_history import LayerHistory, NeuronHistory, State

SUFFIX = ".safetensors"
_NAME = re.compile(r"[\w][\w .-]{0,119}")


@dataclass(frozen=True)
class Run:
    """A training run: what every neuron did, and what the loss was where that was kept beside it."""

    name: str
    neurons: NeuronHistory
    losses: tuple[tuple[float | None, float | None], ...]

    @cached_property
    def layers(self) -> tuple[LayerHistory, ...]:
        """All layers over all epochs, put together once."""
        return tuple(self.neurons.layer(name) for name in self.neurons.layers)

    def told(self) -> dict[str, Any]:
        """Epochs with losses and accuracies, layers with sizes, and every death and revival."""
        layers = self.layers
        return {
            "name": self.name,
            "model": self.neurons.model,
            "epochs": list(self.neurons.epochs),
            "loss": [loss for loss, _ in self.losses],
            "accuracy": [accuracy for _, accuracy in self.losses],
            "layer_names": [layer.name for layer in layers],
            "layer_sizes": [layer.size for layer in layers],
            "dead": [
                [int((layer.state[index] == State.DEAD).sum()) for layer in layers]
                for index in range(len(self.neurons.epochs))
            ],
            "gone": [
                [int((layer.state[index] == State.GONE).sum()) for layer in layers]
                for index in range(len(self.neurons.epochs))
            ],
            "deaths": [list(event) for event in self.neurons.deaths()],
            "revivals": [list(event) for event in self.neurons.revivals()],
        }

    def values(self, statistic: str, epoch: int) -> NDArray[np.float32]:
        """A number for every neuron in order; NaN for those that were not seen, or are gone. `epoch` is an index."""
        found = [getattr(layer, statistic)[epoch] for layer in self.layers]
        return np.concatenate(found).astype("<f4") if found else np.zeros(0, "<f4")

    def neuron(self, layer: int, neuron: int) -> dict[str, Any]:
        """One neuron over all epochs; what is NaN is None."""
        found = self.layers[layer]
        curves = {name: getattr(found, name)[:, neuron] for name in STATISTICS}
        return {
            "layer_name": found.name,
            "neuron_index": neuron,
            "epochs": found.epochs.tolist(),
            "state": [State(value).name.lower() for value in found.state[:, neuron]],
            **{name: [None if np.isnan(x) else float(x) for x in curve] for name, curve in curves.items()},
        }


class Histories:
    """All of them; the last that was read stays in memory. A name never leads out of the folder."""

    def __init__(self, place: Path | None) -> None:
        self._place = place
        self._kept: tuple[Path, int, Run] | None = None

    def names(self) -> list[str]:
        """Names of the files that may be histories, in order."""
        return sorted(self._files())

    def run(self, name: str) -> Run:
        """The run of that name; raises `Problem` 404 where there is none, and 422 where its file is something else."""
        path = self._files().get(name)
        if path is None:
            raise Problem(404, f"There is no training history {name[:80]!r}.", "GET /api/histories lists them.")
        changed = path.stat().st_mtime_ns
        kept = self._kept  # requests run side by side: another one may replace it meanwhile
        if kept is None or kept[:2] != (path, changed):
            try:
                neurons = NeuronHistory.load(path)
            except DataError as error:
                raise Problem(422, str(error), "Write one with engine.save_neuron_history(path).") from error
            self._kept = kept = path, changed, Run(name, neurons, _losses(path, neurons.epochs))
        return kept[2]

    def _files(self) -> dict[str, Path]:
        if self._place is None or not self._place.exists():
            return {}
        paths = [self._place] if self._place.is_file() else sorted(self._place.glob(f"*{SUFFIX}"))
        return {path.stem: path for path in paths if _NAME.fullmatch(path.stem)}


def _losses(path: Path, epochs: tuple[int, ...]) -> tuple[tuple[float | None, float | None], ...]:
    """What `engine.save_history` wrote beside it under the same name, if it did."""
    beside = path.with_suffix(".json")
    try:
        known = {record.epoch: record for record in History.load(beside).epochs} if beside.is_file() else {}
    except NeuronScopeError:  # some other file: the neurons can be shown without it
        known = {}
    return tuple((known[e].loss, known[e].accuracy) if e in known else (None, None) for e in epochs)
