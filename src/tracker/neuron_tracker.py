"""The tracker of one model: its neurons, their latest activity, and their history."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn

from tracker.activity import ActivityStats, observe, stats_of, tracked_groups
from tracker.admission import unwrapped
from tracker.advice import CORRELATION_THRESHOLD, FIRING_FREQUENCY_THRESHOLD, recommend
from tracker.alerts import Alert, alerts
from tracker.covariance import check_memory
from tracker.discover import example_call, neurons_of
from tracker.errors import DataError
from tracker.history import EpochRecord, History
from tracker.in_graph import hidden, is_compiled, something_is_compiled, watching_in_graph
from tracker.neuron_history import NeuronHistory
from tracker.neuron_map import NeuronMap
from tracker.recommendations import Recommendations
from tracker.watch import Watch, watching

logger = logging.getLogger(__name__)


class NeuronTracker:
    """Tracks one model, by running it over data (`observe`) or by looking on while it trains (`tracking`).

    Only summary statistics are kept: one set for the latest data; for every epoch a few numbers of each layer
    (`history`) and three of each neuron (`neuron_history`, None with `per_neuron=False`). `alerts` holds what asked for
    a look when an epoch was logged, each once for as long as it lasts.

    `groups`, `include_inexact` and `covariance` are those of `tracker.activity.observe`.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str | None = None,
        *,
        groups: Sequence[str] | None = None,
        include_inexact: bool = False,
        covariance: bool = False,
        per_neuron: bool = True,
    ) -> None:
        self.model = model
        self.name = name or type(unwrapped(model)).__name__
        self.history = History(model=self.name)
        self.neuron_history = NeuronHistory(self.name) if per_neuron else None
        self.alerts: tuple[Alert, ...] = ()
        self._standing: frozenset[tuple[str, str, float]] = frozenset()
        self._groups = groups
        self._include_inexact = include_inexact
        self._covariance = covariance
        self._neurons: NeuronMap | None = None
        self._latest: ActivityStats | None = None
        self._watch: Watch | None = None
        self._logged = False

    @property
    def stats(self) -> ActivityStats:
        """What was seen since the last epoch was logged; before any new data, what was seen last.

        Raises `DataError` where nothing was seen yet, or NaN or Inf.
        """
        if self._watch is not None and self._neurons is not None and self._watch.batches:
            return stats_of(self._watch, self._neurons)
        if self._latest is None:
            raise DataError(
                f"Nothing is known of the activity of '{self.name}' yet.",
                hint="Call observe(model, data_loader), or train inside `with engine.tracking(model):`. There only "
                "whole forwards in training mode count.",
            )
        return self._latest

    def observe(self, data_loader: Iterable[Any], neurons: NeuronMap | None = None) -> ActivityStats:
        """Run the model over the data and keep what its neurons did; see `tracker.activity.observe`."""
        self._latest = observe(
            self.model,
            data_loader,
            neurons,
            groups=self._groups,
            include_inexact=self._include_inexact,
            covariance=self._covariance,
        )
        self._watch, self._logged = None, False
        return self._latest

    @contextmanager
    def tracking(
        self, neurons: NeuronMap | None = None, *, data_loader: Iterable[Any] | None = None, every: int = 1
    ) -> Iterator[NeuronTracker]:
        """Within the block, what the model reads in training adds to the statistics, until an epoch is logged.

        Gradients, random numbers and the model's mode stay as they are. Forwards in evaluation mode do not count, so a
        validation may run inside the block. `neurons` and `data_loader` help to find the neurons of a model that was
        not looked at before. With `every`, only one in so many forwards is looked at.

        Models that are compiled are seen from inside the compiled code. It is compiled anew for that, once; layers that
        it hides (raw parameters) are left out with a warning.
        """
        if type(every) is not int or every < 1:
            raise DataError(f"every = {every!r} is no number of steps.", hint="Give a whole number from 1 up.")
        model = unwrapped(self.model)
        found = neurons_of(model, neurons, data_loader=data_loader)
        if self._watch is None or self._neurons is not found:
            tracked = tracked_groups(found, self._groups, self._include_inexact)
            if self._covariance:
                check_memory(tracked)
            self._watch = Watch(tracked, covariance=self._covariance, only_training=True)
            self._neurons = found
        self._watch.every = every
        before = self._watch.batches
        with self._watching(model, self._watch):
            yield self
        if self._watch.blind:
            raise DataError(
                f"'{self.name}' ran, and none of its layers were seen: its code was compiled in a way that hides them.",
                hint="Track it uncompiled: with torch.compiler.set_stance('force_eager').",
            )
        if self._watch.batches == before and not self._logged:
            logger.warning(
                "No forward of '%s' in training mode was seen while it was tracked: call model.train(), and call the "
                "model itself rather than parts of it.",
                self.name,
            )

    def _watching(self, model: nn.Module, watch: Watch) -> AbstractContextManager[object]:
        seen = [group for group in watch.groups if not hidden(group)]
        compiled = is_compiled(self.model)
        if not compiled and (len(seen) < len(watch.groups) or not something_is_compiled()):
            return watching(model, watch)
        watch.to(model)
        if len(seen) < len(watch.groups):
            logger.warning(
                "'%s' is compiled, and compiled code hides what raw parameters are multiplied with: %s not tracked.",
                self.name,
                ", ".join(repr(group.name) for group in watch.groups if hidden(group)),
            )
        return watching_in_graph(model, watch, seen, example_call(model))

    def so_far(self) -> tuple[int, Tensor] | None:
        """What was seen while tracking since the last epoch was logged, for `go_on` in another process; see `Watch`."""
        return None if self._watch is None else self._watch.so_far()

    def go_on(self, batches: int, block: Tensor) -> None:
        """Within `tracking`: take over what another process had seen so far."""
        if self._watch is None:
            raise DataError("Nothing is tracked.", hint="Call it inside `with tracker.tracking():`.")
        self._watch.go_on(batches, block)

    def log_epoch(self, epoch: int, loss: float | None = None, accuracy: float | None = None) -> EpochRecord:
        """Close an epoch: add it to the histories, warn of what asks for a look, and start the next with no data.

        Raises `DataError` where nothing was seen yet, for NaN or Inf, and for an epoch that is not a whole number.
        """
        if type(epoch) is not int or epoch < 0:  # a bool is an int, and no epoch
            raise DataError(f"The epoch is {epoch!r}.", hint="Give its number: 0, 1, 2, …")
        stats = self.stats
        record = self.history.log(stats, epoch, loss, accuracy)
        if self._logged and (self._watch is None or not self._watch.batches):
            logger.warning("Epoch %d of '%s' shows the same activity as the one before: no new data.", epoch, self.name)
        if self.neuron_history is not None:
            self._log_neurons(self.neuron_history, stats, epoch)
        self._raise_alerts(alerts(self.history, self.neuron_history, stats))
        self._latest, self._logged = stats, True
        if self._watch is not None:
            self._watch.reset()
        return record

    def removed(self, neurons: Mapping[str, Iterable[int]]) -> None:
        """Say that neurons were removed, by layer, so that the history of every neuron follows the smaller model.

        Indices are those of the model just before the removal; layers that were never logged do not matter. Raises
        `DataError` for a neuron that its layer does not have.
        """
        if self.neuron_history is not None:
            for name, chosen in neurons.items():
                if name in self.neuron_history.layers:
                    self.neuron_history.removed(name, chosen)

    def _log_neurons(self, neuron_history: NeuronHistory, stats: ActivityStats, epoch: int) -> None:
        changed = neuron_history.unexpected(stats)
        if not changed:
            neuron_history.log(stats, epoch)
            return
        logger.warning(
            "Epoch %d of '%s' is missing in the history of every neuron: layers changed their size (%s). Say which "
            "neurons were removed, with removed({layer: neurons}).",
            epoch,
            self.name,
            ", ".join(changed),
        )

    def _raise_alerts(self, found: tuple[Alert, ...]) -> None:
        """Log and keep the alerts that did not stand in the epoch before."""
        new = tuple(alert for alert in found if (alert.kind, alert.layer, alert.threshold) not in self._standing)
        for alert in new:
            logger.warning("Epoch %d of '%s', %s: %s", alert.epoch, self.name, alert.kind, alert.message)
        self._standing = frozenset((alert.kind, alert.layer, alert.threshold) for alert in found)
        self.alerts += new

    def recommend(
        self,
        *,
        epoch: int | None = None,
        firing_frequency_threshold: float = FIRING_FREQUENCY_THRESHOLD,
        correlation_threshold: float = CORRELATION_THRESHOLD,
    ) -> Recommendations:
        """What the latest activity speaks for; see `tracker.advice.recommend`."""
        return recommend(
            self.stats,
            epoch=epoch,
            firing_frequency_threshold=firing_frequency_threshold,
            correlation_threshold=correlation_threshold,
        )

    def summary(self) -> dict[str, Any]:
        """The latest activity and the history, as JSON-ready data for people to read."""
        seen = self._latest is not None or (self._watch is not None and self._watch.batches > 0)
        stats = self.stats if seen else ActivityStats(type(unwrapped(self.model)).__name__, "", 0, {})
        layers = {
            name: {
                "size": group.size,
                "kind": group.kind,
                "exact": group.exact,
                "dead": int(group.dead.sum()),
                "constant": int(group.constant.sum()),
                "firing_frequency": float(group.firing_frequency.mean()),
                "mean_magnitude": float(group.mean_magnitude.mean()),
                "variance": float(group.variance.mean()),
                "saturation": float(group.saturation.mean()),
            }
            for name, group in stats.items()
        }
        return {
            "model": self.name,
            "class": stats.model,
            "fingerprint": stats.fingerprint,
            "batches": stats.batches,
            "neurons": sum(group.size for group in stats.values()),
            "dead_neurons": sum(len(neurons) for neurons in stats.dead.values()),
            "layers": layers,
            "untracked": {entry.name: entry.reason for entry in stats.untracked},
            "history": [
                {"epoch": r.epoch, "loss": r.loss, "accuracy": r.accuracy, "dead_neurons": r.dead}
                for r in self.history.epochs
            ],
            "alerts": [alert.to_json() for alert in self.alerts],
        }
