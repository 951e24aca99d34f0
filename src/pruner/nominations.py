"""Neurons that something speaks against: a recommendation, hardly any activity, or hardly any weight."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pruner.config import Thresholds
from pruner.scores import KnownActivity, Scores
from pruner.selection import LAST
from tracker.errors import RecommendationError
from tracker.neuron_map import NeuronMap
from tracker.recommendations import Recommendations

REASONS = ("dead", "constant", "inactive", "redundant", "weak")
"""Why a neuron goes before others, the strongest reason first. The place in this tuple is the neuron's priority."""

LOW_SCORE = "low score"
"""Why a neuron goes that only its score speaks against."""

Priorities = dict[str, NDArray[np.int64]]


def nominate(
    neurons: NeuronMap,
    thresholds: Thresholds,
    activity: KnownActivity,
    mean_weights: Scores,
    recommendations: Recommendations | None = None,
) -> Priorities:
    """The priority of every neuron, shape (size,) for every group; `LAST` where nothing speaks against it.

    "inactive" is a firing frequency under `firing_frequency_threshold`, "weak" a mean |w| under
    `weight_magnitude_threshold`. Where the firing frequency is known, it decides who is inactive, not the threshold
    that the recommendations were made with.
    """
    inactive, weak = REASONS.index("inactive"), REASONS.index("weak")
    priorities: Priorities = {}
    for group in neurons:
        priority = np.full(group.size, LAST)
        priority[mean_weights[group.name].numpy() < thresholds.weight_magnitude_threshold] = weak
        if group.name in activity.firing_frequency:
            firing = activity.firing_frequency[group.name].numpy()
            priority[firing < thresholds.firing_frequency_threshold] = inactive
        priorities[group.name] = priority
    for entry in recommendations.prune if recommendations else ():
        name = neurons[entry.layer].name
        if entry.reason == "inactive" and name in activity.firing_frequency:
            continue
        priority = priorities[name]
        priority[entry.neuron] = min(priority[entry.neuron], REASONS.index(entry.reason))
    return priorities


def check_fit(recommendations: Recommendations, neurons: NeuronMap) -> None:
    """Raise if the recommendations were made for a model of another structure.

    `RecommendationError` says what differs; `UnknownLayerError` names the nearest layer where there is no fingerprint
    and a layer is unknown.
    """
    made_for = recommendations.fingerprint
    if made_for and neurons.fingerprint and made_for != neurons.fingerprint:
        differ = [
            f"layer '{name}' had {layer.size} neurons then and "
            + (f"has {neurons[name].size} now" if name in neurons else "is not there now")
            for name, layer in recommendations.layers.items()
            if name not in neurons or neurons[name].size != layer.size
        ]
        raise RecommendationError(
            f"The recommendations were made for a {recommendations.model} of structure {made_for}; this "
            f"{neurons.model} has structure {neurons.fingerprint}{': ' + '; '.join(differ[:3]) if differ else ''}.",
            hint="Track the model as it is now and recommend again.",
        )
    for entry in recommendations.prune:
        group = neurons[entry.layer]
        if not 0 <= entry.neuron < group.size:
            raise RecommendationError(
                f"The recommendations name neuron {entry.neuron} of layer '{entry.layer}', which has {group.size}.",
                hint=f"Use indices from 0 to {group.size - 1}.",
            )
    listed = Counter((neurons[entry.layer].name, entry.neuron) for entry in recommendations.prune)
    for (layer, neuron), times in listed.items():
        if times > 1:
            raise RecommendationError(
                f"The recommendations name neuron {neuron} of layer '{layer}' {times} times.",
                hint="Name every neuron once.",
            )


def reason_of(priority: int) -> str:
    """The word for a neuron's priority."""
    return REASONS[priority] if priority < len(REASONS) else LOW_SCORE


def nominated(priorities: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
    """The indices of the neurons that something speaks against, by group."""
    return {name: np.flatnonzero(priority < LAST) for name, priority in priorities.items()}
