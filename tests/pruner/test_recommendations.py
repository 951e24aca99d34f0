"""Pruning by recommendations, from a tracker, a file, or by hand; and what does not fit."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pruner import small_cnn
from tests.pruner.small_cnn import SmallCNN

from pruner.config import create_default_config
from pruner.engine import PruningEngine
from pruner.plan import PruningPlan
from tracker.activity import observe
from tracker.advice import recommend
from tracker.discover import discover
from tracker.errors import NeuronScopeError, RecommendationError, StorageError, UnknownLayerError
from tracker.recommendations import Recommendations

Results = dict[str, Any]
DEAD = (5, 17)


def cnn() -> SmallCNN:
    """Two dead neurons in fc1, heavy ones."""
    model = small_cnn.model()
    with torch.no_grad():
        model.fc1.weight[list(DEAD)] *= 3
        model.fc1.bias[list(DEAD)] = -1e6
    discover(model, small_cnn.images())
    return model


def tracked(model: SmallCNN) -> Recommendations:
    return recommend(observe(model, [small_cnn.images(64)]))


def by_hand(*entries: tuple[str, int], **more: Any) -> dict[str, Any]:
    return {"prune": [{"layer": layer, "neuron": neuron, "reason": "dead"} for layer, neuron in entries], **more}


def engine(**options: Any) -> PruningEngine:
    return PruningEngine(config=create_default_config().update(**{k.replace("__", "."): v for k, v in options.items()}))


def removed(results: Results) -> dict[str, list[int]]:
    return {name: layer["removed"] for name, layer in results["layers"].items()}


def test_what_was_recommended_goes_first_then_the_lowest_scores_up_to_the_target() -> None:
    model = cnn()
    recommendations = tracked(model)
    results = engine().prune_by_recommendations(model, recommendations)
    assert results["neurons_pruned"] == 60
    assert set(DEAD) <= set(removed(results)["fc1"])
    reasons = {(c["layer"], c["neuron"]): c["reason"] for c in results["candidates"]}
    assert {reasons["fc1", neuron] for neuron in DEAD} == {"dead"}
    assert "low score" in reasons.values()
    assert results["verification"]["summary"]["overall_success"]


def test_never_more_than_the_target() -> None:
    model = cnn()
    listed = by_hand(*(("fc1", neuron) for neuron in range(40)))
    results = engine(strategy__target_sparsity=0.1).prune_by_recommendations(model, listed)
    assert results["neurons_pruned"] == 20
    assert len(results["candidates"]) == 40
    assert results["warnings"] == ["20 candidates stay: the target sparsity and the limits allow no more."]


def test_the_strongest_reasons_go_first_where_not_all_may() -> None:
    listed = {
        "prune": [
            {"layer": "fc1", "neuron": neuron, "reason": reason}
            for neuron, reason in enumerate(["redundant", "inactive", "constant", "dead"])
        ]
    }
    for count, expected in ((1, [3]), (2, [2, 3]), (3, [1, 2, 3])):
        results = engine(strategy__target_sparsity=(count + 0.5) / 202).prune_by_recommendations(cnn(), listed)
        assert removed(results) == {"fc1": expected}


def test_by_hand_only_the_listed_neurons_go() -> None:
    results = engine().prune_by_recommendations(cnn(), by_hand(("fc1", 17), ("conv1", 0)))
    assert removed(results) == {"conv1": [0], "fc1": [17]}


def test_the_limits_hold() -> None:
    listed = by_hand(*(("conv1", neuron) for neuron in range(10)))
    tight = engine(thresholds__max_sparsity_per_layer=0.4)
    assert len(removed(tight.prune_by_recommendations(cnn(), listed))["conv1"]) == 4
    few = engine(thresholds__min_neurons_per_layer=8)
    assert len(removed(few.prune_by_recommendations(cnn(), listed))["conv1"]) == 2
    assert len(removed(engine().prune_by_recommendations(cnn(), listed))["conv1"]) == 9


def test_they_fit_the_same_model_trained_further_and_not_the_pruned_one() -> None:
    model = cnn()
    recommendations = tracked(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.001
    pruner = engine()
    assert pruner.prune_by_recommendations(model, recommendations)["neurons_pruned"] == 60
    before = deepcopy(model.state_dict())
    with pytest.raises(RecommendationError, match="Track the model as it is now"):
        pruner.prune_by_recommendations(model, recommendations)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_dry_run_has_the_same_numbers() -> None:
    model = cnn()
    recommendations = tracked(model)
    dry = engine().prune_by_recommendations(model, recommendations, dry_run=True)
    real = engine().prune_by_recommendations(model, recommendations)
    assert {**dry, "dry_run": False, "verification": real["verification"]} == real


def test_a_file_an_object_and_data_lead_to_the_same(tmp_path: Path) -> None:
    recommendations = tracked(cnn())
    path = tmp_path / "recommendations.json"
    recommendations.save(path)
    expected = engine().prune_by_recommendations(cnn(), recommendations)
    assert engine().prune_by_recommendations(cnn(), path) == expected
    assert engine().prune_by_recommendations(cnn(), json.loads(path.read_text())) == expected
    assert engine().prune_from_json(path, cnn()) == expected
    assert PruningEngine(model=cnn()).prune_from_json(str(path)) == expected


def test_default_strategy_and_own_shares_apply() -> None:
    recommendations = tracked(cnn())
    evenly = engine(strategy__default_strategy="structured").prune_by_recommendations(cnn(), recommendations)
    assert {name: len(gone) for name, gone in removed(evenly).items()} == {"conv1": 3, "conv2": 19, "fc1": 38}
    kept = engine(strategy__layer_specific_sparsity={"fc1": 0.0}).prune_by_recommendations(cnn(), recommendations)
    assert "fc1" not in removed(kept)
    assert any("candidates stay" in warning for warning in kept["warnings"])


# --- without a model


def test_without_a_model_the_answer_is_the_checked_plan_and_how_to_give_one(tmp_path: Path) -> None:
    model = cnn()
    recommendations = tracked(model)
    path = tmp_path / "recommendations.json"
    recommendations.save(path)
    results = engine().prune_from_json(path)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert results["neurons_pruned"] == 0
    assert "prune_from_json(path, model)" in results["message"]
    assert (results["neurons_before"], results["neurons_after"]) == (202, 202)
    plan = PruningPlan.from_json(results["plan"])
    assert set(DEAD) <= set(plan.remove["fc1"])
    assert plan.neurons <= 60
    plan.resolve(discover(model, small_cnn.images()))


def test_without_a_model_targets_and_limits_hold(tmp_path: Path) -> None:
    path = tmp_path / "recommendations.json"
    layers = {"conv1": {"size": 10}, "fc1": {"size": 90}}
    path.write_text(json.dumps(by_hand(*(("conv1", neuron) for neuron in range(10)), layers=layers)))
    assert len(engine().prune_from_json(path)["plan"]["remove"]["conv1"]) == 9
    few = engine(strategy__target_sparsity=0.05).prune_from_json(path)
    assert len(few["plan"]["remove"]["conv1"]) == 5
    assert len(few["candidates"]) == 10


def test_without_a_model_and_without_sizes_the_plan_is_what_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "recommendations.json"
    path.write_text(json.dumps(by_hand(("conv1", 3), ("fc1", 1), ("conv1", 0))))
    results = engine().prune_from_json(path)
    assert results["plan"]["remove"] == {"conv1": [0, 3], "fc1": [1]}
    assert "does not say how large" in results["warnings"][0]


# --- what does not fit


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ("{", RecommendationError, "JSON"),
        ("[]", RecommendationError, "not an object"),
        ('{"version": 2}', RecommendationError, "version"),
        ('{"prun": []}', RecommendationError, "prun"),
        ('{"prune": [{"layer": "fc1", "neuron": "one", "reason": "dead"}]}', RecommendationError, "neuron"),
        ('{"prune": [{"layer": "fc1", "neuron": 1, "reason": "ugly"}]}', RecommendationError, "reason"),
        ('{"prune": [{"layer": "fc1", "neuron": -1, "reason": "dead"}]}', RecommendationError, "neuron"),
        (json.dumps(by_hand(("fc1", 128))), RecommendationError, "128"),
        (json.dumps(by_hand(("fc1", 1), ("fc1", 1))), RecommendationError, "2 times"),
        (json.dumps(by_hand(("fcc1", 1))), UnknownLayerError, "Did you mean 'fc1'"),
        (json.dumps(by_hand(("fc1", 1), fingerprint="0" * 16)), RecommendationError, "structure"),
    ],
)
def test_bad_recommendations_are_errors_and_change_nothing(
    tmp_path: Path, content: str, error: type[NeuronScopeError], words: str
) -> None:
    path = tmp_path / "recommendations.json"
    path.write_text(content)
    model = cnn()
    before = deepcopy(model.state_dict())
    with pytest.raises(error, match=words):
        engine().prune_from_json(path, model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("given", [None, True])
def test_a_missing_file_is_an_error_with_and_without_a_model(tmp_path: Path, given: bool | None) -> None:
    load: Callable[..., Results] = engine().prune_from_json
    with pytest.raises(StorageError, match="Check the path"):
        load(tmp_path / "absent.json", cnn() if given else None)
