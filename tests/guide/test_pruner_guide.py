"""The calls of the pruner guide, block by block, with its names and arguments."""

import importlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.pruner import small_cnn
from tests.pruner.small_cnn import SmallCNN
from torch.utils.data import DataLoader, TensorDataset

CONFIGS = Path(__file__).parents[2] / "configs"
Loader = DataLoader[tuple[torch.Tensor, ...]]


@pytest.fixture(autouse=True)
def _at_the_projects_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A directory with the shipped configurations, as in a checkout; and the logger as it was afterwards."""
    shutil.copytree(CONFIGS, tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("pruner")
    handlers, level = list(logger.handlers), logger.level
    yield
    for handler in set(logger.handlers) - set(handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(level)


@pytest.fixture
def model() -> SmallCNN:
    """202 neurons in 3 layers, one of them dead: neuron 17 of fc1."""
    cnn = small_cnn.model()
    with torch.no_grad():
        cnn.fc1.bias.fill_(1.0)
        cnn.fc1.bias[17] = -1e6
    return cnn


@pytest.fixture
def data_loader() -> Loader:
    images = small_cnn.images(64)
    return DataLoader(TensorDataset(images, torch.arange(64) % 10), batch_size=16)


@pytest.fixture
def epoch_5(model: SmallCNN, data_loader: Loader) -> Path:
    """`outputs/logs/epoch_5_recommendations.json`, as the tracker writes it in a training loop."""
    from tracker import NeuronEngine

    engine = NeuronEngine()
    engine.track_model(model, "MyModel")
    engine.observe(model, data_loader)
    engine.log_epoch(5, loss=0.1, accuracy=0.97)
    return Path("outputs/logs/epoch_5_recommendations.json")


@pytest.fixture
def recommendations(epoch_5: Path) -> Any:
    from tracker.recommendations import load_recommendations

    return load_recommendations(epoch_5)


# --- module structure and classes


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (
            "pruner",
            [
                "GradualPruner",
                "IntegratedSystem",
                "IntegratedTrackingPruningWorkflow",
                "MagnitudePruner",
                "NeuronPruner",
                "PruningEngine",
                "PruningMetrics",
                "PruningValidator",
                "StructuredPruner",
                "create_aggressive_config",
                "create_conservative_config",
                "create_default_config",
                "create_simple_workflow",
            ],
        ),
        ("pruner.core", ["NeuronPruner"]),
        ("pruner.strategies", ["MagnitudePruner", "StructuredPruner", "GradualPruner"]),
        ("pruner.utils", ["PruningMetrics", "PruningValidator"]),
        ("pruner.workflow", ["IntegratedTrackingPruningWorkflow", "create_simple_workflow"]),
        ("pruner.integration", ["IntegratedSystem"]),
        ("pruner.config", ["create_default_config", "create_conservative_config", "create_aggressive_config"]),
        ("tracker", ["NeuronEngine"]),
    ],
)
def test_names_are_where_the_guide_says(module: str, names: list[str]) -> None:
    assert [name for name in names if not hasattr(importlib.import_module(module), name)] == []


# --- quick start


@pytest.mark.usefixtures("epoch_5")
def test_basic_usage() -> None:
    from pruner import PruningEngine, create_default_config
    from tracker import NeuronEngine  # noqa: F401 - the guide's block imports it

    pruner = PruningEngine()
    assert pruner.config.strategy.target_sparsity == 0.3

    pruner = PruningEngine(config_path="configs/conservative.yaml")
    assert pruner.config.strategy.target_sparsity == 0.1

    config = create_default_config().update(strategy={"target_sparsity": 0.4}, logging={"log_level": "DEBUG"})
    pruner = PruningEngine(config=config)
    assert (pruner.config.strategy.target_sparsity, pruner.config.logging.log_level) == (0.4, "DEBUG")

    results = pruner.prune_from_json("outputs/logs/epoch_5_recommendations.json")
    assert results["neurons_pruned"] == 0
    assert 17 in results["plan"]["remove"]["fc1"]
    assert "PruningEngine(model=model)" in results["message"]


@pytest.mark.usefixtures("epoch_5")
def test_basic_usage_with_a_model(model: SmallCNN) -> None:
    from pruner import PruningEngine

    results = PruningEngine(model=model).prune_from_json("outputs/logs/epoch_5_recommendations.json")
    assert 17 in results["layers"]["fc1"]["removed"]
    assert results["neurons_pruned"] == 60
    assert model.fc1.out_features < 128


def test_configuration_based_usage(model: SmallCNN, recommendations: Any) -> None:
    from pruner import PruningEngine, create_conservative_config

    pruner = PruningEngine(config=create_conservative_config())
    results = pruner.prune_by_recommendations(model, recommendations)
    assert 1 <= results["neurons_pruned"] <= 20
    assert 17 in results["layers"]["fc1"]["removed"]

    pruner.set_aggressive_mode()
    assert pruner.config.strategy.target_sparsity == 0.7
    pruner.update_config(**{"strategy.target_sparsity": 0.6})
    assert pruner.config.strategy.target_sparsity == 0.6


def test_integrated_workflow(model: SmallCNN, data_loader: Loader) -> None:
    from pruner import IntegratedTrackingPruningWorkflow, create_conservative_config, create_simple_workflow

    results = create_simple_workflow(
        model=deepcopy(model), data_loader=data_loader, model_name="MyModel", config=create_conservative_config()
    )
    assert 1 <= results["pruning_results"]["neurons_pruned"] <= 20

    workflow = IntegratedTrackingPruningWorkflow()
    results = workflow.run_complete_workflow(
        model=model, data_loader=data_loader, model_name="MyModel", auto_prune=True
    )
    assert results["pruning_results"]["neurons_pruned"] == 202 - sum(
        (model.conv1.out_channels, model.conv2.out_channels, model.fc1.out_features)
    )
    assert results["pruning_results"]["neurons_pruned"] > 0
    assert results["verification_results"]["summary"]["overall_success"] is True


def test_outputs_are_in_the_six_folders(model: SmallCNN, data_loader: Loader) -> None:
    from pruner import create_simple_workflow

    create_simple_workflow(model=model, data_loader=data_loader, model_name="MyModel")
    folders = {path.name for path in Path("outputs").iterdir() if path.is_dir()}
    assert {"logs", "reports", "models", "pruned_models", "verification", "visualizations"} <= folders


# --- pruning strategies


def test_magnitude_based_pruning(model: SmallCNN) -> None:
    from pruner import PruningEngine

    pruner = PruningEngine()
    before = deepcopy(model.state_dict())
    results = pruner.prune_by_magnitude(model, sparsity_ratio=0.3, dry_run=True)
    assert results["neurons_pruned"] == 60
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_structured_pruning(model: SmallCNN) -> None:
    from pruner import PruningEngine

    pruner = PruningEngine()
    layer_sparsity = {"conv1": 0.25, "fc1": 0.5}
    results = pruner.prune_structured(model, layer_sparsity, dry_run=True)
    assert {name: len(layer["removed"]) for name, layer in results["layers"].items()} == {"conv1": 2, "fc1": 64}
    assert model.fc1.out_features == 128


def test_gradual_pruning(model: SmallCNN) -> None:
    from pruner import PruningEngine

    pruner = PruningEngine()
    schedule = pruner.create_gradual_schedule(0.0, 0.5, num_epochs=10)
    removed = 0
    for epoch in range(10):
        results = pruner.prune_for_epoch(model, schedule["schedule_id"], epoch)
        removed += results["neurons_pruned"]
    assert removed == 101


# --- metrics and validation


def test_metrics_and_validation(model: SmallCNN) -> None:
    from pruner import PruningEngine

    pruner = PruningEngine()
    original_model, pruned_model = model, deepcopy(model)
    pruner.prune_by_magnitude(pruned_model, sparsity_ratio=0.3)

    metrics = pruner.compute_metrics(pruned_model, original_model)
    assert metrics["model_size"]["pruned_parameters"] < metrics["model_size"]["original_parameters"]
    assert metrics["sparsity"]["neurons_removed"] == pytest.approx(60 / 202)
    assert metrics["compression_ratio"]["parameters"] > 1
    assert metrics["speedup"]["estimated"] > 1
    assert metrics["memory_savings"]["bytes"] > 0

    validation = pruner.validate_pruning(pruned_model, original_model)
    assert validation["is_valid"] is True
    assert validation["structure"]["valid"]
    assert validation["forward_pass"]["valid"]
    assert (validation["warnings"], validation["errors"]) == ([], [])


def test_backup_and_restore(model: SmallCNN) -> None:
    from pruner import PruningEngine

    pruner = PruningEngine()
    before = deepcopy(model.state_dict())
    pruner.backup(model)
    pruner.prune_by_magnitude(model, sparsity_ratio=0.3)
    pruner.restore(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_before_after_logging(model: SmallCNN, capsys: pytest.CaptureFixture[str]) -> None:
    """A hand-written file that recommends one dead neuron of 202 leads to the log that the guide shows."""
    from pruner import PruningEngine
    from tracker import discover

    neurons = discover(model, small_cnn.images())
    Path("one.json").write_text(
        json.dumps(
            {
                "version": 1,
                "model": "SmallCNN",
                "fingerprint": neurons.fingerprint,
                "epoch": None,
                "layers": {
                    group.name: {"size": group.size, "kind": group.kind, "exact": group.exact, "activity": None}
                    for group in neurons
                },
                "prune": [{"layer": "fc1", "neuron": 17, "reason": "dead", "evidence": {}}],
                "merge": [],
                "expand": [],
            }
        )
    )
    PruningEngine().prune_from_json("one.json", model)
    lines = capsys.readouterr().err.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d - INFO - ", line) for line in lines)
    assert [line.split(" - ", 2)[2] for line in lines] == [
        "Original model: 202 neurons across 3 layers",
        "Pruning candidates identified: 1 neurons",
        "Pruning completed: 1 neurons removed from 1 layers",
        "Verification: 5/5 tests passed",
        "Final model: 201 neurons (0.5% reduction)",
    ]


# --- configuration system


def test_configuration_files() -> None:
    from pruner import PruningEngine, create_default_config

    shown = {
        "thresholds": {"firing_frequency_threshold": 0.01, "max_sparsity_per_layer": 0.9},
        "strategy": {
            "default_strategy": "magnitude",
            "target_sparsity": 0.3,
            "magnitude_weight": 0.5,
            "activity_weight": 0.5,
        },
        "logging": {"log_level": "INFO", "verbose": True},
        "validation": {"dry_run_first": True, "max_pruning_ratio": 0.8},
    }
    Path("pruner_config.yaml").write_text(yaml.safe_dump(shown))
    assert PruningEngine(config_path="pruner_config.yaml").config == create_default_config()


def test_configuration_options() -> None:
    from pruner import create_default_config

    config = {section: set(options) for section, options in create_default_config().model_dump().items()}
    config["strategy"] -= {"include", "exclude", "kinds", "round_to"}  # beyond the guide
    assert config.pop("repair") == {"enabled", "effort"}  # likewise
    assert config == {
        "thresholds": {
            "firing_frequency_threshold",
            "weight_magnitude_threshold",
            "max_sparsity_per_layer",
            "min_neurons_per_layer",
        },
        "strategy": {
            "default_strategy",
            "target_sparsity",
            "magnitude_weight",
            "activity_weight",
            "layer_specific_sparsity",
        },
        "logging": {"log_level", "verbose", "log_to_file", "log_to_console"},
        "validation": {"dry_run_first", "validate_inputs", "validate_outputs", "max_pruning_ratio"},
    }


def test_preset_configurations() -> None:
    from pruner import create_aggressive_config, create_conservative_config

    conservative = create_conservative_config()
    aggressive = create_aggressive_config()
    assert (conservative.strategy.target_sparsity, aggressive.strategy.target_sparsity) == (0.1, 0.7)


def test_environment_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    from pruner import PruningEngine

    monkeypatch.setenv("PRUNER_STRATEGY_TARGET_SPARSITY", "0.5")
    monkeypatch.setenv("PRUNER_LOGGING_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("PRUNER_VALIDATION_DRY_RUN_FIRST", "false")
    config = PruningEngine().config
    assert config.strategy.target_sparsity == 0.5
    assert config.logging.log_level == "DEBUG"
    assert config.validation.dry_run_first is False


def test_runtime_configuration() -> None:
    from pruner import PruningEngine

    pruner = PruningEngine()

    pruner.update_config(**{"strategy.target_sparsity": 0.4})
    assert pruner.config.strategy.target_sparsity == 0.4

    pruner.set_conservative_mode()
    assert pruner.config.strategy.target_sparsity == 0.1
    pruner.set_aggressive_mode()
    assert pruner.config.strategy.target_sparsity == 0.7

    pruner.save_config("my_config.yaml")
    assert yaml.safe_load(Path("my_config.yaml").read_text())["strategy"]["target_sparsity"] == 0.7
    Path("saved_config.json").write_text(json.dumps({"strategy": {"target_sparsity": 0.25}}))
    pruner.load_config("saved_config.json")
    assert pruner.config.strategy.target_sparsity == 0.25
