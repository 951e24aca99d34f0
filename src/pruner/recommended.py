"""What recommendations come to when there is no model to prune: a plan that has been checked, and nothing else."""

from typing import Any

from pruner import strategies
from pruner.config import PruningConfig
from pruner.decision import Candidate, Request, decide
from pruner.log import logger
from pruner.plan import PruningPlan
from tracker.neuron_map import KINDS, Kind, NeuronGroup, NeuronMap
from tracker.recommendations import Recommendations

HOW_TO_GIVE_A_MODEL = (
    "Nothing was removed: no model was given. Call prune_from_json(path, model), or make the engine with "
    "PruningEngine(model=model)."
)
_NO_SIZES = "The file does not say how large the layers are: the plan is not held against targets and limits."


def planned_without_model(recommendations: Recommendations, config: PruningConfig) -> dict[str, Any]:
    """The plan that the recommendations and the configuration lead to, as far as they go without weights.

    Only neurons that something speaks against are in it; limits, targets and the choice of layers hold. With a model,
    the scores of the weights may choose others. A file that does not say how large its layers are gives the plan as it
    stands there.

    Raises `ConfigError` for an unknown `strategy.default_strategy`, and what `decide` raises.
    """
    name = config.strategy.default_strategy
    strategy = strategies.find(name)
    size = sum(layer.size for layer in recommendations.layers.values())
    if recommendations.layers:
        request = Request(
            name=name,
            strategy=strategy,
            target=config.strategy.target_sparsity,
            layers=config.strategy.layer_specific_sparsity,
            recommendations=recommendations,
        )
        neurons = _map(recommendations)
        decision = decide(None, neurons, neurons, config, request)
        plan, candidates, warnings = decision.plan, decision.candidates, list(decision.warnings)
    else:
        plan, warnings = _as_it_stands(recommendations, name), [_NO_SIZES]
        candidates = tuple(Candidate(entry.layer, entry.neuron, entry.reason, None) for entry in recommendations.prune)
    logger.info("Pruning candidates identified: %d neurons", len(candidates))
    logger.info(HOW_TO_GIVE_A_MODEL)
    return {
        "neurons_pruned": 0,
        "neurons_before": size,
        "neurons_after": size,
        "strategy": name,
        "dry_run": True,
        "plan": plan.to_json(),
        "candidates": [candidate.to_json() for candidate in candidates],
        "verification": None,
        "warnings": warnings,
        "message": HOW_TO_GIVE_A_MODEL,
    }


def _map(recommendations: Recommendations) -> NeuronMap:
    """The layers of the file as groups that touch no parameter."""
    return NeuronMap(
        groups=tuple(
            NeuronGroup(name, layer.size, _kind(layer.kind), layer.exact, (), (), {})
            for name, layer in recommendations.layers.items()
        ),
        fingerprint=recommendations.fingerprint,
        model=recommendations.model,
    )


def _kind(name: str) -> Kind:
    return next((kind for kind in KINDS if kind == name), "other")


def _as_it_stands(recommendations: Recommendations, strategy: str) -> PruningPlan:
    remove: dict[str, list[int]] = {}
    for entry in recommendations.prune:
        remove.setdefault(entry.layer, []).append(entry.neuron)
    return PruningPlan(remove, recommendations.fingerprint or None, {"strategy": strategy})
