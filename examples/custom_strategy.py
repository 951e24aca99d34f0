"""A strategy added from outside: chance, the baseline that every other strategy has to beat.

    python examples/custom_strategy.py

An installed package offers it to `strategy.default_strategy` and `neuronscope prune --strategy lottery` by these lines
of its pyproject.toml; a program of your own registers it, as below.

    [project.entry-points."pruner.strategies"]
    lottery = "examples.custom_strategy:lottery"
"""

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from neuronscope.data_names import digits
from neuronscope.digits import trained_cnn
from pruner import PruningEngine, PruningPlan, create_default_config, strategies
from pruner.selection import StrategyInput, lowest
from tracker.activity import observe
from tracker.batches import accuracy


def lottery(given: StrategyInput) -> PruningPlan:
    """Neurons drawn by lot, as many as asked for, from all layers alike."""
    if given.target is None:
        return PruningPlan({})
    lots = np.random.default_rng(0)
    scores = {name: lots.random(size) for name, size in given.limits.current.items()}
    drawn = replace(given, scores=scores, priority={})
    return PruningPlan(lowest(drawn, given.shared, given.limits.wanted(given.target, given.shared)))


def accuracies(model: nn.Module, data_loader: Iterable[Any], names: Iterable[str], share: float) -> dict[str, float]:
    """Accuracy on the data after each of the strategies has removed this share from a copy of the model.

    Nothing is repaired afterwards: that would make up for most of a bad choice.
    """
    config = create_default_config().update(logging={"log_to_console": False}, repair={"enabled": False})
    engine = PruningEngine(config=config)
    activity = observe(model, data_loader)
    found = {}
    for name in names:
        pruned = copy.deepcopy(model)
        engine.prune_by_strategy(pruned, name, share, activity=activity, data_loader=data_loader)
        found[name] = accuracy(pruned, data_loader) or 0.0
    return found


if __name__ == "__main__":
    strategies.register("lottery")(lottery)
    for name, share in accuracies(trained_cnn(), digits()[1], ["magnitude", "structured", "lottery"], 0.3).items():
        print(f"{name:10} {share:.1%}")
