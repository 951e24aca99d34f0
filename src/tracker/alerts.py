"""Alerts: what in the history of a training asks for a look now, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tracker.activity import ActivityStats
from tracker.advice import CORRELATION_THRESHOLD, duplicates
from tracker.history import EpochRecord, History, LayerEpoch
from tracker.neuron_history import NeuronHistory, State

AlertKind = Literal["dying layer", "exploding", "vanishing", "duplicate neurons"]

# A layer is dying when more than half of it is dead, or when the share of the dead rose by more than a fifth of the
# layer within three epochs: at that pace nothing is left of it after fifteen.
DEAD_SHARE = 0.5
DEAD_RISE = 0.2
_EPOCHS = 3
# Training moves magnitudes by a few per cent an epoch, and by a few times at its very start: tenfold is neither.
CHANGE = 10.0
_NAMED = 5


@dataclass(frozen=True)
class Alert:
    """Something in one layer that asks for a look.

    `neurons` are indices in the layer as it was in this epoch, () where it is about the layer as a whole. `value` went
    beyond `threshold`: a share of the layer (dying), a factor from one logged epoch to the next (exploding,
    vanishing), or the largest absolute correlation (duplicates).
    """

    kind: AlertKind
    layer: str
    epoch: int
    neurons: tuple[int, ...]
    value: float
    threshold: float
    message: str

    def to_json(self) -> dict[str, Any]:
        """The alert as JSON-ready data."""
        return {**asdict(self), "neurons": list(self.neurons)}


def alerts(
    history: History,
    neuron_history: NeuronHistory | None = None,
    latest_stats: ActivityStats | None = None,
    *,
    correlation_threshold: float = CORRELATION_THRESHOLD,
) -> tuple[Alert, ...]:
    """What the epoch logged last shows, beside those before it; layer by layer.

    Magnitudes are compared neuron by neuron where `neuron_history` has both epochs, so that removing weak neurons is no
    explosion; else by the layers' medians. Duplicates are looked for in the covariances of `latest_stats`, if any.
    """
    if not history.epochs:
        return ()
    latest = history.epochs[-1]
    found: list[Alert] = []
    for name in latest.layers:
        found += _dying(history, name)
        found += _changed(history, neuron_history, name)
        if latest_stats is not None and name in latest_stats.covariance:
            found += _duplicates(latest_stats, name, latest.epoch, correlation_threshold)
    return tuple(found)


def _dying(history: History, name: str) -> Iterator[Alert]:
    latest = history.epochs[-1]
    layer = latest.layers[name]
    share = _dead_share(layer)
    before = [record for record in history.epochs[-1 - _EPOCHS : -1] if name in record.layers]
    counted = f"{len(layer.dead)} of {layer.size} neurons of layer '{name}' are dead"
    if share > DEAD_SHARE:
        what = f"{counted}, more than half."
        advice = "Lower the learning rate or use an activation that passes negative values; or prune them."
        yield Alert("dying layer", name, latest.epoch, tuple(layer.dead), share, DEAD_SHARE, f"{what} {advice}")
    elif before:
        lowest = min(before, key=lambda record: _dead_share(record.layers[name]))
        rise = share - _dead_share(lowest.layers[name])
        if rise > DEAD_RISE:
            old = lowest.layers[name]
            what = f"{counted}; in epoch {lowest.epoch} it was {len(old.dead)} of {old.size}."
            advice = "Lower the learning rate, or warm it up."
            yield Alert("dying layer", name, latest.epoch, tuple(layer.dead), rise, DEAD_RISE, f"{what} {advice}")


def _changed(history: History, neuron_history: NeuronHistory | None, name: str) -> Iterator[Alert]:
    epochs = [record for record in history.epochs[-2:] if name in record.layers]
    if len(epochs) < 2:
        return
    before, latest = epochs
    pairs = _magnitudes(neuron_history, name, before, latest)
    factors = {what: new / old for what, (old, new) in pairs.items() if old > 0}
    if not factors:
        return
    largest = max(factors, key=factors.__getitem__)
    if factors[largest] > CHANGE:
        message = f"{_step(name, largest, *pairs[largest], before.epoch, latest.epoch)} Lower the learning rate or clip"
        message += " the gradients; look for a batch that is out of scale."
        yield Alert("exploding", name, latest.epoch, (), factors[largest], CHANGE, message)
    # One loud neuron does not keep a layer alive, nor does one that fell silent end it: the median speaks.
    elif "median" in factors and factors["median"] * CHANGE < 1:
        message = f"{_step(name, 'median', *pairs['median'], before.epoch, latest.epoch)} Look at the layers before it"
        message += " and at their normalisation, and lower weight decay or the learning rate."
        yield Alert("vanishing", name, latest.epoch, (), factors["median"], 1 / CHANGE, message)


def _magnitudes(
    neuron_history: NeuronHistory | None, name: str, before: EpochRecord, latest: EpochRecord
) -> dict[str, tuple[float, float]]:
    """Median and largest mean magnitude before and now, over the neurons that were alive in both epochs."""
    if neuron_history is None or name not in neuron_history.layers:
        return {"median": (before.layers[name].mean_magnitude, latest.layers[name].mean_magnitude)}
    if not {before.epoch, latest.epoch} <= set(neuron_history.epochs):
        return {}
    layer = neuron_history.layer(name)
    rows = [neuron_history.epochs.index(record.epoch) for record in (before, latest)]
    alive = (layer.state[rows] == State.ALIVE).all(0)
    if not alive.any():
        return {}
    old, new = layer.mean_magnitude[rows][:, alive].astype(np.float64)
    return {"median": (_median(old), _median(new)), "largest": (float(old.max()), float(new.max()))}


def _duplicates(stats: ActivityStats, name: str, epoch: int, threshold: float) -> Iterator[Alert]:
    pairs = duplicates(stats, name, threshold)
    if not pairs:
        return
    neurons = tuple(sorted({neuron for pair in pairs for neuron in pair[:2]}))
    count = f"{len(pairs)} pairs" if len(pairs) > 1 else "One pair"
    value = abs(pairs[0][2])
    closest = "; ".join(f"{first} and {second}" for first, second, _ in pairs[:_NAMED])
    more = "; …" if len(pairs) > _NAMED else ""
    message = (
        f"{count} of neurons of layer '{name}' say nearly the same: {closest}{more} (correlation ±{value:.3f}). "
        "Merge or prune one of each: the layer may be larger than it needs to be."
    )
    yield Alert("duplicate neurons", name, epoch, neurons, value, threshold, message)


def _step(name: str, what: str, old: float, new: float, before: int, latest: int) -> str:
    return (
        f"The {what} mean magnitude of layer '{name}' went from {old:.3g} in epoch {before} to {new:.3g} in epoch "
        f"{latest}."
    )


def _dead_share(layer: LayerEpoch) -> float:
    return len(layer.dead) / layer.size


def _median(values: NDArray[np.float64]) -> float:
    return float(np.median(values))
