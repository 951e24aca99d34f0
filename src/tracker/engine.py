"""`NeuronEngine`: the tracker's front door, for one model or several."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import nn

from tracker.activity import ActivityStats
from tracker.advice import CORRELATION_THRESHOLD, FIRING_FREQUENCY_THRESHOLD
from tracker.alerts import Alert
from tracker.errors import DataError, nearest
from tracker.history import EpochRecord, History
from tracker.neuron_history import NeuronHistory
from tracker.neuron_map import NeuronMap
from tracker.neuron_tracker import NeuronTracker
from tracker.recommendations import Recommendations


class NeuronEngine:
    """Watches what neurons do, keeps their history, and recommends which of them to remove.

        engine = NeuronEngine()
        engine.observe(model, data_loader)
        engine.save_recommendations("recommendations.json")

    or, while a model trains:

        for epoch in range(epochs):
            with engine.tracking(model):
                train_one_epoch(model)
            engine.log_epoch(epoch, loss, accuracy)

    The engine is a context manager too: `with NeuronEngine() as engine:` watches every model tracked in the block until
    its end.

    Methods without a `name` speak of the model that was tracked or observed last.

    Args:
        output_dir: where `log_epoch` writes, into its folder `logs`.
        groups: names of the layers to track; by default all that are exact.
        include_inexact: also track layers that are not exact, which no pruning strategy touches unless told to.
        covariance: also keep covariances, for redundant neurons: n² numbers for a layer of n neurons.
        per_neuron: also keep what every neuron did in every epoch: 13 bytes each, see `NeuronHistory`.
    """

    def __init__(
        self,
        output_dir: str | Path = "outputs",
        *,
        groups: Sequence[str] | None = None,
        include_inexact: bool = False,
        covariance: bool = False,
        per_neuron: bool = True,
    ) -> None:
        self.output_dir = Path(output_dir)
        self._groups = groups
        self._include_inexact = include_inexact
        self._covariance = covariance
        self._per_neuron = per_neuron
        self._trackers: dict[str, NeuronTracker] = {}
        self._current: NeuronTracker | None = None
        self._block: ExitStack | None = None

    def track_model(self, model: nn.Module, name: str | None = None) -> NeuronTracker:
        """The tracker of a model, made at the first call; it becomes the one that methods speak of.

        `name` is by default the model's class. Another model under a name already used takes its place.
        """
        if not isinstance(model, nn.Module):
            raise DataError(f"A model is a torch.nn.Module, not {type(model).__name__}.", hint="Give the model first.")
        known = next((t for t in self._trackers.values() if t.model is model and name in (None, t.name)), None)
        tracker = known or NeuronTracker(
            model,
            name,
            groups=self._groups,
            include_inexact=self._include_inexact,
            covariance=self._covariance,
            per_neuron=self._per_neuron,
        )
        self._trackers[tracker.name] = tracker
        self._current = tracker
        if self._block is not None and known is None:
            self._block.enter_context(tracker.tracking())
        return tracker

    def tracker(self, name: str | None = None) -> NeuronTracker:
        """The tracker called `name`, or the current one; raises `DataError` where there is none."""
        if name is None:
            if self._current is None:
                raise DataError("No model is tracked yet.", hint="Call track_model(model) or observe(model, data).")
            return self._current
        if name not in self._trackers:
            raise DataError(
                f"No model is tracked as '{name}'.{nearest(name, self._trackers)}",
                hint=f"Tracked are: {', '.join(self._trackers) or 'none'}.",
            )
        return self._trackers[name]

    def observe(self, model: nn.Module, data_loader: Iterable[Any], neurons: NeuronMap | None = None) -> ActivityStats:
        """Run a model over the data, which leaves no trace in it, and keep what its neurons did.

        Raises `DataError` for an empty loader, unusable batches, and NaN or Inf in data or activations.
        """
        return self.track_model(model).observe(data_loader, neurons)

    @contextmanager
    def tracking(
        self,
        model: nn.Module | None = None,
        *,
        neurons: NeuronMap | None = None,
        data_loader: Iterable[Any] | None = None,
        every: int = 1,
    ) -> Iterator[NeuronTracker]:
        """A block in which the training of a model is watched; see `NeuronTracker.tracking`."""
        tracker = self.tracker() if model is None else self.track_model(model)
        with tracker.tracking(neurons, data_loader=data_loader, every=every):
            yield tracker

    def __enter__(self) -> Self:
        """Watch the models tracked so far, and those tracked from here on, until the block ends."""
        with ExitStack() as opening:
            for tracker in self._trackers.values():
                opening.enter_context(tracker.tracking())
            self._block = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        block, self._block = self._block, None
        if block is not None:
            block.__exit__(kind, error, traceback)

    def get_summary(self, name: str | None = None) -> dict[str, Any]:
        """The latest activity and the history of a model, as JSON-ready data."""
        return self.tracker(name).summary()

    def log_epoch(
        self, epoch: int, loss: float | None = None, accuracy: float | None = None, *, name: str | None = None
    ) -> EpochRecord:
        """Add an epoch to the history and write `<output_dir>/logs/epoch_<n>_recommendations.json`.

        Where several models are tracked, the file's name starts with the model's.

        Raises `DataError` where nothing was observed, or for NaN or Inf; `StorageError` where the file cannot be
        written.
        """
        tracker = self.tracker(name)
        record = tracker.log_epoch(epoch, loss, accuracy)
        prefix = re.sub(r"[^\w.-]+", "_", tracker.name) + "_" if len(self._trackers) > 1 else ""
        path = self.output_dir / "logs" / f"{prefix}epoch_{epoch}_recommendations.json"
        tracker.recommend(epoch=epoch).save(path)
        return record

    def removed(self, neurons: Mapping[str, Iterable[int]], *, name: str | None = None) -> None:
        """Say which neurons a model lost, by layer, so that their histories go on; see `NeuronTracker.removed`."""
        self.tracker(name).removed(neurons)

    def alerts(self, name: str | None = None) -> tuple[Alert, ...]:
        """What asked for a look when epochs were logged: dying layers, explosions, duplicates; see `tracker.alerts`."""
        return self.tracker(name).alerts

    def neuron_history(self, name: str | None = None) -> NeuronHistory:
        """What every neuron of a model did in every epoch; raises `DataError` with `per_neuron=False`."""
        tracker = self.tracker(name)
        if tracker.neuron_history is None:
            raise DataError(f"No neuron of '{tracker.name}' was followed.", hint="Track it with per_neuron=True.")
        return tracker.neuron_history

    def recommend(
        self,
        *,
        name: str | None = None,
        epoch: int | None = None,
        firing_frequency_threshold: float = FIRING_FREQUENCY_THRESHOLD,
        correlation_threshold: float = CORRELATION_THRESHOLD,
    ) -> Recommendations:
        """Which neurons to remove, which to merge, which layers to expand; see `tracker.advice.recommend`."""
        return self.tracker(name).recommend(
            epoch=epoch,
            firing_frequency_threshold=firing_frequency_threshold,
            correlation_threshold=correlation_threshold,
        )

    def save_recommendations(self, path: str | Path, *, name: str | None = None) -> Recommendations:
        """Recommend, and write the recommendations as JSON; raises `StorageError`."""
        recommendations = self.recommend(name=name)
        recommendations.save(path)
        return recommendations

    def save_history(self, path: str | Path, *, name: str | None = None) -> None:
        """Write a model's history as JSON; raises `StorageError`."""
        self.tracker(name).history.save(path)

    def load_history(self, path: str | Path, *, name: str | None = None) -> History:
        """Continue a model's history from a file; raises `StorageError` or `DataError`."""
        tracker = self.tracker(name)
        tracker.history = History.load(path)
        return tracker.history

    def save_neuron_history(self, path: str | Path, *, name: str | None = None) -> None:
        """Write the history of every neuron as safetensors; raises `StorageError`."""
        self.neuron_history(name).save(path)

    def load_neuron_history(self, path: str | Path, *, name: str | None = None) -> NeuronHistory:
        """Continue the history of every neuron from a file; raises `StorageError` or `DataError`."""
        tracker = self.tracker(name)
        tracker.neuron_history = NeuronHistory.load(path)
        return tracker.neuron_history
