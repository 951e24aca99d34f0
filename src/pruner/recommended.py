"""What recommendations come to when there is no model to prune: a plan that has been checked, and nothing else."""

from typing import Any

from tracker.recommendations import Recommendations

from pruner import strategies
from pruner.config import PruningConfig
from pruner.decision import Request, decide
from pruner.limits import FirstSeen
from pruner.log import logger
from tracker.neuron_map import NeuronGroup, NeuronMap

HOW_TO_GIVE_A_MODEL = (
    "Nothing was removed: no model was given. Call prune_from_json(path, model), or make the engine with "
    "PruningEngine(model=model)."
)


def planned_without_model(recommendations: Recommendations, config: PruningConfig) -> dict[str, Any]:
    """The plan that the recommendations and the configuration lead to, as far as they go without weights.

    Only neurons that something speaks against are in it; limits and targets hold. With a model, the scores of the
    weights may choose others.
    """
    neurons = NeuronMap(
        groups=tuple(
            NeuronGroup(name, layer.size, layer.kind, layer.exact, (), (), {})
            for name, layer in recommendations.layers.items()
        ),
        fingerprint=recommendations.fingerprint,
        model=recommendations.model,
    )
    name = config.strategy.default_strategy
    request = Request(
        name=name,
        strategy=strategies.find(name),
        target=config.strategy.target_sparsity,
        layers=config.strategy.layer_specific_sparsity,
        recommendations=recommendations,
    )
    decision = decide(None, neurons, FirstSeen.of(neurons), config, request)
    logger.info("Pruning candidates identified: %d neurons", len(decision.candidates))
    logger.info(HOW_TO_GIVE_A_MODEL)
    return {
        "neurons_pruned": 0,
        "neurons_before": neurons.neurons,
        "neurons_after": neurons.neurons,
        "strategy": name,
        "dry_run": True,
        "plan": decision.plan.to_json(),
        "candidates": [candidate.to_json() for candidate in decision.candidates],
        "verification": None,
        "warnings": list(decision.warnings),
        "message": HOW_TO_GIVE_A_MODEL,
    }
