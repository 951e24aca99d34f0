"""The smallest model that is good enough, against a sweep over the whole grid."""

import pytest
import torch
from torch import nn

from neuronscope import reference
from neuronscope.data_names import digits
from pruner import compress, create_default_config, optimize
from pruner.tries import Point, Tries, pareto
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


@pytest.mark.slow
def test_it_is_as_small_as_the_best_of_a_sweep_at_a_fraction_of_its_evaluations(tmp_path):
    model = cnn()
    least = likelihood(model) - 0.03
    options = {"tolerance": 0.03, "rules": ("uniform",), "resolution": 0.1, "folder": tmp_path}
    search = optimize(model, data(), likelihood, **options)["search"]
    assert likelihood(model) == pytest.approx(search["chosen"]["metric"], abs=1e-6)
    assert likelihood(model) >= least
    how = {"kinds": (), "effort": "low", "config": create_default_config(), "seed": 0}
    sweep = Tries(cnn(), data(), likelihood, how, None)
    grid = [{"target": {"params": round(1 - part * 0.1, 9)}} for part in range(5, 10)]
    points = [point for asked in grid if (point := sweep.at("uniform", asked)) is not None]
    good = [point.parameters for point in points if point.metric >= least]
    assert 0 < len(good) < len(points)  # else any answer would do
    assert search["chosen"]["parameters"] == min(good)
    assert search["evaluations"] <= 5
    assert (tmp_path / "front.png").stat().st_size > 5000

    again = optimize(cnn(), data(), likelihood, **options)
    assert again["search"]["evaluations"] == 0
    assert again["search"]["chosen"] == search["chosen"]


class TwoKinds(nn.Module):
    """A classifier of vectors with an MLP and attention; what attention adds is next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 64), nn.Linear(64, 8)
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.down(torch.relu(self.up(x)))
        return self.head((x + self.attention(x, x, x)[0]).mean(1))


def two_kinds() -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(0)
    model = TwoKinds().eval()
    return model, list(torch.randn(4, 16, 6, 8))


def test_a_ratio_for_each_kind():
    model, inputs = two_kinds()
    results = compress(model, inputs, ratio={"mlp": 0.25, "attention": 0.5}, effort="low")
    assert (model.up.out_features, model.attention.num_heads) == (48, 2)
    assert results["neurons_pruned"] == 18
    model, inputs = two_kinds()
    compress(model, inputs, ratio={"mlp": 0.25}, effort="low")
    assert (model.up.out_features, model.attention.num_heads) == (48, 4)
    for ratio, kinds, why in [
        ({"mlp": 2.0}, (), r"ratio\['mlp'\] = 2.0"),
        ({"mlp": 0.0}, (), "removes nothing"),
        ({"mlp": 0.5}, ("mlp",), "kinds, or a ratio"),
        ({"mlp": 0.5, "channel": 0.5}, (), "no neurons of kind 'channel'.*It has mlp"),
        ({}, (), "removes nothing"),
    ]:
        with pytest.raises(PlanError, match=why):
            compress(two_kinds()[0], inputs, ratio=ratio, kinds=kinds)


def test_a_search_between_the_kinds_is_never_worse_and_goes_on_where_it_was(tmp_path):
    pytest.importorskip("optuna")
    model, inputs = two_kinds()
    x = torch.cat(inputs)
    with torch.no_grad():
        wanted = model(x)

    def metric(model: nn.Module) -> float:
        with torch.no_grad():
            return -float((model(x) - wanted).square().mean())

    options = {"tolerance": 0.02, "rules": ("uniform",), "resolution": 0.1, "dry_run": True, "folder": tmp_path}
    before = optimize(model, inputs, metric, **options)["search"]
    after = optimize(model, inputs, metric, trials=6, **options)["search"]
    assert after["chosen"]["parameters"] <= before["chosen"]["parameters"]
    assert after["chosen"]["metric"] >= after["dense"] - 0.02
    new = [point for point in after["points"] if "ratio" in point["asked"]]
    assert 0 < len(new) <= 6
    assert after["evaluations"] == len(new)
    again = optimize(model, inputs, metric, trials=6, **options)["search"]
    assert again["evaluations"] == 0
    assert again["chosen"] == after["chosen"]
    results = optimize(model, inputs, metric, trials=6, **{**options, "dry_run": False})
    assert metric(model) == pytest.approx(results["search"]["chosen"]["metric"], abs=1e-6)


@pytest.mark.slow
def test_a_size_gets_the_rule_that_is_best_there():
    model = cnn()
    before = sum(p.numel() for p in model.parameters())
    results = optimize(model, data(), accuracy, target={"params": 0.6}, dry_run=True)
    points = results["search"]["points"]
    assert {point["rule"] for point in points} == {"measured", "uniform"}
    assert results["search"]["chosen"]["metric"] == max(point["metric"] for point in points)
    assert sum(p.numel() for p in model.parameters()) == before


def test_where_nothing_can_go_the_model_stays():
    model, inputs = two_kinds()
    scores = iter([1.0] + [0.0] * 20)
    results = optimize(model, inputs, lambda _: next(scores), tolerance=0.1, rules=("uniform",), resolution=0.25)
    assert results["neurons_pruned"] == 0
    assert results["search"]["chosen"] is None


def test_tries_of_another_search_are_refused(tmp_path):
    options = {"tolerance": 2.0, "rules": ("uniform",), "resolution": 0.5, "folder": tmp_path, "dry_run": True}
    optimize(*two_kinds(), lambda _: 1.0, **options)
    with pytest.raises(DataError, match="tries of another model, or of another search"):
        optimize(*two_kinds(), lambda _: 1.0, seed=1, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, PlanError, "either a tolerance or a target"),
        ({"tolerance": -1.0}, PlanError, "tolerance = -1.0"),
        ({"tolerance": 0.1, "resolution": 0}, PlanError, "resolution = 0"),
        ({"tolerance": 0.1, "rules": ("nice",)}, ConfigError, "not known"),
        ({"tolerance": 0.1, "effort": "none"}, ConfigError, "effort"),
        ({"tolerance": 0.1, "trials": -1}, PlanError, "trials = -1"),
        ({"target": {"params": 0.5}, "trials": 2}, PlanError, "goes with a target"),
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
    a, b, c = (
        Point(rule, {}, 0.1, {}, *at) for rule, at in zip("aab", [(0.5, 0.7), (0.5, 0.6), (0.4, 0.7)], strict=True)
    )
    assert pareto([a, b, c]) == [c]
    assert pareto([a, Point("a", {}, 0.1, {}, 0.9, 0.95), b]) == [a, Point("a", {}, 0.1, {}, 0.9, 0.95)]
