"""A metric added from outside: how often the pruned model and the original choose the same class.

    python examples/custom_metric.py

An installed package adds it to `compute_metrics` and to every report by these lines of its pyproject.toml; a program of
your own registers it, as below.

    [project.entry-points."pruner.metrics"]
    agreement = "examples.custom_metric:agreement"
"""

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn

from neuronscope.data_names import digits
from neuronscope.digits import trained_cnn
from pruner import PruningEngine, create_default_config, metrics
from tracker.activity import observe
from tracker.batches import Batch, evaluating, forward, logits


def agreement(pruned_model: nn.Module, original_model: nn.Module, batch: Batch) -> float:
    """Share of the batch on which both models choose the same class, from 0 to 1."""
    with evaluating(pruned_model), evaluating(original_model):
        one, other = (logits(forward(model, batch)).argmax(-1) for model in (pruned_model, original_model))
    return (one == other).double().mean().item()


def agreements(model: nn.Module, data_loader: Iterable[Any], shares: list[float]) -> dict[float, float]:
    """The metric after each of these shares has been removed from a copy of the model, as `compute_metrics` has it."""
    engine = PruningEngine(config=create_default_config().update(logging={"log_to_console": False}))
    activity = observe(model, data_loader)
    found = {}
    for share in shares:
        pruned = copy.deepcopy(model)
        engine.prune_by_magnitude(pruned, share, activity=activity, data_loader=data_loader)
        found[share] = engine.compute_metrics(pruned, model)["custom"]["agreement"]
    return found


if __name__ == "__main__":
    metrics.register("agreement")(agreement)
    for share, value in agreements(trained_cnn(), digits()[1], [0.3, 0.5, 0.7]).items():
        print(f"{share:.0%} of the neurons removed: the same answer on {value:.1%} of the images")
