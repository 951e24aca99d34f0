"""Every option, and every variable that sets it: changing it alone changes what happens."""

import json
import logging
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pruner import small_cnn
from tests.pruner.small_cnn import SmallCNN

from pruner import execution
from pruner.config import PruningConfig, create_default_config
from pruner.engine import PruningEngine
from tracker.activity import ActivityStats, observe
from tracker.discover import discover
from tracker.errors import ConfigError, DataError, PlanError, VerificationError

Make = Callable[..., PruningEngine]


@pytest.fixture(params=["option", "variable"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    """An engine with the defaults but for the options given, set by `.update()` or by environment variables."""

    def make(**options: Any) -> PruningEngine:
        if request.param == "option":
            config = create_default_config().update(**{key.replace("__", "."): v for key, v in options.items()})
            return PruningEngine(config=config, output_dir=tmp_path)
        with monkeypatch.context() as environment:
            for key, value in options.items():
                text = value if isinstance(value, str) else json.dumps(value)
                environment.setenv(f"PRUNER_{key.replace('__', '_').upper()}", text)
            return PruningEngine(output_dir=tmp_path)

    return make


@pytest.fixture(autouse=True)
def _logger_as_before() -> Iterator[None]:
    logger = logging.getLogger("pruner")
    handlers, level = list(logger.handlers), logger.level
    yield
    for handler in set(logger.handlers) - set(handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(level)


def cnn() -> SmallCNN:
    """The CNN with an idle, a weak and a strong neuron in fc1."""
    model = small_cnn.model()
    with torch.no_grad():
        model.fc1.weight[5] *= 3  # heavy, and never active
        model.fc1.bias[5] = -1e6
        model.fc1.weight[6] *= 1e-3  # light, and hardly ever but sometimes active
        model.fc1.bias[6] = 1e-6
    discover(model, small_cnn.images())
    return model


def stats(model: SmallCNN) -> ActivityStats:
    return observe(model, [small_cnn.images(32, seed) for seed in range(2)])


def removed(results: dict[str, Any]) -> dict[str, list[int]]:
    return {name: layer["removed"] for name, layer in results["layers"].items()}


def dry(engine: PruningEngine, **given: Any) -> dict[str, Any]:
    return engine.prune_by_strategy(cnn(), dry_run=True, **given)


# --- strategy


def test_target_sparsity(engine: Make) -> None:
    assert dry(engine())["neurons_pruned"] == 60
    assert dry(engine(strategy__target_sparsity=0.1))["neurons_pruned"] == 20


def test_default_strategy(engine: Make) -> None:
    by_magnitude = removed(dry(engine()))
    evenly = removed(dry(engine(strategy__default_strategy="structured")))
    assert by_magnitude != evenly
    assert {name: len(gone) for name, gone in evenly.items()} == {"conv1": 3, "conv2": 19, "fc1": 38}
    assert dry(engine(strategy__default_strategy="gradual"))["strategy"] == "gradual"
    assert removed(dry(engine(strategy__default_strategy="gradual"))) != by_magnitude


def test_an_unknown_default_strategy_is_an_error_with_the_nearest(engine: Make) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'magnitude'"):
        dry(engine(strategy__default_strategy="magnitud"))


def test_magnitude_and_activity_weight(engine: Make) -> None:
    """Neuron 5 is heavy and idle. The thresholds, which would take it in any case, are off."""
    known = stats(cnn())
    off = {"thresholds__firing_frequency_threshold": 0.0}
    only_weights = engine(strategy__magnitude_weight=1.0, strategy__activity_weight=0.0, **off)
    only_activity = engine(strategy__magnitude_weight=0.0, strategy__activity_weight=1.0, **off)
    assert 5 not in removed(dry(only_weights, activity=known))["fc1"]
    assert 5 in removed(dry(only_activity, activity=known))["fc1"]
    half = dry(engine(**off), activity=known)
    assert removed(half) not in (
        removed(dry(only_weights, activity=known)),
        removed(dry(only_activity, activity=known)),
    )


def test_without_activity_the_weights_do_not_matter_and_a_note_says_so(
    engine: Make, caplog: pytest.LogCaptureFixture
) -> None:
    only_activity = engine(strategy__magnitude_weight=0.0, strategy__activity_weight=1.0, logging__log_level="DEBUG")
    assert removed(dry(only_activity)) == removed(dry(engine(logging__log_level="DEBUG")))
    assert "Activity is not known for conv1, conv2, fc1: scored by magnitude alone." in caplog.messages


def test_layer_specific_sparsity(engine: Make) -> None:
    own = removed(dry(engine(strategy__layer_specific_sparsity={"conv1": 0.5, "fc1": 0.0})))
    assert len(own["conv1"]) == 5
    assert "fc1" not in own
    assert len(own["conv2"]) == 19  # target_sparsity of the layers that are left


@pytest.mark.parametrize("given", [["conv*"], "conv*", "conv1, conv2"])
def test_include(engine: Make, given: Any) -> None:
    results = dry(engine(strategy__include=given))
    assert set(removed(results)) == {"conv1", "conv2"}
    assert results["neurons_pruned"] == 22  # 30 % of their 74 neurons
    assert removed(dry(engine(strategy__include=["fc1"]))).keys() == {"fc1"}


@pytest.mark.parametrize("given", [["conv*"], "conv*", "conv1,conv2"])
def test_exclude(engine: Make, given: Any) -> None:
    assert removed(dry(engine(strategy__exclude=given))).keys() == {"fc1"}
    assert removed(dry(engine(strategy__include=["conv*"], strategy__exclude=["conv1"]))).keys() == {"conv2"}
    assert removed(dry(engine(strategy__exclude=["fc2"]))) == removed(dry(engine()))  # frozen in any case


@pytest.mark.parametrize("given", [["mlp"], "mlp", "mlp,attention"])
def test_kinds(engine: Make, given: Any) -> None:
    assert removed(dry(engine(strategy__kinds=given))).keys() == {"fc1"}
    assert removed(dry(engine(strategy__kinds=["channel"]))).keys() == {"conv1", "conv2"}
    with pytest.raises(ConfigError, match=r"strategy\.kinds\.0 = 'conv'.*'channel'"):
        engine(strategy__kinds=["conv"])


@pytest.mark.parametrize("strategy", ["magnitude", "structured", "gradual"])
def test_round_to(engine: Make, strategy: str) -> None:
    layers = dry(engine(strategy__round_to=16, strategy__default_strategy=strategy))["layers"]
    assert sum(len(layer["removed"]) for layer in layers.values()) == 48  # of the 60 that are asked for
    assert all(layer["after"] % 16 == 0 for layer in layers.values())
    assert "conv1" not in layers  # 10 channels: there is no smaller multiple
    with pytest.raises(ConfigError, match=r"strategy\.round_to = '?0"):
        engine(strategy__round_to=0)


# --- thresholds


def test_firing_frequency_threshold(engine: Make) -> None:
    known = stats(cnn())
    weights_only = {"strategy__magnitude_weight": 1.0, "strategy__activity_weight": 0.0}
    assert 5 in removed(dry(engine(**weights_only), activity=known))["fc1"]
    assert (
        5 not in removed(dry(engine(thresholds__firing_frequency_threshold=0.0, **weights_only), activity=known))["fc1"]
    )


def test_weight_magnitude_threshold(engine: Make) -> None:
    def reason(made: PruningEngine) -> str:
        found = dry(made)["candidates"]
        return next(c["reason"] for c in found if (c["layer"], c["neuron"]) == ("fc1", 6))

    assert reason(engine()) == "low score"
    assert reason(engine(thresholds__weight_magnitude_threshold=0.001)) == "weak"


def test_weight_magnitude_threshold_puts_the_weak_first(engine: Make) -> None:
    """The weights of conv1 are larger than those of the other layers, which go first under a threshold between."""
    assert "conv1" in removed(dry(engine()))
    assert "conv1" not in removed(dry(engine(thresholds__weight_magnitude_threshold=0.1)))


def test_max_sparsity_per_layer(engine: Make) -> None:
    def most(made: PruningEngine) -> float:
        return max(len(layer["removed"]) / layer["before"] for layer in dry(made)["layers"].values())

    assert most(engine()) > 0.3
    assert most(engine(thresholds__max_sparsity_per_layer=0.3)) <= 0.3


def test_min_neurons_per_layer(engine: Make) -> None:
    assert dry(engine())["layers"]["conv1"]["after"] < 9
    assert dry(engine(thresholds__min_neurons_per_layer=9))["layers"]["conv1"]["after"] == 9


# --- validation


def test_max_pruning_ratio(engine: Make) -> None:
    results = dry(engine(validation__max_pruning_ratio=0.1))
    assert results["neurons_pruned"] == 20
    assert "validation.max_pruning_ratio = 0.1" in results["warnings"][0]
    assert dry(engine())["warnings"] == []


def test_max_pruning_ratio_forbids_what_a_caller_asks_for(engine: Make) -> None:
    assert dry(engine(), sparsity_ratio=0.2)["neurons_pruned"] == 40
    with pytest.raises(PlanError, match=r"max_pruning_ratio = 0.1"):
        dry(engine(validation__max_pruning_ratio=0.1), sparsity_ratio=0.2)


def test_validate_inputs(engine: Make) -> None:
    model = cnn()
    model.fc1.weight.data[3, 3] = torch.nan
    with pytest.raises(DataError, match=r"'fc1.weight' holds NaN or Inf in 1 of 32768 places"):
        engine().prune_by_magnitude(deepcopy(model), 0.1)
    unchecked = engine(validation__validate_inputs=False, validation__validate_outputs=False)
    results = unchecked.prune_by_magnitude(model, 0.1)
    assert results["neurons_pruned"] == 20
    assert 3 not in removed(results).get("fc1", [])  # what cannot be scored stays


def test_validate_outputs(engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    results = engine().prune_by_magnitude(cnn(), 0.1)
    assert results["verification"]["summary"] == {"passed": 5, "total": 5, "overall_success": True}
    trusting = engine(validation__validate_outputs=False)
    monkeypatch.setattr(execution, "verify", None)
    assert trusting.prune_by_magnitude(cnn(), 0.1)["verification"] is None


def test_dry_run_first(engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that the simulation refuses is never touched; without it, the removal itself has to notice."""

    def refuse(*_: object, **__: object) -> None:
        raise VerificationError("The simulation refuses.")

    monkeypatch.setattr(execution, "check", refuse)
    with pytest.raises(VerificationError, match="simulation refuses"):
        engine().prune_by_magnitude(cnn(), 0.1)
    assert engine(validation__dry_run_first=False).prune_by_magnitude(cnn(), 0.1)["neurons_pruned"] == 20


# --- logging


def test_log_level(engine: Make, caplog: pytest.LogCaptureFixture) -> None:
    dry(engine())
    assert {record.levelname for record in caplog.records} == {"INFO"}
    caplog.clear()
    dry(engine(logging__log_level="DEBUG"))
    assert {record.levelname for record in caplog.records} == {"INFO", "DEBUG"}
    caplog.clear()
    dry(engine(logging__log_level="ERROR"))
    assert not caplog.records


def test_verbose(engine: Make, caplog: pytest.LogCaptureFixture) -> None:
    engine().prune_by_magnitude(cnn(), 0.1)
    assert len(caplog.records) == 5
    caplog.clear()
    engine(logging__verbose=False).prune_by_magnitude(cnn(), 0.1)
    assert [record.message for record in caplog.records] == ["Pruning completed: 20 neurons removed from 3 layers"]


def test_log_to_console(engine: Make, capsys: pytest.CaptureFixture[str]) -> None:
    dry(engine())
    assert "INFO - Original model: 202 neurons across 3 layers" in capsys.readouterr().err
    dry(engine(logging__log_to_console=False))
    assert capsys.readouterr().err == ""


def test_log_to_file(engine: Make, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "pruner.log"
    dry(engine())
    assert not log.exists()
    dry(engine(logging__log_to_file=True))
    assert "INFO - Original model: 202 neurons across 3 layers" in log.read_text()


def _data() -> list[torch.Tensor]:
    return [small_cnn.images(32, seed) for seed in range(2)]


def test_enabled(engine: Make) -> None:
    repaired, bare = cnn(), cnn()
    results = engine().prune_by_magnitude(repaired, 0.3, data_loader=_data())
    assert results["repair"]["kept"] == "closed form"
    off = engine(repair__enabled=False).prune_by_magnitude(bare, 0.3, data_loader=_data())
    assert off["repair"] is None
    assert removed(off) == removed(results)
    assert not torch.equal(repaired.fc2.weight, bare.fc2.weight)
    assert torch.equal(repaired.conv1.weight, bare.conv1.weight)


def test_effort(engine: Make) -> None:
    results = engine(repair__effort="default").prune_by_magnitude(cnn(), 0.3, data_loader=_data())
    assert "blocks" in results["repair"]["distances"]
    assert "blocks" not in engine().prune_by_magnitude(cnn(), 0.3, data_loader=_data())["repair"]["distances"]


def test_every_option_has_a_test_here() -> None:
    tested = Path(__file__).read_text()
    sections = PruningConfig().model_dump()
    missing = [option for options in sections.values() for option in options if f"def test_{option}" not in tested]
    assert [option for option in missing if option not in ("magnitude_weight", "activity_weight")] == []
    assert "def test_magnitude_and_activity_weight" in tested
