"""Advice: which neurons the activity speaks against, which repeat each other, which layers look too small."""

from __future__ import annotations

import math

import numpy as np

from tracker.activity import ActivityStats, Flags, GroupActivity
from tracker.covariance import redundant_pairs
from tracker.errors import RecommendationError
from tracker.recommendations import Expand, Layer, LayerActivity, Merge, Prune, Reason, Recommendations

FIRING_FREQUENCY_THRESHOLD = 0.01
CORRELATION_THRESHOLD = 0.95

# A layer is saturated when half of its neurons spend nearly all their activity at its extremes, and always active when
# half of them fire nearly always although they could be silent; both only where hardly a neuron is to spare.
_SATURATED = 0.9
_ALWAYS_FIRING = 0.95
_IN_USE = 0.95
_GROWTH = 1.25


def recommend(
    stats: ActivityStats,
    *,
    epoch: int | None = None,
    firing_frequency_threshold: float = FIRING_FREQUENCY_THRESHOLD,
    correlation_threshold: float = CORRELATION_THRESHOLD,
) -> Recommendations:
    """What the statistics speak for.

    - prune: neurons that are dead, constant, fire less often than `firing_frequency_threshold` ("inactive"), or repeat
      a stronger neuron ("redundant"; only where covariances were tracked). Each is listed once, for the first reason.
    - merge: pairs with a correlation beyond ±`correlation_threshold`, the neuron with more variance first.
    - expand: layers with hardly a neuron to spare that are saturated, or whose neurons fire nearly always.
    """
    for name, value in (
        ("firing_frequency_threshold", firing_frequency_threshold),
        ("correlation_threshold", correlation_threshold),
    ):
        if not 0 <= value <= 1:
            raise RecommendationError(f"{name} is {value}.", hint="Give a number from 0 to 1.")
    prune: list[Prune] = []
    merge: list[Merge] = []
    expand: list[Expand] = []
    for name, group in stats.items():
        pairs = duplicates(stats, name, correlation_threshold) if name in stats.covariance else []
        reasons = _reasons(group, firing_frequency_threshold)
        repeated = _repeated(pairs, set(reasons))
        prune += [
            Prune(layer=name, neuron=neuron, reason=reason, evidence=_evidence(group, neuron))
            for neuron, reason in reasons.items()
        ]
        prune += [
            Prune(
                layer=name,
                neuron=neuron,
                reason="redundant",
                evidence={**_evidence(group, neuron), "correlation": correlation, "same_as": float(kept)},
            )
            for neuron, (kept, correlation) in repeated.items()
        ]
        merge += [Merge(layer=name, neurons=(one, other), correlation=value) for one, other, value in pairs]
        spare = (len(reasons) + len(repeated)) / group.size
        if 1 - spare >= _IN_USE and (found := _expansion(group)) is not None:
            expand.append(found)
    return Recommendations(
        model=stats.model,
        fingerprint=stats.fingerprint,
        epoch=epoch,
        layers=_layers(stats),
        prune=tuple(prune),
        merge=tuple(merge),
        expand=tuple(expand),
    )


def duplicates(stats: ActivityStats, name: str, threshold: float) -> list[tuple[int, int, float]]:
    """Pairs of neurons of a layer, neither dead nor constant, whose correlation is beyond ±`threshold`.

    Each is (neuron with more variance, the other, correlation), the closest pair first. Raises `DataError` where the
    layer's covariance was not tracked.
    """
    group = stats[name]
    idle = group.dead | group.constant
    return [
        (one, other, value) if group.variance[one] >= group.variance[other] else (other, one, value)
        for one, other, value in redundant_pairs(stats.correlation(name), threshold)
        if not (idle[one] or idle[other])
    ]


def _layers(stats: ActivityStats) -> dict[str, Layer]:
    tracked = {
        name: Layer(
            size=group.size,
            kind=group.kind,
            exact=group.exact,
            activity=LayerActivity(
                firing_frequency=tuple(group.firing_frequency.tolist()),
                mean_magnitude=tuple(group.mean_magnitude.tolist()),
                variance=tuple(group.variance.tolist()),
            ),
        )
        for name, group in stats.items()
    }
    untracked = {u.name: Layer(size=u.size, kind=u.kind, exact=u.exact) for u in stats.untracked}
    return {**tracked, **untracked}


def _reasons(group: GroupActivity, threshold: float) -> dict[int, Reason]:
    """Why neurons of one group should go, the strongest reasons first."""
    flags: dict[Reason, Flags] = {
        "dead": group.dead,
        "constant": group.constant,
        "inactive": group.firing_frequency < threshold,
    }
    reasons: dict[int, Reason] = {}
    for reason, flagged in flags.items():
        for neuron in np.flatnonzero(flagged).tolist():
            reasons.setdefault(neuron, reason)
    return reasons


def _repeated(pairs: list[tuple[int, int, float]], gone: set[int]) -> dict[int, tuple[int, float]]:
    """The neurons to drop so that no pair is left whole, each with the neuron that stands for it."""
    dropped: dict[int, tuple[int, float]] = {}
    for kept, other, value in pairs:
        if not ({kept, other} & (gone | dropped.keys())):
            dropped[other] = (kept, value)
    return dropped


def _evidence(group: GroupActivity, neuron: int) -> dict[str, float]:
    return {
        "firing_frequency": float(group.firing_frequency[neuron]),
        "mean": float(group.mean[neuron]),
        "mean_magnitude": float(group.mean_magnitude[neuron]),
        "variance": float(group.variance[neuron]),
        "maximum": float(group.maximum[neuron]),
    }


def _expansion(group: GroupActivity) -> Expand | None:
    saturation = float(np.median(group.saturation))
    firing = float(np.median(group.firing_frequency))
    evidence = {"median_saturation": saturation, "median_firing_frequency": firing}
    suggested = math.ceil(group.size * _GROWTH)
    if saturation >= _SATURATED and firing > 1 - _SATURATED:
        return Expand(layer=group.name, reason="saturated", evidence=evidence, suggested=suggested)
    if group.one_sided and firing >= _ALWAYS_FIRING:
        return Expand(layer=group.name, reason="always firing", evidence=evidence, suggested=suggested)
    return None
