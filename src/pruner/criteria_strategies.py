"""Every criterion as a strategy: each layer loses its share of the neurons that the criterion finds worth least.

"flap" lets layers compete, by scores in standard deviations about the layer's mean (An et al. 2024, eq. 6); the others
take the same share of every layer, for their scores are not comparable between layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from pruner import criteria, strategies
from pruner.criteria import Evidence
from pruner.plan import PruningPlan
from pruner.scores import Scores
from pruner.selection import Judge, Strategy, StrategyInput
from tracker.batches import evaluating, iter_batches
from tracker.errors import ConfigError
from tracker.neuron_map import NeuronMap

_BATCHES = 64


def judge_of(model: nn.Module, neurons: NeuronMap, data_loader: Iterable[Any] | None) -> Judge:
    """What scores a model's neurons by any criterion, on the first batches of a loader.

    Nothing is looked at before somebody asks.
    """

    def judge(name: str) -> Scores:
        with evaluating(model):
            batches = []
            for batch in iter_batches(data_loader, model) if data_loader is not None else ():
                batches.append(batch)
                if len(batches) == _BATCHES:
                    break
            return criteria.find(name)(Evidence(model, neurons, batches))

    return judge


def standardised(scores: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Scores about their mean over the layer, in standard deviations; what is infinite stays so."""
    finite = np.isfinite(scores)
    known = scores[finite]
    deviation = float(known.std()) if len(known) else 0.0
    mean = float(known.mean()) if len(known) else 0.0
    result = (scores - mean) / deviation if deviation > 0 else np.zeros_like(scores)
    return np.where(finite, result, np.inf)


def _judged(given: StrategyInput, name: str) -> StrategyInput:
    """The same with the scores of a criterion, and none of the priorities: the criterion alone decides."""
    if given.judge is None:
        raise ConfigError(
            f"The strategy '{name}' looks at the model, and there is none.", hint="Give a model, or use 'magnitude'."
        )
    found: Mapping[str, torch.Tensor] = given.judge(name)
    scores = {layer: found[layer].numpy() if layer in found else values for layer, values in given.scores.items()}
    if name == "flap":
        scores = {layer: standardised(values) for layer, values in scores.items()}
    return replace(given, scores=scores, priority={})


def _strategy(name: str) -> Strategy:
    def strategy(given: StrategyInput) -> PruningPlan:
        return (strategies.magnitude if name == "flap" else strategies.structured)(_judged(given, name))

    strategy.__doc__ = criteria.find(name).__doc__
    return strategy


for _name in ("random", "consumer", "both", "taylor", "wanda", "flap", "obs", "greedy"):
    strategies.register(_name)(_strategy(_name))
