"""The strategies as pure functions, and the registry by which they are found."""

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, EntryPoints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pruner import small_cnn

from pruner import registry, strategies
from pruner.config import PruningConfig, create_aggressive_config
from pruner.engine import PruningEngine
from pruner.limits import Limits
from pruner.plan import PruningPlan
from pruner.selection import StrategyInput
from tracker.activity import observe
from tracker.discover import discover
from tracker.errors import ConfigError
from tracker.neuron_map import NeuronGroup, NeuronMap

BUILT_IN = ["gradual", "magnitude", "structured"]


def group(name: str, size: int, exact: bool = True) -> NeuronGroup:
    return NeuronGroup(name, size, "other", exact, (), (), {})


def situation(
    scores: Mapping[str, list[float]],
    target: float | None,
    layer_targets: Mapping[str, float] | None = None,
    inexact: tuple[str, ...] = (),
    original: Mapping[str, int] | None = None,
    round_to: int = 1,
) -> StrategyInput:
    neurons = NeuronMap(tuple(group(name, len(values), name not in inexact) for name, values in scores.items()))
    first = NeuronMap(tuple(group(name, size) for name, size in (original or {}).items()))
    config = PruningConfig(
        thresholds={"max_sparsity_per_layer": 1.0},
        strategy={"round_to": round_to},
        validation={"max_pruning_ratio": 1.0},
    )
    open_layers = set(scores) - set(inexact) | set(layer_targets or {})
    return StrategyInput(
        neurons=neurons,
        limits=Limits.of(neurons, first, config, open_layers),
        config=config,
        scores={name: np.asarray(values, dtype=np.float64) for name, values in scores.items()},
        target=target,
        layer_targets=layer_targets or {},
    )


def removed(name: str, given: StrategyInput) -> dict[str, tuple[int, ...]]:
    return {layer: gone for layer, gone in strategies.find(name)(given).remove.items() if gone}


WEAK_A = {"a": [0.1, 0.2, 0.3, 0.4], "b": [1.0, 2.0, 3.0, 4.0]}


def test_magnitude_lets_layers_compete() -> None:
    assert removed("magnitude", situation(WEAK_A, 0.375)) == {"a": (0, 1, 2)}


def test_structured_takes_the_same_share_of_every_layer() -> None:
    assert removed("structured", situation(WEAK_A, 0.5)) == {"a": (0, 1), "b": (0, 1)}


def test_gradual_compares_a_layer_afresh_once_its_idle_neurons_are_gone() -> None:
    scores = {"a": [0.01] * 6 + [1.0, 3.0], "b": [0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.25]}
    assert removed("magnitude", situation(scores, 0.5)) == {"a": (0, 1, 2, 3, 4, 5), "b": (0, 1)}
    assert removed("gradual", situation(scores, 0.5)) == {"a": (0, 1, 2, 3, 4, 5, 6), "b": (0,)}


@pytest.mark.parametrize("name", BUILT_IN)
def test_layers_with_a_share_of_their_own_keep_to_it(name: str) -> None:
    given = situation(WEAK_A, 0.5, {"b": 0.25})
    assert removed(name, given) == {"a": (0, 1), "b": (0,)}
    assert removed(name, situation(WEAK_A, 0.5, {"a": 0.0})) == {"b": (0, 1)}


@pytest.mark.parametrize("name", BUILT_IN)
def test_without_a_target_only_the_layers_named_lose_neurons(name: str) -> None:
    assert removed(name, situation(WEAK_A, None, {"b": 0.5})) == {"b": (0, 1)}


@pytest.mark.parametrize("name", BUILT_IN)
def test_inexact_layers_are_left_alone_unless_named(name: str) -> None:
    assert set(removed(name, situation(WEAK_A, 0.5, inexact=("a",)))) == {"b"}
    assert set(removed(name, situation(WEAK_A, 0.5, {"a": 0.5}, inexact=("a",)))) == {"a", "b"}


@pytest.mark.parametrize("name", BUILT_IN)
def test_targets_are_relative_to_the_first_size(name: str) -> None:
    assert removed(name, situation(WEAK_A, 0.5, original={"a": 8, "b": 8})) == {}
    again = removed(name, situation(WEAK_A, 0.75, original={"a": 8, "b": 8}))
    assert sum(map(len, again.values())) == 4


@pytest.mark.parametrize("name", BUILT_IN)
def test_widths_are_rounded(name: str) -> None:
    scores = {"a": [0.1 * n for n in range(30)], "b": [1.0 + n for n in range(10)]}
    gone = removed(name, situation(scores, 0.5, {"b": 0.5}, round_to=8))
    assert {layer: len(neurons) for layer, neurons in gone.items()} == {"a": 14, "b": 2}
    assert removed(name, situation(scores, 0.1, {"b": 0.1}, round_to=8)) == {}


@pytest.mark.parametrize("name", BUILT_IN)
@settings(deadline=None, max_examples=40)
@given(
    scores=st.dictionaries(st.sampled_from("abc"), st.lists(st.floats(0, 10), min_size=2, max_size=9), min_size=1),
    target=st.floats(0, 1),
)
def test_never_more_than_the_target_nor_a_whole_layer(name: str, scores: dict[str, list[float]], target: float) -> None:
    situated = situation(scores, target)
    remove = strategies.find(name)(situated).remove
    assert sum(map(len, remove.values())) <= target * sum(map(len, scores.values())) + 1e-6
    assert all(len(gone) < len(scores[layer]) for layer, gone in remove.items())
    situated.limits.check(remove)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_strategy_is_a_pure_function(name: str) -> None:
    given = situation(WEAK_A, 0.5)
    before = {layer: scores.copy() for layer, scores in given.scores.items()}
    assert strategies.find(name)(given) == strategies.find(name)(given)
    assert all(np.array_equal(given.scores[layer], before[layer]) for layer in before)


# --- the registry


@pytest.fixture
def _first_neurons() -> Iterator[None]:
    @strategies.register("first-neurons")
    def first_neurons(given: StrategyInput) -> PruningPlan:
        return PruningPlan({group.name: [0] for group in given.neurons})

    yield
    strategies.unregister("first-neurons")


@pytest.mark.usefixtures("_first_neurons")
def test_a_registered_strategy_is_found_by_name() -> None:
    assert removed("first-neurons", situation(WEAK_A, 0.5)) == {"a": (0,), "b": (0,)}
    assert {*BUILT_IN, "first-neurons", "wanda"} <= set(strategies.names())


@pytest.mark.usefixtures("_first_neurons")
def test_a_name_is_taken_once() -> None:
    with pytest.raises(ConfigError, match="already is a strategy called 'first-neurons'"):
        strategies.register("first-neurons")(strategies.structured)


def test_an_unknown_strategy_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"strategy.default_strategy = 'magnitud'.*Did you mean 'magnitude'"):
        strategies.find("magnitud")


def _offer(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    point = EntryPoint(name="offered", value=value, group="pruner.strategies")
    monkeypatch.setattr(registry, "entry_points", lambda **wanted: EntryPoints([point]).select(**wanted))


def test_an_installed_package_can_offer_a_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    _offer(monkeypatch, "pruner.strategies:structured")
    try:
        assert strategies.find("offered") is strategies.structured
        assert "offered" in strategies.names()
    finally:
        strategies.unregister("offered")


def test_a_broken_offer_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _offer(monkeypatch, "pruner.no_such_module:thing")
    with pytest.raises(ConfigError, match=r"'offered' \(pruner.no_such_module:thing\) cannot be loaded"):
        strategies.find("offered")


def test_the_hand_written_map_has_the_guides_numbers() -> None:
    neurons = small_cnn.neuron_map(small_cnn.model())
    assert (neurons.neurons, len(neurons)) == (202, 3)


# --- the classes


def cnn() -> small_cnn.SmallCNN:
    model = small_cnn.model()
    discover(model, small_cnn.images())
    return model


def test_the_magnitude_pruner_is_the_engines_path() -> None:
    pruner, model = strategies.MagnitudePruner(), cnn()
    plan = pruner.plan(model, 0.3)
    expected = PruningEngine().prune_by_magnitude(cnn(), 0.3, dry_run=True)
    assert {name: list(gone) for name, gone in plan.remove.items()} == {
        name: layer["removed"] for name, layer in expected["layers"].items()
    }
    assert pruner.prune(model, 0.3).neurons_after == 142
    assert pruner.prune(model, 0.3).neurons_after == 142
    assert strategies.MagnitudePruner().plan(cnn()) == plan
    assert strategies.MagnitudePruner(create_aggressive_config()).plan(cnn()).neurons == 141


def test_the_structured_pruner_takes_its_share_of_each_layer_once() -> None:
    pruner, model = strategies.StructuredPruner(), cnn()
    for _ in range(2):
        pruner.prune(model, {"conv1": 0.25, "fc1": 0.5})
    assert (model.conv1.out_channels, model.conv2.out_channels, model.fc1.out_features) == (8, 64, 64)


def test_the_gradual_pruner_ends_at_its_target() -> None:
    pruner, model = strategies.GradualPruner(0.0, 0.5, 4), cnn()
    left = [pruner.prune(model, epoch).neurons_after for epoch in (0, 1, 2, 2, 3)]
    assert left[0] == 202
    assert left[2] == left[3]
    assert left[-1] == 101


def test_the_classes_keep_to_the_layers_chosen_and_round_widths() -> None:
    config = create_aggressive_config().update(strategy={"exclude": ["conv*"], "round_to": 32})
    pruner, model = strategies.GradualPruner(0.0, 0.6, 4, config=config), cnn()
    widths = []
    for epoch in range(4):
        pruner.prune(model, epoch)
        widths.append(model.fc1.out_features)
    assert (widths[0], widths[-1]) == (128, 64)
    assert all(width % 32 == 0 for width in widths)
    assert (model.conv1.out_channels, model.conv2.out_channels) == (10, 64)
    assert {*strategies.MagnitudePruner(config).plan(cnn(), 0.5).remove} == {"fc1"}
    named = strategies.StructuredPruner(config).plan(cnn(), {"conv2": 0.6}).remove
    assert {name: len(gone) for name, gone in named.items()} == {"conv2": 32}  # named, although excluded


def test_the_classes_take_a_trackers_statistics() -> None:
    model = cnn()
    stats = observe(model, [small_cnn.images(32)])
    by_magnitude, by_layer = strategies.MagnitudePruner(), strategies.StructuredPruner()
    gradually = strategies.GradualPruner(0.0, 0.3, 1)
    assert by_magnitude.plan(model, 0.3, activity=stats) != by_magnitude.plan(model, 0.3)
    assert by_layer.plan(model, {"fc1": 0.3}, activity=stats) != by_layer.plan(model, {"fc1": 0.3})
    assert gradually.plan(model, 0, activity=stats) != gradually.plan(model, 0)
