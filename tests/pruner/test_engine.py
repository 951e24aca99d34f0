"""The engine: what it removes, says, refuses and restores. What the options do is in test_options."""

import json
import logging
import math
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pruner import small_cnn
from tests.pruner.small_cnn import SmallCNN
from torch import Tensor, nn

from pruner import execution, strategies
from pruner.config import create_aggressive_config, create_default_config
from pruner.engine import PruningEngine
from pruner.plan import PruningPlan
from pruner.selection import StrategyInput
from pruner.verification import Check, VerificationReport
from tracker.discover import discover
from tracker.errors import ConfigError, DataError, PlanError, StorageError, UnknownLayerError, VerificationError

Results = dict[str, Any]
Operation = Callable[..., Results]


@pytest.fixture(autouse=True)
def _logger_as_before() -> Iterator[None]:
    logger = logging.getLogger("pruner")
    handlers, level = list(logger.handlers), logger.level
    yield
    for handler in set(logger.handlers) - set(handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(level)


class Residual(nn.Module):
    """A stream with layer norms: its channels cannot be removed exactly, the hidden ones can."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.final = nn.LayerNorm(8)
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        answer: Tensor = self.out(self.final(x))
        return answer


def cnn() -> SmallCNN:
    model = small_cnn.model()
    discover(model, small_cnn.images())
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return deepcopy(dict(model.state_dict()))


def untouched(model: nn.Module, before: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def by_magnitude(engine: PruningEngine, model: nn.Module, **given: Any) -> Results:
    return engine.prune_by_magnitude(model, 0.3, **given)


def by_strategy(engine: PruningEngine, model: nn.Module, **given: Any) -> Results:
    return engine.prune_by_strategy(model, "gradual", 0.3, **given)


def by_layer(engine: PruningEngine, model: nn.Module, **given: Any) -> Results:
    return engine.prune_structured(model, {"conv1": 0.25, "fc1": 0.5}, **given)


def in_every_layer(engine: PruningEngine, model: nn.Module, **given: Any) -> Results:
    return engine.prune_structured(model, **given)


def for_epoch(engine: PruningEngine, model: nn.Module, **given: Any) -> Results:
    schedule = engine.create_gradual_schedule(0.0, 0.5, num_epochs=4)
    return engine.prune_for_epoch(model, schedule["schedule_id"], 2, **given)


OPERATIONS = pytest.mark.parametrize("operation", [by_magnitude, by_strategy, by_layer, in_every_layer, for_epoch])


# --- what comes out


@OPERATIONS
def test_a_dry_run_has_the_numbers_of_the_real_run_and_changes_nothing(operation: Operation) -> None:
    engine, model = PruningEngine(), cnn()
    before = state(model)
    dry = operation(engine, model, dry_run=True)
    assert untouched(model, before)
    real = operation(engine, model)
    assert not untouched(model, before)
    assert (dry["dry_run"], real["dry_run"]) == (True, False)
    assert (dry["verification"], real["verification"]["summary"]["overall_success"]) == (None, True)
    for either in (dry, real):
        either.pop("dry_run")
        either.pop("verification")
        either.pop("schedule_id", None)
    assert dry == real


@OPERATIONS
def test_asking_twice_removes_once(operation: Operation) -> None:
    engine, model = PruningEngine(), cnn()
    assert operation(engine, model)["neurons_pruned"] > 0
    once = state(model)
    again = operation(engine, model)
    assert (again["neurons_pruned"], again["layers"], again["verification"]) == (0, {}, None)
    assert untouched(model, once)


@OPERATIONS
def test_results_are_complete_json_and_true(operation: Operation) -> None:
    model = cnn()
    results = operation(PruningEngine(), model)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    sizes = {"conv1": model.conv1.out_channels, "conv2": model.conv2.out_channels, "fc1": model.fc1.out_features}
    assert results["neurons_before"] == 202
    assert results["neurons_after"] == sum(sizes.values()) == 202 - results["neurons_pruned"]
    assert results["reduction"] == pytest.approx(results["neurons_pruned"] / 202)
    assert results["parameters_after"] == sum(parameter.numel() for parameter in model.parameters())
    assert results["layers_affected"] == len(results["layers"])
    for name, layer in results["layers"].items():
        assert layer["after"] == sizes[name] == layer["before"] - len(layer["removed"])
        assert len(layer["scores"]) == len(layer["reasons"]) == len(layer["removed"])
    assert PruningPlan.from_json(results["plan"]).remove == {
        name: tuple(layer["removed"]) for name, layer in results["layers"].items()
    }
    assert len(results["candidates"]) == results["neurons_pruned"]


@OPERATIONS
def test_the_log_has_the_guides_lines(operation: Operation, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="pruner"):
        results = operation(PruningEngine(), cnn())
    gone, layers = results["neurons_pruned"], results["layers_affected"]
    assert [record.message for record in caplog.records] == [
        "Original model: 202 neurons across 3 layers",
        f"Pruning candidates identified: {gone} neurons",
        f"Pruning completed: {gone} neurons removed from {layers} layers",
        "Verification: 5/5 tests passed",
        f"Final model: {202 - gone} neurons ({100 * gone / 202:.1f}% reduction)",
    ]


def test_log_lines_look_as_in_the_guide(capsys: pytest.CaptureFixture[str]) -> None:
    PruningEngine().prune_by_magnitude(cnn(), 0.005)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d - INFO - Original model: 202 neurons across 3 layers", first)
    assert last.endswith(" - INFO - Final model: 201 neurons (0.5% reduction)")


def test_the_root_logger_is_left_alone() -> None:
    root = logging.getLogger()
    before = list(root.handlers), root.level
    PruningEngine(config=create_default_config().update(logging={"log_level": "DEBUG"})).prune_by_magnitude(cnn(), 0.1)
    assert (list(root.handlers), root.level) == before


def test_two_engines_do_not_log_twice(capsys: pytest.CaptureFixture[str]) -> None:
    PruningEngine().prune_by_magnitude(cnn(), 0.1)
    PruningEngine().prune_by_magnitude(cnn(), 0.1)
    assert capsys.readouterr().err.count("Original model") == 2


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file, not a directory")
    config = create_default_config().update(logging={"log_to_file": True})
    model = cnn()
    before = state(model)
    with pytest.raises(StorageError, match=r"pruner\.log"):
        PruningEngine(config=config, output_dir=tmp_path).prune_by_magnitude(model, 0.1)
    assert untouched(model, before)


# --- by magnitude


def test_the_smallest_norms_go() -> None:
    model = cnn()
    with torch.no_grad():
        model.conv2.weight[[3, 60]] *= 0.01
        model.fc1.weight[7] *= 0.01
    results = PruningEngine().prune_by_magnitude(model, 3.4 / 202)
    assert {name: layer["removed"] for name, layer in results["layers"].items()} == {"conv2": [3, 60], "fc1": [7]}
    assert all(score < 0.02 for layer in results["layers"].values() for score in layer["scores"])


def test_a_larger_share_later_goes_on_from_what_is_gone() -> None:
    engine, model = PruningEngine(), cnn()
    assert engine.prune_by_magnitude(model, 0.2)["neurons_pruned"] == 40
    assert engine.prune_by_magnitude(model, 0.5)["neurons_pruned"] == 61
    assert engine.prune_by_magnitude(model, 0.4)["neurons_pruned"] == 0


def test_a_layer_that_shrinks_to_one_neuron_still_counts() -> None:
    config = create_default_config().update(thresholds={"max_sparsity_per_layer": 1.0})
    engine, model = PruningEngine(config=config), cnn()
    assert engine.prune_structured(model, {"conv1": 0.9})["neurons_after"] == 193
    assert engine.prune_structured(model, {"conv1": 0.9})["neurons_pruned"] == 0
    results = engine.prune_by_magnitude(model, 0.3)
    assert (results["neurons_before"], results["neurons_after"]) == (193, 142)
    assert engine.prune_by_magnitude(model, 0.3)["neurons_pruned"] == 0


def test_another_engine_sees_a_pruned_model_for_the_first_time() -> None:
    model = cnn()
    PruningEngine().prune_by_magnitude(model, 0.5)
    results = PruningEngine().prune_by_magnitude(model, 0.5)
    assert (results["neurons_before"], results["neurons_pruned"]) == (101, 50)


# --- by layer


def test_each_layer_named_loses_its_share() -> None:
    results = PruningEngine().prune_structured(cnn(), {"conv1": 0.25, "fc1": 0.5})
    assert {name: len(layer["removed"]) for name, layer in results["layers"].items()} == {"conv1": 2, "fc1": 64}


def test_a_layer_that_is_not_exact_must_be_named() -> None:
    model = Residual()
    assert not discover(model, torch.randn(3, 4))["embed"].exact
    assert set(PruningEngine().prune_by_magnitude(deepcopy(model), 0.5, dry_run=True)["layers"]) == {"up"}
    assert set(PruningEngine().prune_structured(deepcopy(model), dry_run=True)["layers"]) == {"up"}
    results = PruningEngine().prune_structured(model, {"embed": 0.25})
    assert results["layers"]["embed"]["after"] == 6
    assert results["verification"]["summary"] == {"passed": 4, "total": 4, "overall_success": True}
    assert model(torch.randn(3, 4)).shape == (3, 2)


@pytest.mark.parametrize(
    ("layers", "error", "words"),
    [
        ({"conv11": 0.5}, UnknownLayerError, "Did you mean 'conv1'"),
        ({"fc2": 0.5}, UnknownLayerError, "model's output"),
        ({"fc1": 1.5}, PlanError, "Sparsity of layer 'fc1' = 1.5 is not a number from 0 to 1"),
        ({"fc1": -0.5}, PlanError, "-0.5 is not a number from 0 to 1"),
        ({"fc1": 1.0}, PlanError, "Layer 'fc1' cannot lose a share of 1"),
        ({"fc1": 0.95}, PlanError, r"max_sparsity_per_layer = 0\.9"),
        ({}, PlanError, "names no layers"),
        (["fc1"], PlanError, "names no layers"),
    ],
)
def test_bad_layers_are_errors(layers: Any, error: type[Exception], words: str) -> None:
    model = cnn()
    before = state(model)
    with pytest.raises(error, match=words):
        PruningEngine().prune_structured(model, layers)
    assert untouched(model, before)


# --- gradually


@pytest.mark.parametrize("curve", ["cubic", "linear", "cosine", "exponential"])
def test_after_the_last_epoch_the_share_is_the_target(curve: str) -> None:
    engine, model = PruningEngine(), cnn()
    schedule = engine.create_gradual_schedule(0.0, 0.5, num_epochs=4, schedule=curve)
    before = 202
    for epoch in range(4):
        results = engine.prune_for_epoch(model, schedule["schedule_id"], epoch)
        assert results["neurons_before"] == before
        before = results["neurons_after"]
        assert results["target_sparsity"] == schedule["targets"][epoch]
        assert 0 <= results["target_sparsity"] - results["sparsity"] < 1 / 202
    assert abs(before - 101) <= 1


def test_a_schedule_is_json_and_every_one_has_its_own_name() -> None:
    engine = PruningEngine()
    one, other = engine.create_gradual_schedule(0.0, 0.5, 10), engine.create_gradual_schedule(0.0, 0.5, 10)
    assert one["schedule_id"] != other["schedule_id"]
    assert json.loads(json.dumps(one)) == one
    assert len(one["targets"]) == 10


def test_a_training_loop_goes_on_with_its_optimizer() -> None:
    engine, model = PruningEngine(), cnn().train()
    optimizer = torch.optim.Adam(model.parameters())
    schedule = engine.create_gradual_schedule(0.0, 0.4, num_epochs=3)
    for epoch in range(3):
        optimizer.zero_grad()
        model(small_cnn.images()).square().mean().backward()
        optimizer.step()
        engine.prune_for_epoch(model, schedule["schedule_id"], epoch, optimizer=optimizer)
        assert model.training
    assert optimizer.state[model.fc1.weight]["exp_avg"].shape == model.fc1.weight.shape
    assert math.floor(0.4 * 202) == 202 - sum(
        [model.conv1.out_channels, model.conv2.out_channels, model.fc1.out_features]
    )


def test_layers_with_a_share_of_their_own_follow_the_schedule() -> None:
    config = create_default_config().update(strategy={"layer_specific_sparsity": {"fc1": 0.8}})
    engine, model = PruningEngine(config=config), cnn()
    schedule = engine.create_gradual_schedule(0.0, 0.4, num_epochs=3, schedule="linear")
    sizes = []
    for epoch in range(3):
        engine.prune_for_epoch(model, schedule["schedule_id"], epoch)
        sizes.append(model.fc1.out_features)
    assert sizes == [128, 128 - 51, 128 - 102]


def test_schedules_that_cannot_be_are_errors() -> None:
    engine, model = PruningEngine(), cnn()
    with pytest.raises(PlanError, match=r"final sparsity 0\.9 exceeds validation.max_pruning_ratio = 0\.8"):
        engine.create_gradual_schedule(0.0, 0.9, 10)
    with pytest.raises(PlanError, match=r"final sparsity = 1\.2"):
        engine.create_gradual_schedule(0.0, 1.2, 10)
    with pytest.raises(PlanError, match="cannot come back"):
        engine.create_gradual_schedule(0.5, 0.2, 10)
    schedule = engine.create_gradual_schedule(0.0, 0.5, 10)
    with pytest.raises(PlanError, match="Did you mean 'cubic-1'"):
        engine.prune_for_epoch(model, "cubic-11", 0)
    with pytest.raises(PlanError, match="epochs are 0 to 9"):
        engine.prune_for_epoch(model, schedule["schedule_id"], 10)


# --- bad input


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (-0.1, "sparsity_ratio = -0.1 is not a number from 0 to 1"),
        (1.1, "sparsity_ratio = 1.1"),
        (float("nan"), "sparsity_ratio = nan"),
        ("half", "sparsity_ratio = 'half'"),
        (1.0, r"cannot lose a share of 1: .*max_pruning_ratio = 0\.8"),
    ],
)
def test_a_bad_share_is_an_error(ratio: Any, words: str) -> None:
    model = cnn()
    before = state(model)
    with pytest.raises(PlanError, match=words):
        PruningEngine().prune_by_magnitude(model, ratio)
    assert untouched(model, before)


def test_no_layer_is_ever_emptied() -> None:
    config = create_default_config().update(
        thresholds={"max_sparsity_per_layer": 1.0}, validation={"max_pruning_ratio": 1.0}
    )
    model = cnn()
    with pytest.raises(PlanError, match=r"202 more neurons, and only 199 may go .*min_neurons_per_layer = 1"):
        PruningEngine(config=config).prune_by_magnitude(model, 1.0)
    results = PruningEngine(config=config).prune_by_magnitude(model, 199.5 / 202)
    assert all(layer["after"] == 1 for layer in results["layers"].values())
    assert torch.isfinite(model(small_cnn.images())).all()


def test_a_model_without_neurons_is_an_error_that_says_why() -> None:
    model = nn.Linear(4, 2)
    discover(model, torch.zeros(1, 4))
    before = state(model)
    with pytest.raises(PlanError, match=r"Linear has no neurons that can be removed: .*model's output"):
        PruningEngine().prune_by_magnitude(model, 0.5)
    assert untouched(model, before)


def test_a_model_of_inexact_layers_only_says_how_to_prune_it_all_the_same() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm, self.out = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.out(self.norm(self.embed(x)))
            return answer

    model = Stream()
    discover(model, torch.randn(2, 4))
    with pytest.raises(PlanError, match="prune_structured"):
        PruningEngine().prune_by_magnitude(model, 0.5)
    assert PruningEngine().prune_structured(model, {"embed": 0.5})["layers"]["embed"]["after"] == 4


def test_nan_in_a_buffer_is_found_too() -> None:
    model = cnn()
    assert model.bn1.running_var is not None
    model.bn1.running_var[2] = torch.inf
    with pytest.raises(DataError, match=r"'bn1.running_var' holds NaN or Inf in 1 of 10"):
        PruningEngine().prune_by_magnitude(model, 0.1)


@pytest.mark.parametrize("model", ["model.pt", None, {"fc1": 1}])
def test_what_is_no_model_is_an_error(model: Any) -> None:
    with pytest.raises(PlanError, match=r"Give a torch\.nn\.Module"):
        PruningEngine().prune_by_magnitude(model, 0.1)


def test_frozen_parameters_are_pruned_and_stay_frozen() -> None:
    model = cnn().requires_grad_(False)
    PruningEngine().prune_by_magnitude(model, 0.3)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_half_precision_is_pruned_and_verified() -> None:
    model = small_cnn.model().to(torch.bfloat16)
    discover(model, small_cnn.images().to(torch.bfloat16))
    results = PruningEngine().prune_by_magnitude(model, 0.3)
    assert results["verification"]["summary"]["overall_success"]
    assert model.fc1.weight.dtype == torch.bfloat16


def test_a_compiled_model_is_pruned_like_the_one_inside() -> None:
    model = cnn()
    compiled = torch.compile(model, backend="eager")
    engine = PruningEngine()
    results = engine.prune_by_magnitude(compiled, 0.3)
    assert results["neurons_pruned"] == 60
    assert engine.prune_by_magnitude(model, 0.3)["neurons_pruned"] == 0
    torch.testing.assert_close(compiled(small_cnn.images()), model(small_cnn.images()))


def test_real_data_are_used_to_verify_with() -> None:
    batches = [(small_cnn.images(seed=seed), torch.zeros(4, dtype=torch.long)) for seed in range(3)]
    results = PruningEngine().prune_by_magnitude(small_cnn.model(), 0.1, data_loader=batches)
    proof = next(check for check in results["verification"]["checks"] if check["name"] == "sliced equals masked")
    assert proof["measured"]["batches"] == 3


def test_an_empty_loader_is_an_error() -> None:
    model = small_cnn.model()
    before = state(model)
    with pytest.raises(DataError, match="empty"):
        PruningEngine().prune_by_magnitude(model, 0.1, data_loader=[])
    assert untouched(model, before)


# --- going back


def fails(*_: object, **__: object) -> VerificationReport:
    passed = Check("structure", True, "As planned.", {})
    return VerificationReport((passed, Check("forward pass", False, "It answers with NaN.", {})))


def interrupted(*_: object, **__: object) -> VerificationReport:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("ending", "error"), [(fails, VerificationError), (interrupted, KeyboardInterrupt)])
def test_a_model_that_is_not_proven_is_restored_with_its_optimizer(
    monkeypatch: pytest.MonkeyPatch, ending: Callable[..., VerificationReport], error: type[BaseException]
) -> None:
    model = cnn()
    optimizer = torch.optim.Adam(model.parameters())
    model(small_cnn.images()).sum().backward()
    optimizer.step()
    before = state(model)
    moments = {name: optimizer.state[p]["exp_avg"].clone() for name, p in model.named_parameters()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    monkeypatch.setattr(execution, "verify", ending)
    with pytest.raises(error) as caught:
        PruningEngine().prune_by_magnitude(model, 0.3, optimizer=optimizer)
    assert untouched(model, before)
    assert (model.fc1.out_features, model.conv2.in_channels) == (128, 10)
    for name, parameter in model.named_parameters():
        assert torch.equal(optimizer.state[parameter]["exp_avg"], moments[name])
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gradients[name])
    if error is VerificationError:
        assert "1/2 tests passed; forward pass: It answers with NaN. The model was restored." in str(caught.value)


def test_backup_and_restore() -> None:
    engine, model = PruningEngine(), cnn()
    before = state(model)
    engine.backup(model)
    engine.prune_by_magnitude(model, 0.5)
    engine.prune_structured(model, {"fc1": 0.7})
    engine.restore(model)
    assert untouched(model, before)
    assert (model.fc1.out_features, model.bn1.num_features) == (128, 10)
    assert engine.prune_by_magnitude(model, 0.5)["neurons_before"] == 202


def test_restoring_what_was_never_backed_up_is_an_error() -> None:
    with pytest.raises(PlanError, match=r"backup\(model\)"):
        PruningEngine().restore(cnn())


def test_the_engine_holds_no_model() -> None:
    import gc
    import weakref

    engine, model = PruningEngine(), cnn()
    engine.backup(model)
    engine.prune_by_magnitude(model, 0.1)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# --- measuring


def test_metrics_and_validation_come_through_the_engine() -> None:
    engine, original = PruningEngine(), cnn()
    pruned = deepcopy(original)
    results = engine.prune_by_magnitude(pruned, 0.3)
    metrics = engine.compute_metrics(pruned, original)
    assert metrics["model_size"]["pruned_parameters"] == results["parameters_after"]
    assert metrics["sparsity"]["neurons_removed"] == pytest.approx(results["reduction"])
    assert engine.validate_pruning(pruned, original)["is_valid"]


# --- configuration


def test_the_config_comes_from_a_file_an_object_or_the_defaults(tmp_path: Path) -> None:
    create_aggressive_config().save(tmp_path / "c.yaml")
    assert PruningEngine(config_path=tmp_path / "c.yaml").config == create_aggressive_config()
    assert PruningEngine(config=create_aggressive_config()).config == create_aggressive_config()
    assert PruningEngine().config == create_default_config()
    with pytest.raises(ConfigError, match="Give one of them"):
        PruningEngine(config_path=tmp_path / "c.yaml", config=create_default_config())


def test_modes_change_thresholds_and_strategy_and_keep_what_the_user_set_elsewhere() -> None:
    engine = PruningEngine()
    engine.update_config(
        logging={"log_level": "ERROR"},
        validation={"dry_run_first": False, "max_pruning_ratio": 0.75},
        strategy={"target_sparsity": 0.2},
        thresholds={"min_neurons_per_layer": 3},
    )
    chosen = engine.config
    engine.set_aggressive_mode()
    assert engine.config.strategy.target_sparsity == 0.7
    assert engine.config.thresholds == create_aggressive_config().thresholds
    assert (engine.config.logging, engine.config.validation) == (chosen.logging, chosen.validation)
    engine.set_conservative_mode()
    assert engine.config.strategy.target_sparsity == 0.1
    assert (engine.config.logging, engine.config.validation) == (chosen.logging, chosen.validation)


def test_the_environment_goes_over_a_mode_and_update_config_over_both(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PruningEngine()
    monkeypatch.setenv("PRUNER_STRATEGY_TARGET_SPARSITY", "0.5")
    engine.set_aggressive_mode()
    assert engine.config.strategy.target_sparsity == 0.5
    engine.update_config(**{"strategy.target_sparsity": 0.6})
    assert engine.config.strategy.target_sparsity == 0.6


def test_modes_change_how_much_is_removed() -> None:
    engine = PruningEngine()
    engine.set_conservative_mode()
    assert engine.prune_by_magnitude(cnn(), dry_run=True)["neurons_pruned"] == 20
    engine.set_aggressive_mode()
    assert engine.prune_by_magnitude(cnn(), dry_run=True)["neurons_pruned"] == 141


def test_a_wrong_update_leaves_the_config() -> None:
    engine = PruningEngine()
    with pytest.raises(ConfigError, match=r"sum to 0\.8"):
        engine.update_config(**{"strategy.magnitude_weight": 0.3})
    assert engine.config == create_default_config()


def test_configs_are_saved_and_loaded(tmp_path: Path) -> None:
    engine = PruningEngine()
    engine.update_config(**{"strategy.target_sparsity": 0.45})
    for name in ("c.yaml", "c.json"):
        engine.save_config(tmp_path / name)
        other = PruningEngine()
        other.load_config(tmp_path / name)
        assert other.config == engine.config


# --- extending


@pytest.fixture
def _greedy() -> Iterator[None]:
    @strategies.register("grasping")
    def greedy(given: StrategyInput) -> PruningPlan:
        share = 1.0 if given.config.strategy.target_sparsity > 0.5 else 0.5
        return PruningPlan(
            {group.name: range(int(share * group.size)) for group in given.neurons}, provenance={"by": "greed"}
        )

    yield
    strategies.unregister("grasping")


@pytest.mark.usefixtures("_greedy")
def test_a_registered_strategy_decides_within_the_limits() -> None:
    engine, model = PruningEngine(), cnn()
    engine.update_config(strategy={"default_strategy": "grasping"})
    results = engine.prune_by_strategy(model)
    assert (results["strategy"], results["neurons_pruned"]) == ("grasping", 101)
    assert results["plan"]["provenance"]["by"] == "greed"
    engine.update_config(strategy={"target_sparsity": 0.6})
    before = state(model)
    with pytest.raises(PlanError, match=r"removes all|may lose"):
        engine.prune_by_strategy(model)
    assert untouched(model, before)
