"""The configuration: five sections of options, three presets, files, and `PRUNER_*` environment variables.

Where one option is given in several places, the first of these wins:

1. what the program says: `PruningConfig(...)`, `.update(...)`, `PruningEngine.update_config(...)`;
2. the environment: `PRUNER_<SECTION>_<OPTION>`, such as `PRUNER_STRATEGY_TARGET_SPARSITY=0.5` (dictionaries as
   JSON, lists as JSON or with commas);
3. a configuration file, or a preset (`create_conservative_config()`, `PruningEngine.set_aggressive_mode()`);
4. the defaults below.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from pruner.registry import Registry
from tracker.errors import ConfigError, StorageError, nearest
from tracker.files import read_json, write_json, write_text
from tracker.neuron_map import Kind

ENVIRONMENT_PREFIX = "PRUNER_"

Values = dict[str, Any]


def _no_boolean(value: Any) -> Any:
    """`true` in a file would otherwise quietly become the number 1."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    """Text is a list with commas, as one writes it in a variable or on a command line."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Ratio = Annotated[float, BeforeValidator(_no_boolean), Field(ge=0, le=1, allow_inf_nan=False)]
Patterns = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_listed)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)]


class Section(BaseModel):
    """Base of a configuration section: immutable, and unknown options are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Thresholds(Section):
    """What counts as an idle neuron, and how much a layer may lose."""

    firing_frequency_threshold: Ratio = 0.01
    """Neurons that fire on a smaller share of the data go first."""
    weight_magnitude_threshold: Annotated[float, BeforeValidator(_no_boolean), Field(ge=0, allow_inf_nan=False)] = 0.0
    """Neurons whose own weights are smaller in the mean (mean |w|) go first."""
    max_sparsity_per_layer: Ratio = 0.9
    """No layer loses a larger share of the neurons it had at first."""
    min_neurons_per_layer: Annotated[int, BeforeValidator(_no_boolean), Field(ge=1)] = 1
    """Every layer keeps at least so many neurons."""


class Strategy(Section):
    """Which neurons go, and how many."""

    default_strategy: str = "magnitude"
    """"magnitude", "structured", "gradual", or the name of a registered strategy."""
    target_sparsity: Ratio = 0.3
    """Share of all neurons to remove, relative to the model as the engine first saw it."""
    magnitude_weight: Ratio = 0.5
    """Weight of a neuron's weights in its score; the two weights sum to 1."""
    activity_weight: Ratio = 0.5
    """Weight of a neuron's activity in its score, where activity is known."""
    layer_specific_sparsity: dict[str, Ratio] = Field(default_factory=dict)
    """Layers that lose a share of their own; `target_sparsity` then applies to all other layers."""
    include: Patterns = ()
    """Only layers that match one of these patterns lose neurons; by default all exact ones. See `pruner.scope`."""
    exclude: Patterns = ()
    """Layers that match one of these patterns lose none."""
    kinds: Annotated[tuple[Kind, ...], BeforeValidator(_listed)] = ()
    """Only layers of these kinds lose neurons: "mlp", "attention", "channel", "residual", "expert", "other"."""
    round_to: Annotated[int, BeforeValidator(_no_boolean), Field(ge=1)] = 1
    """Layers that lose neurons keep a width that is a multiple of this; see `pruner.limits.step_of`."""

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> Self:
        total = self.magnitude_weight + self.activity_weight
        if abs(total - 1) > 1e-6:
            raise ConfigError(
                f"strategy.magnitude_weight = {self.magnitude_weight} and strategy.activity_weight = "
                f"{self.activity_weight} sum to {total:.6g}; they must sum to 1.",
                hint=f"Give both in one go: magnitude_weight {self.magnitude_weight} with activity_weight "
                f"{1 - self.magnitude_weight:.6g}, or activity_weight {self.activity_weight} with magnitude_weight "
                f"{1 - self.activity_weight:.6g}.",
            )
        return self


class Repair(Section):
    """What becomes of the weights that stay, where data are given; see `pruner.compensation`."""

    enabled: bool = True
    """Solve for the weights that stay, so that the model's answers stay what they were."""
    effort: Literal["low", "default", "high"] = "low"
    """"low" solves (seconds), "default" also trains block by block (minutes), "high" trains longer."""


class Logging(Section):
    """What is written where, by the logger called "pruner"."""

    log_level: LogLevel = "INFO"
    """The least severe records that are written."""
    verbose: bool = True
    """Write every step at INFO; otherwise only the outcome, and the steps at DEBUG."""
    log_to_file: bool = False
    """Append to `outputs/logs/pruner.log`."""
    log_to_console: bool = True
    """Write to standard error."""


class Validation(Section):
    """Checks before, around and after pruning."""

    dry_run_first: bool = True
    """Simulate every removal on the whole model before the real one."""
    validate_inputs: bool = True
    """Refuse a model with NaN or Inf in its weights."""
    validate_outputs: bool = True
    """Verify the pruned model, and restore it if a check fails."""
    max_pruning_ratio: Ratio = 0.8
    """The model never loses a larger share of the neurons it had at first."""


sections: Registry[type[Section]] = Registry("configuration section", "pruner.config_sections")
"""Sections added from outside: `@sections.register("name")` above a subclass of `Section` whose options have defaults.

Its options then are `config.name.option`, in files, `.update()` and the environment like those that are built in.
"""


class PruningConfig(BaseSettings):
    """All options of the pruner, immutable and checked.

    Every wrong key or value, wherever it comes from, is a `ConfigError` that names key, value and rule.

    >>> config = PruningConfig(strategy={"target_sparsity": 0.4})
    >>> config.update(**{"logging.log_level": "DEBUG"}).strategy.target_sparsity
    0.4
    """

    model_config = SettingsConfigDict(frozen=True, extra="allow")

    thresholds: Thresholds = Field(default_factory=Thresholds)
    strategy: Strategy = Field(default_factory=Strategy)
    repair: Repair = Field(default_factory=Repair)
    logging: Logging = Field(default_factory=Logging)
    validation: Validation = Field(default_factory=Validation)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _config_error(error) from error

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What the program says, over the environment. (Pydantic's own source cannot tell a misspelt variable.)"""
        given = init_settings()
        environment = {
            section: {option: value for option, value in options.items() if option not in given.get(section, {})}
            for section, options in environment_values().items()
            if isinstance(given.get(section, {}), Mapping)
        }
        return init_settings, InitSettingsSource(settings_cls, init_kwargs=environment)

    @model_validator(mode="before")
    @classmethod
    def _added_sections(cls, values: Values) -> Values:
        """Check the sections that pydantic does not know: registered ones by their class, others are errors."""
        models = _section_models()
        for name in values:
            if name not in models:
                raise ConfigError(f"Unknown key '{name}'.{_nearest_key(name)}", hint=_known_sections())
        added = {name: model for name, model in models.items() if name not in cls.model_fields}
        return values | {name: _validated(name, model, values.get(name, {})) for name, model in added.items()}

    def update(self, **changes: Any) -> Self:
        """A new configuration with `changes`; this one stays as it is.

        A change is a section of options, `strategy={"target_sparsity": 0.4}`, or one option by its dotted name,
        `**{"strategy.target_sparsity": 0.4}`. Raises `ConfigError`.
        """
        return type(self)(**_merged(self.model_dump(), _by_section(changes)))

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a `.yaml`, `.yml` or `.json` file; the environment goes over it, defaults fill the rest.

        Raises `ConfigError` for wrong content and `StorageError` for a file that cannot be read.
        """
        return cls.below_environment(_read(Path(path)))

    @classmethod
    def below_environment(cls, values: Mapping[str, Any]) -> Self:
        """A configuration of `values`, over which the environment goes. Raises `ConfigError`."""
        return cls(**_merged(dict(values), environment_values()))

    def save(self, path: str | Path) -> None:
        """Write all options as YAML or JSON, by the suffix of `path`.

        Raises `ConfigError` for another suffix and `StorageError` for a file that cannot be written.
        """
        target = Path(path)
        if _is_yaml(target):
            write_text(target, yaml.safe_dump(self.model_dump(), sort_keys=False))
        else:
            write_json(target, self.model_dump())


def create_default_config() -> PruningConfig:
    """The defaults: 30 % target sparsity; the environment goes over them."""
    return PruningConfig.below_environment({})


def create_conservative_config() -> PruningConfig:
    """Safe pruning: 10 % target sparsity, only neurons that hardly ever fire go first, every layer keeps half."""
    return PruningConfig.below_environment(
        {
            "thresholds": {
                "firing_frequency_threshold": 0.001,
                "max_sparsity_per_layer": 0.5,
                "min_neurons_per_layer": 2,
            },
            "strategy": {"target_sparsity": 0.1},
        }
    )


def create_aggressive_config() -> PruningConfig:
    """Strong compression at higher risk: 70 % target sparsity, and neurons that fire under 5 % of the time go first."""
    return PruningConfig.below_environment(
        {
            "thresholds": {"firing_frequency_threshold": 0.05, "max_sparsity_per_layer": 0.95},
            "strategy": {"target_sparsity": 0.7},
        }
    )


def environment_values() -> dict[str, Values]:
    """What the `PRUNER_*` variables say, by section and option.

    The prefix is followed by the section, all the rest is the option. Raises `ConfigError` for an option that the
    section does not have and for a misspelt section; a variable that is like no section is somebody else's.
    """
    found: dict[str, Values] = {}
    models = _section_models()
    for variable, text in os.environ.items():
        if not variable.upper().startswith(ENVIRONMENT_PREFIX):
            continue
        name = variable[len(ENVIRONMENT_PREFIX) :].lower()
        section = next((s for s in models if name.startswith(f"{s}_")), None)
        if section is None and not nearest(name.partition("_")[0], models):
            continue
        option = name.removeprefix(f"{section}_")
        if section is None or option not in models[section].model_fields:
            raise ConfigError(
                f"The environment variable {variable} = {text!r} is no known option."
                f"{nearest(variable.upper(), _variables(models))}",
                hint="Correct its name, or unset it.",
            )
        found.setdefault(section, {})[option] = _parsed(variable, text)
    return found


def _parsed(variable: str, text: str) -> Any:
    """The text itself, which pydantic turns into a number or a truth value; lists and dictionaries are JSON."""
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"The environment variable {variable} = {text!r} is not JSON.",
            hint="""Write it like {"conv1": 0.25, "fc1": 0.5} or ["conv1", "blocks.*"].""",
        ) from error


def _section_models() -> dict[str, type[BaseModel]]:
    built_in: dict[str, type[BaseModel]] = {
        "thresholds": Thresholds,
        "strategy": Strategy,
        "repair": Repair,
        "logging": Logging,
        "validation": Validation,
    }
    return built_in | dict(sections.items())


def _variables(models: Mapping[str, type[BaseModel]]) -> list[str]:
    return [f"{ENVIRONMENT_PREFIX}{s}_{option}".upper() for s, model in models.items() for option in model.model_fields]


def _validated(name: str, model: type[BaseModel], values: Any) -> BaseModel:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _config_error(error, within=(name,)) from error


def _merged(below: Values, above: Mapping[str, Any]) -> Values:
    """Both by section; an option of `above` replaces that of `below` as a whole."""
    result = dict(below)
    for section, options in above.items():
        lower = result.get(section, {})
        if isinstance(lower, Mapping) and isinstance(options, Mapping):
            options = {**lower, **options}
        result[section] = options
    return result


def _by_section(changes: Mapping[str, Any]) -> Values:
    result: Values = {}
    for key, value in changes.items():
        section, dot, option = key.partition(".")
        options = {option: value} if dot else value.model_dump() if isinstance(value, BaseModel) else value
        if section in _section_models() and not isinstance(options, Mapping):
            raise ConfigError(
                f"{section} = {value!r} must be a section of options.",
                hint=f"Write {section}={{'option': value}} or **{{'{section}.option': value}}.",
            )
        result = _merged(result, {section: options})
    return result


def _is_yaml(path: Path) -> bool:
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise ConfigError(
            f"The configuration file {path} has the suffix '{path.suffix}'.", hint="Use .yaml, .yml or .json."
        )
    return path.suffix != ".json"


def _read(path: Path) -> Values:
    if _is_yaml(path):
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise StorageError(
                f"Cannot read the configuration from {path}: {error.strerror}.", hint="Check the path."
            ) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not YAML: {error}.", hint="Mend the file.") from error
        values = {} if values is None else values
    else:
        values = read_json(path, what="a configuration", error=ConfigError)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path} does not hold sections of options.", hint=_known_sections())
    return values


def _config_error(error: ValidationError, within: tuple[str, ...] = ()) -> ConfigError:
    """Pydantic's findings in our words: key, value, rule, and the nearest key."""
    findings = []
    for entry in error.errors(include_url=False):
        own = entry.get("ctx", {}).get("error")
        if isinstance(own, ConfigError):
            return own
        place = (*within, *(str(part) for part in entry["loc"]))
        key = ".".join(place)
        if entry["type"] == "extra_forbidden":
            findings.append(f"Unknown key '{key}' (= {entry['input']!r}).{_nearest_key(key)}")
            continue
        rule = entry["msg"].replace("Input should be", "must be").removeprefix("Value error, ")
        variable = f"{ENVIRONMENT_PREFIX}{'_'.join(place[:2])}".upper()
        origin = f" (from {variable})" if os.environ.get(variable) == str(entry["input"]) else ""
        findings.append(f"{key} = {entry['input']!r}{origin}: {rule}.")
    return ConfigError(" ".join(findings), hint="Correct the configuration; nothing was changed.")


def _nearest_key(key: str) -> str:
    """The option or section meant by a key that is in the wrong place or misspelt."""
    models = _section_models()
    keys = [f"{section}.{option}" for section, model in models.items() for option in model.model_fields]
    last = key.rpartition(".")[2]
    same_option = [known for known in keys if known.endswith(f".{last}")]
    return nearest(key, [*models, *keys]) if not same_option else f" Did you mean '{same_option[0]}'?"


def _known_sections() -> str:
    return f"The sections are {', '.join(_section_models())}."
