"""The configuration: files, presets, environment, precedence, errors. What each option does is in test_engine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pruner.config import (
    PruningConfig,
    Section,
    create_aggressive_config,
    create_conservative_config,
    create_default_config,
    sections,
)
from tracker.errors import ConfigError, StorageError

CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_defaults_are_those_of_the_guide() -> None:
    config = create_default_config()
    assert config.thresholds.firing_frequency_threshold == 0.01
    assert config.thresholds.max_sparsity_per_layer == 0.9
    assert config.strategy.default_strategy == "magnitude"
    assert config.strategy.target_sparsity == 0.3
    assert (config.strategy.magnitude_weight, config.strategy.activity_weight) == (0.5, 0.5)
    assert config.logging.log_level == "INFO"
    assert config.logging.verbose is True
    assert config.validation.dry_run_first is True
    assert config.validation.max_pruning_ratio == 0.8


def test_the_presets_are_as_strong_as_the_guide_says() -> None:
    conservative, aggressive = create_conservative_config(), create_aggressive_config()
    assert conservative.strategy.target_sparsity == 0.1
    assert aggressive.strategy.target_sparsity == 0.7
    for config in (conservative, create_default_config(), aggressive):
        assert config.strategy.target_sparsity <= config.validation.max_pruning_ratio
        assert config.strategy.target_sparsity <= config.thresholds.max_sparsity_per_layer


@pytest.mark.parametrize(
    ("name", "create"),
    [
        ("default", create_default_config),
        ("conservative", create_conservative_config),
        ("aggressive", create_aggressive_config),
    ],
)
def test_the_shipped_files_are_the_presets(name: str, create: type[PruningConfig]) -> None:
    assert PruningConfig.from_file(CONFIGS / f"{name}.yaml") == create()


def test_the_shipped_default_file_shows_every_option() -> None:
    shown = yaml.safe_load((CONFIGS / "default.yaml").read_text())
    assert shown == create_default_config().model_dump(mode="json")


# --- update


def test_update_returns_a_new_config_and_leaves_the_old_one() -> None:
    old = create_default_config()
    new = old.update(strategy={"target_sparsity": 0.4}, logging={"log_level": "DEBUG"})
    assert (new.strategy.target_sparsity, new.logging.log_level) == (0.4, "DEBUG")
    assert new.strategy.default_strategy == "magnitude"
    assert old == create_default_config()


def test_update_takes_dotted_names_and_whole_sections() -> None:
    config = create_default_config().update(**{"strategy.target_sparsity": 0.6, "thresholds.min_neurons_per_layer": 3})
    assert (config.strategy.target_sparsity, config.thresholds.min_neurons_per_layer) == (0.6, 3)
    other = create_default_config().update(strategy=config.strategy)
    assert other.strategy == config.strategy
    assert other.thresholds.min_neurons_per_layer == 1


def test_update_replaces_a_dictionary_as_a_whole() -> None:
    config = create_default_config().update(strategy={"layer_specific_sparsity": {"conv1": 0.5}})
    config = config.update(strategy={"layer_specific_sparsity": {"fc1": 0.2}})
    assert config.strategy.layer_specific_sparsity == {"fc1": 0.2}


def test_a_config_cannot_be_changed_in_place() -> None:
    config = create_default_config()
    with pytest.raises(ValueError, match="frozen"):
        config.strategy.target_sparsity = 0.9  # type: ignore[misc]


# --- errors name key, value, rule, and the nearest key


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy.target_sparsity": 1.5}, ["strategy.target_sparsity", "1.5", "less than or equal to 1"]),
        ({"strategy.target_sparsity": -0.1}, ["strategy.target_sparsity", "-0.1", "greater than or equal to 0"]),
        ({"strategy.target_sparsity": float("nan")}, ["strategy.target_sparsity", "nan"]),
        ({"strategy.target_sparsity": True}, ["strategy.target_sparsity", "True", "must be a number"]),
        ({"strategy.target_sparsity": "much"}, ["strategy.target_sparsity", "'much'", "must be a valid number"]),
        ({"thresholds.firing_frequency_threshold": 2}, ["thresholds.firing_frequency_threshold", "2"]),
        ({"thresholds.max_sparsity_per_layer": 1.01}, ["thresholds.max_sparsity_per_layer", "1.01"]),
        ({"thresholds.weight_magnitude_threshold": -1}, ["thresholds.weight_magnitude_threshold", "-1"]),
        (
            {"thresholds.min_neurons_per_layer": 0},
            ["thresholds.min_neurons_per_layer", "0", "greater than or equal to 1"],
        ),
        ({"validation.max_pruning_ratio": 3}, ["validation.max_pruning_ratio", "3"]),
        ({"validation.dry_run_first": "perhaps"}, ["validation.dry_run_first", "'perhaps'", "boolean"]),
        ({"logging.log_level": "LOUD"}, ["logging.log_level", "'LOUD'", "'WARNING'"]),
        ({"strategy.layer_specific_sparsity": {"fc1": 2}}, ["layer_specific_sparsity.fc1", "2"]),
        ({"strategy.magnitude_weight": 0.3}, ["magnitude_weight = 0.3", "activity_weight = 0.5", "sum to 0.8", "both"]),
        ({"strategy.target_sparsty": 0.3}, ["strategy.target_sparsty", "Did you mean 'strategy.target_sparsity'"]),
        ({"logging.target_sparsity": 0.3}, ["logging.target_sparsity", "Did you mean 'strategy.target_sparsity'"]),
        ({"target_sparsity": 0.3}, ["target_sparsity", "Did you mean 'strategy.target_sparsity'"]),
        ({"strateg": {"target_sparsity": 0.3}}, ["strateg", "Did you mean 'strategy'"]),
        ({"strategy": 0.3}, ["strategy = 0.3", "section"]),
    ],
)
def test_a_wrong_change_is_an_error_that_names_it(changes: dict[str, object], words: list[str]) -> None:
    config = create_default_config()
    with pytest.raises(ConfigError) as caught:
        config.update(**changes)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert config == create_default_config()


def test_both_weights_together_are_fine() -> None:
    config = create_default_config().update(**{"strategy.magnitude_weight": 0.3, "strategy.activity_weight": 0.7})
    assert config.strategy.activity_weight == 0.7


def test_every_wrong_value_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        PruningConfig(strategy={"target_sparsity": 2}, thresholds={"max_sparsity_per_layer": 3})
    assert "strategy.target_sparsity" in str(caught.value)
    assert "thresholds.max_sparsity_per_layer" in str(caught.value)


# --- files


@pytest.mark.parametrize("suffix", ["yaml", "yml", "json"])
def test_a_saved_config_loads_as_it_was(tmp_path: Path, suffix: str) -> None:
    config = create_aggressive_config().update(strategy={"layer_specific_sparsity": {"conv1": 0.25}})
    path = tmp_path / f"config.{suffix}"
    config.save(path)
    assert PruningConfig.from_file(path) == config


@settings(deadline=None, max_examples=30)
@given(
    share=st.floats(0, 1),
    weight=st.floats(0, 1),
    layers=st.dictionaries(st.text(min_size=1), st.floats(0, 1), max_size=3),
    level=st.sampled_from(["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]),
    least=st.integers(1, 10**6),
)
def test_any_config_survives_both_formats(
    tmp_path_factory: pytest.TempPathFactory,
    share: float,
    weight: float,
    layers: dict[str, float],
    level: str,
    least: int,
) -> None:
    config = PruningConfig(
        thresholds={"min_neurons_per_layer": least, "max_sparsity_per_layer": share},
        strategy={"magnitude_weight": weight, "activity_weight": 1 - weight, "layer_specific_sparsity": layers},
        logging={"log_level": level},
    )
    directory = tmp_path_factory.mktemp("configs")
    for name in ("config.yaml", "config.json"):
        config.save(directory / name)
        assert PruningConfig.from_file(directory / name) == config


def test_the_guides_file_loads(tmp_path: Path) -> None:
    path = tmp_path / "pruner_config.yaml"
    path.write_text("thresholds:\n  max_sparsity_per_layer: 0.5\nlogging:\n  log_level: debug\n")
    config = PruningConfig.from_file(path)
    assert (config.thresholds.max_sparsity_per_layer, config.logging.log_level) == (0.5, "DEBUG")
    assert config.strategy == create_default_config().strategy


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert PruningConfig.from_file(tmp_path / "empty.yaml") == create_default_config()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.yaml", "strategy: [1", "not YAML"),
        ("c.yaml", "- 1\n- 2\n", "does not hold sections"),
        ("c.yaml", "1: 2\n", "does not hold sections"),
        ("c.json", "{", "does not hold a configuration as JSON"),
        ("c.json", "[]", "does not hold sections"),
        ("c.json", '{"strategy": {"target_sparsity": 0.1, "target_sparsity": 0.9}}', "twice"),
        ("c.toml", "", "Use .yaml, .yml or .json"),
        ("c.json", '{"strategy": {"target_sparsity": 9}}', "strategy.target_sparsity = 9"),
        ("c.yaml", "strategy:\n", "strategy = None"),
    ],
)
def test_a_malformed_file_is_an_error(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=words):
        PruningConfig.from_file(tmp_path / name)


@pytest.mark.parametrize("name", ["absent.yaml", "absent.json"])
def test_a_missing_file_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match="Check the path"):
        PruningConfig.from_file(tmp_path / name)


def test_no_file_is_written_under_another_suffix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="suffix"):
        create_default_config().save(tmp_path / "config.txt")
    assert not list(tmp_path.iterdir())


# --- environment


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("PRUNER_THRESHOLDS_FIRING_FREQUENCY_THRESHOLD", "0.2", "firing_frequency_threshold", 0.2),
        ("PRUNER_THRESHOLDS_WEIGHT_MAGNITUDE_THRESHOLD", "0.2", "weight_magnitude_threshold", 0.2),
        ("PRUNER_THRESHOLDS_MAX_SPARSITY_PER_LAYER", "0.2", "max_sparsity_per_layer", 0.2),
        ("PRUNER_THRESHOLDS_MIN_NEURONS_PER_LAYER", "7", "min_neurons_per_layer", 7),
        ("PRUNER_STRATEGY_DEFAULT_STRATEGY", "structured", "default_strategy", "structured"),
        ("PRUNER_STRATEGY_TARGET_SPARSITY", "0.5", "target_sparsity", 0.5),
        ("PRUNER_STRATEGY_LAYER_SPECIFIC_SPARSITY", '{"fc1": 0.5}', "layer_specific_sparsity", {"fc1": 0.5}),
        ("PRUNER_LOGGING_LOG_LEVEL", "DEBUG", "log_level", "DEBUG"),
        ("PRUNER_LOGGING_VERBOSE", "false", "verbose", False),
        ("PRUNER_LOGGING_LOG_TO_FILE", "true", "log_to_file", True),
        ("PRUNER_LOGGING_LOG_TO_CONSOLE", "0", "log_to_console", False),
        ("PRUNER_VALIDATION_DRY_RUN_FIRST", "false", "dry_run_first", False),
        ("PRUNER_VALIDATION_VALIDATE_INPUTS", "no", "validate_inputs", False),
        ("PRUNER_VALIDATION_VALIDATE_OUTPUTS", "off", "validate_outputs", False),
        ("PRUNER_VALIDATION_MAX_PRUNING_RATIO", "0.4", "max_pruning_ratio", 0.4),
        ("pruner_strategy_target_sparsity", "0.5", "target_sparsity", 0.5),
    ],
)
def test_a_variable_sets_its_option_alone(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, key: str, value: object
) -> None:
    section = variable.lower().split("_")[1]
    expected = create_default_config().model_dump()
    assert expected[section][key] != value
    expected[section][key] = value
    monkeypatch.setenv(variable, text)
    assert create_default_config().model_dump() == expected
    assert PruningConfig().model_dump() == expected


def test_the_weights_are_set_by_two_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNER_STRATEGY_MAGNITUDE_WEIGHT", "0.2")
    with pytest.raises(ConfigError, match=r"sum to 0.7"):
        create_default_config()
    monkeypatch.setenv("PRUNER_STRATEGY_ACTIVITY_WEIGHT", "0.8")
    assert create_default_config().strategy.activity_weight == 0.8


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("PRUNER_STRATEGY_TARGET_SPARSTY", "0.5", "Did you mean 'PRUNER_STRATEGY_TARGET_SPARSITY'"),
        ("PRUNER_LOGGING_LEVEL", "DEBUG", "no known option"),
        ("PRUNER_STRATGY_TARGET_SPARSITY", "0.5", "Did you mean 'PRUNER_STRATEGY_TARGET_SPARSITY'"),
        ("PRUNER_STRATEGY_TARGET_SPARSITY", "1.5", "from PRUNER_STRATEGY_TARGET_SPARSITY"),
        ("PRUNER_STRATEGY_TARGET_SPARSITY", "half", "from PRUNER_STRATEGY_TARGET_SPARSITY"),
        ("PRUNER_STRATEGY_LAYER_SPECIFIC_SPARSITY", "{fc1: 0.5}", "is not JSON"),
        ("PRUNER_STRATEGY_LAYER_SPECIFIC_SPARSITY", "fc1", "valid dictionary"),
        ("PRUNER_STRATEGY_LAYER_SPECIFIC_SPARSITY", '{"fc1": 5}', "layer_specific_sparsity.fc1 = 5"),
    ],
)
def test_a_wrong_variable_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, words: str
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(ConfigError, match=words):
        create_default_config()


def test_somebody_elses_variables_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNER_HOME", "/opt/pruner")
    monkeypatch.setenv("TARGET_SPARSITY", "0.9")
    monkeypatch.setenv("STRATEGY", "{}")
    assert create_default_config().strategy.target_sparsity == 0.3


# --- precedence: program > environment > file or preset > defaults


def test_precedence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"strategy": {"target_sparsity": 0.2, "default_strategy": "structured"}}))
    assert PruningConfig.from_file(path).strategy.target_sparsity == 0.2

    monkeypatch.setenv("PRUNER_STRATEGY_TARGET_SPARSITY", "0.5")
    from_file = PruningConfig.from_file(path)
    assert from_file.strategy.target_sparsity == 0.5
    assert from_file.strategy.default_strategy == "structured"
    assert create_aggressive_config().strategy.target_sparsity == 0.5

    assert from_file.update(strategy={"target_sparsity": 0.6}).strategy.target_sparsity == 0.6
    assert PruningConfig(strategy={"target_sparsity": 0.6}).strategy.target_sparsity == 0.6


def test_an_update_is_not_undone_by_a_variable_set_later(monkeypatch: pytest.MonkeyPatch) -> None:
    config = create_default_config()
    monkeypatch.setenv("PRUNER_STRATEGY_TARGET_SPARSITY", "0.5")
    assert config.update(logging={"verbose": False}).strategy.target_sparsity == 0.3


def test_a_dictionary_of_the_program_replaces_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNER_STRATEGY_LAYER_SPECIFIC_SPARSITY", '{"conv1": 0.5}')
    assert create_default_config().strategy.layer_specific_sparsity == {"conv1": 0.5}
    config = PruningConfig(strategy={"layer_specific_sparsity": {"fc1": 0.2}})
    assert config.strategy.layer_specific_sparsity == {"fc1": 0.2}


# --- sections from outside


class Budget(Section):
    """A section that a program adds."""

    seconds: float = 60.0


@pytest.fixture
def _budget() -> Iterator[None]:
    sections.register("budget")(Budget)
    yield
    sections.unregister("budget")


@pytest.mark.usefixtures("_budget")
def test_a_registered_section_is_like_one_that_is_built_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert create_default_config().budget.seconds == 60.0
    assert create_default_config().update(budget={"seconds": 5}).budget.seconds == 5
    assert (
        create_default_config().update(**{"budget.seconds": 5}).update(logging={"verbose": False}).budget.seconds == 5
    )
    with pytest.raises(ConfigError, match=r"Did you mean 'budget.seconds'"):
        create_default_config().update(budget={"secnds": 5})
    with pytest.raises(ConfigError, match=r"budget.seconds = 'x'"):
        create_default_config().update(budget={"seconds": "x"})
    create_default_config().update(budget={"seconds": 7}).save(tmp_path / "c.yaml")
    assert PruningConfig.from_file(tmp_path / "c.yaml").budget.seconds == 7
    monkeypatch.setenv("PRUNER_BUDGET_SECONDS", "9")
    assert create_default_config().budget.seconds == 9


def test_a_section_that_nobody_registered_is_an_error() -> None:
    with pytest.raises(ConfigError, match="Unknown key 'budget'"):
        PruningConfig(budget={"seconds": 5})
