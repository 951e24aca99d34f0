"""Which layers strategies may touch: patterns, kinds, and layers that are not exact."""

from dataclasses import replace
from typing import Any

import pytest
from tests.pruner import small_cnn
from tests.pruner.small_models import case

from pruner import strategies
from pruner.config import PruningConfig
from pruner.engine import PruningEngine
from pruner.plan import PruningPlan
from pruner.scope import Scope
from pruner.selection import StrategyInput
from tracker.discover import discover
from tracker.errors import PlanError, UnknownLayerError
from tracker.neuron_map import Frozen, NeuronMap

ENCODER = discover(*case("transformer"))
STREAM = "embed"  # the only layer of the encoder that is not exact


def chosen(neurons: NeuronMap = ENCODER, **options: Any) -> set[str]:
    return set(Scope.of(neurons, neurons, PruningConfig(strategy=options).strategy).layers)


EXACT = {group.name for group in ENCODER if group.exact}


def test_all_exact_layers_by_default() -> None:
    assert STREAM in ENCODER
    assert EXACT
    assert chosen() == EXACT


def test_a_pattern_matches_names_and_producing_modules() -> None:
    name = next(iter(EXACT))
    assert chosen(include=[name]) == {name}
    assert chosen(exclude=[name]) == EXACT - {name}
    assert chosen(include=[f"{name[:-1]}?"]) == {name}
    for module in ENCODER[STREAM].modules:
        assert chosen(include=[module]) == {STREAM}


def test_kinds_and_patterns_both_hold() -> None:
    mlp = {group.name for group in ENCODER if group.kind == "mlp"}
    assert chosen(kinds=["mlp"]) == mlp
    assert chosen(kinds=["mlp", "attention"], exclude=[*mlp]) == EXACT - mlp
    assert chosen(kinds=["mlp"], include=["*"], exclude=["*"]) == set()


def test_what_is_not_exact_must_be_meant() -> None:
    assert chosen(include=["*"]) == EXACT
    assert chosen(include=[STREAM]) == {STREAM}
    assert chosen(include=["*", STREAM]) == EXACT | {STREAM}
    assert chosen(include=["emb*"]) == {STREAM}  # no exact layer is meant by that
    assert chosen(kinds=["residual"]) == {STREAM}
    assert chosen(kinds=["residual", "mlp", "attention"]) == EXACT | {STREAM}
    assert chosen(kinds=["residual"], exclude=[STREAM]) == set()
    only_other = replace(ENCODER, groups=tuple(replace(g, kind="other") for g in ENCODER))
    assert chosen(only_other, kinds=["other"]) == EXACT


def test_a_second_layer_of_one_module_can_be_named() -> None:
    first, second, *_ = small_cnn.neuron_map(small_cnn.model())
    neurons = NeuronMap((first, replace(second, name="conv1[1]", producers=first.producers, exact=False)))
    assert chosen(neurons, include=["conv1[1]"]) == {"conv1[1]"}
    assert chosen(neurons, include=["conv1"]) == {"conv1"}
    assert chosen(neurons, include=["conv1"], exclude=["conv1[1]"]) == {"conv1"}


@pytest.mark.parametrize(
    ("option", "pattern", "words"),
    [
        ("include", "conv9*", r"strategy\.include = 'conv9\*' matches no layer\. The nearest is 'conv\d'"),
        ("exclude", "fc11", r"strategy\.exclude = 'fc11' matches no layer\. The nearest is 'fc1'"),
        ("exclude", "?", r"matches no layer\. The nearest is '\w+'"),
        ("include", "head", r"'head' matches 'head' only, which has no neurons that can be removed: model output"),
        ("include", "blocks", r"matches no layer.*Write 'blocks\.\*' for all layers inside 'blocks'"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(option: str, pattern: str, words: str) -> None:
    neurons = small_cnn.neuron_map(small_cnn.model())
    inner = replace(neurons.groups[2], name="blocks.0")
    neurons = replace(neurons, groups=(*neurons, inner), frozen=(Frozen("head", 10, "model output", ()),))
    with pytest.raises(UnknownLayerError, match=words):
        chosen(neurons, **{option: [pattern]})


def test_what_is_frozen_may_be_excluded() -> None:
    neurons = small_cnn.neuron_map(small_cnn.model())
    frozen = replace(neurons, frozen=(Frozen("head", 10, "model output", ()),))
    assert chosen(frozen, exclude=["head"]) == {"conv1", "conv2", "fc1"}


def test_a_layer_that_shrank_to_one_neuron_still_is_known() -> None:
    whole = small_cnn.neuron_map(small_cnn.model())
    shrunk = replace(whole, groups=whole.groups[1:])
    options = PruningConfig(strategy={"include": ["conv1"]}).strategy
    assert Scope.of(shrunk, whole, options).layers == {"conv1"}


# --- in the engine


def cnn() -> small_cnn.SmallCNN:
    model = small_cnn.model()
    discover(model, small_cnn.images())
    return model


def engine(**strategy: Any) -> PruningEngine:
    return PruningEngine(config=PruningConfig(strategy=strategy, logging={"log_to_console": False}))


def test_an_empty_choice_is_an_error() -> None:
    with pytest.raises(PlanError, match=r"leave no layer of SmallCNN to prune\. .*kinds channel, mlp"):
        engine(kinds=["expert"]).prune_by_magnitude(cnn(), 0.1)


def test_a_share_for_an_excluded_layer_is_an_error() -> None:
    contradiction = engine(exclude=["fc*"], layer_specific_sparsity={"fc1": 0.5})
    with pytest.raises(PlanError, match=r"'fc1' is to lose a share of 0\.5 .* and none by strategy\.exclude"):
        contradiction.prune_by_magnitude(cnn(), 0.1)
    assert engine(exclude=["fc*"], layer_specific_sparsity={"fc1": 0.0}).prune_by_magnitude(cnn(), 0.1)["layers"]


def test_a_layer_that_the_call_names_goes_all_the_same() -> None:
    results = engine(exclude=["fc1"]).prune_structured(cnn(), {"fc1": 0.5})
    assert results["layers"]["fc1"]["after"] == 64


def test_a_schedule_is_relative_to_the_layers_chosen() -> None:
    gradual, model = engine(include=["fc1"]), cnn()
    made = gradual.create_gradual_schedule(0.0, 0.5, 2)
    results = gradual.prune_for_epoch(model, made["schedule_id"], 1)
    assert (model.fc1.out_features, results["sparsity"]) == (64, 0.5)


def test_strategies_of_others_see_only_the_layers_chosen_and_cannot_touch_the_rest() -> None:
    seen: list[str] = []

    def polite(given: StrategyInput) -> PruningPlan:
        seen.extend(group.name for group in given.neurons)
        return PruningPlan({group.name: [0, 1, 2] for group in given.neurons})

    def rude(given: StrategyInput) -> PruningPlan:
        return PruningPlan({"conv1": [0]})

    try:
        strategies.register("polite")(polite)
        strategies.register("rude")(rude)
        results = engine(exclude=["conv1"], round_to=2).prune_by_strategy(cnn(), "polite")
        assert seen == ["conv2", "fc1"]
        assert {name: len(layer["removed"]) for name, layer in results["layers"].items()} == {"conv2": 2, "fc1": 2}
        with pytest.raises(PlanError, match="layer 'conv1', which it may not touch"):
            engine(exclude=["conv1"]).prune_by_strategy(cnn(), "rude")
    finally:
        strategies.unregister("polite")
        strategies.unregister("rude")


def test_recommended_neurons_of_other_layers_stay_and_a_warning_counts_them() -> None:
    advice = {"prune": [{"layer": layer, "neuron": 3, "reason": "dead"} for layer in ("conv1", "conv2", "fc1")]}
    results = engine(exclude=["conv*"]).prune_by_recommendations(cnn(), advice)
    assert {name: layer["removed"] for name, layer in results["layers"].items()} == {"fc1": [3]}
    assert results["warnings"] == [
        "2 candidates stay: strategy.include, strategy.exclude or strategy.kinds leave them out."
    ]


def test_a_chosen_layer_of_which_the_recommendations_know_nothing_is_named() -> None:
    model, x = case("transformer")
    discover(model, x)
    advice = {"prune": [{"layer": STREAM, "neuron": 2, "reason": "constant"}]}
    results = engine(include=[STREAM]).prune_by_recommendations(model, advice)
    assert {name: layer["removed"] for name, layer in results["layers"].items()} == {STREAM: [2]}
    said = "Layer 'embed' is chosen and loses only what is recommended: the recommendations do not say how active"
    assert any(warning.startswith(said) for warning in results["warnings"])
    assert results["verification"]["measured"]["layers"].keys() == {STREAM}


def test_recommendations_without_a_model_keep_to_the_layers_chosen() -> None:
    from pruner.recommended import planned_without_model
    from tracker.recommendations import load_recommendations

    advice = load_recommendations(
        {
            "layers": {"conv1": {"size": 10, "kind": "channel"}, "fc1": {"size": 128, "kind": "mlp"}},
            "prune": [{"layer": layer, "neuron": n, "reason": "dead"} for layer in ("conv1", "fc1") for n in (3, 4)],
        }
    )

    def planned(**strategy: Any) -> dict[str, list[int]]:
        found = planned_without_model(advice, PruningConfig(strategy=strategy))["plan"]["remove"]
        return {name: gone for name, gone in found.items() if gone}

    assert planned() == {"conv1": [3, 4], "fc1": [3, 4]}
    assert planned(exclude=["conv*", "a.module"]) == {"fc1": [3, 4]}  # modules are not in the file
    assert planned(kinds=["channel"]) == {"conv1": [3, 4]}
    assert planned(round_to=2) == {"conv1": [3, 4], "fc1": [3, 4]}
    assert planned(round_to=8) == {"conv1": [3, 4]}


def test_rounding_that_leaves_nothing_to_go_is_said() -> None:
    results = engine(round_to=64, include=["conv2"]).prune_by_magnitude(cnn(), 0.3)
    assert results["neurons_pruned"] == 0
    assert results["warnings"] == ["Nothing goes: with strategy.round_to = 64, 19 neurons are too few."]
