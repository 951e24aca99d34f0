"""The smallest model that is good enough, against a sweep over the whole grid."""

import doctest

import pytest
import torch
from torch import nn

from neuronscope import reference
from neuronscope.data_names import digits
from pruner import optimization, optimize
from pruner.optimization import Point, _Tries, pareto
from tracker.errors import ConfigError, DataError, PlanError


def cnn() -> nn.Module:
    return reference.load("digits-cnn").model


def data() -> list[torch.Tensor]:
    return [batch[0] for batch in reference.batches("digits-cnn", "train", batch_size=32, count=2)]


X, Y = digits()[1].dataset.tensors


def accuracy(model: nn.Module) -> float:
    with torch.no_grad():
        return float((model(X).argmax(1) == Y).float().mean())


def likelihood(model: nn.Module) -> float:
    with torch.no_grad():
        return -float(nn.functional.cross_entropy(model(X), Y))


def test_it_is_as_small_as_the_best_of_a_sweep_at_a_fraction_of_its_evaluations(tmp_path):
    model = cnn()
    least = likelihood(model) - 0.03
    options = {"tolerance": 0.03, "rules": ("uniform",), "resolution": 0.1, "folder": tmp_path}
    search = optimize(model, data(), likelihood, **options)["search"]
    assert likelihood(model) == pytest.approx(search["chosen"]["metric"], abs=1e-6)
    assert likelihood(model) >= least
    how = {"kinds": (), "effort": "low", "config": optimization.create_default_config(), "seed": 0}
    sweep = _Tries(cnn(), data(), likelihood, how, None)
    points = [point for share in range(4, 9) if (point := sweep.at("uniform", share * 0.1)) is not None]
    good = [point.parameters for point in points if point.metric >= least]
    assert 0 < len(good) < len(points)  # else any answer would do
    assert search["chosen"]["parameters"] == min(good)
    assert search["evaluations"] <= 5
    assert (tmp_path / "front.png").stat().st_size > 5000

    again = optimize(cnn(), data(), likelihood, **options)
    assert again["search"]["evaluations"] == 0
    assert again["search"]["chosen"] == search["chosen"]


def test_a_size_gets_the_rule_that_is_best_there():
    model = cnn()
    before = sum(p.numel() for p in model.parameters())
    results = optimize(model, data(), accuracy, target={"params": 0.6}, dry_run=True)
    points = results["search"]["points"]
    assert {point["rule"] for point in points} == {"measured", "uniform"}
    assert results["search"]["chosen"]["metric"] == max(point["metric"] for point in points)
    assert sum(p.numel() for p in model.parameters()) == before


def test_where_nothing_can_go_the_model_stays():
    model = cnn()
    scores = iter([1.0] + [0.0] * 20)
    results = optimize(model, data(), lambda _: next(scores), tolerance=0.1, rules=("uniform",), resolution=0.25)
    assert results["neurons_pruned"] == 0
    assert results["search"]["chosen"] is None


def test_tries_of_another_search_are_refused(tmp_path):
    options = {"tolerance": 2.0, "rules": ("uniform",), "resolution": 0.5, "folder": tmp_path, "dry_run": True}
    optimize(cnn(), data(), accuracy, **options)
    with pytest.raises(DataError, match="tries of another model, or of another search"):
        optimize(cnn(), data(), accuracy, seed=1, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, PlanError, "either a tolerance or a target"),
        ({"tolerance": -1.0}, PlanError, "tolerance = -1.0"),
        ({"tolerance": 0.1, "resolution": 0}, PlanError, "resolution = 0"),
        ({"tolerance": 0.1, "rules": ("nice",)}, ConfigError, "not known"),
        ({"tolerance": 0.1, "effort": "none"}, ConfigError, "effort"),
        ({"target": {"size": 0.5}}, PlanError, "not understood"),
    ],
)
def test_bad_input_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        optimize(cnn(), data(), accuracy, **options)


@pytest.mark.parametrize("value", [float("nan"), "good"])
def test_a_metric_that_is_no_number_is_refused(value):
    with pytest.raises(DataError, match="The metric gave"):
        optimize(cnn(), data(), lambda _: value, tolerance=0.1)


def test_the_front_holds_what_nothing_beats():
    assert doctest.testmod(optimization).failed == 0
    a, b, c = Point("a", 0.1, 0.5, 0.7), Point("a", 0.2, 0.5, 0.6), Point("b", 0.3, 0.4, 0.7)
    assert pareto([a, b, c]) == [c]
