"""The metrics against numbers computed by hand."""

import json
from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from tests.pruner import small_cnn
from tests.pruner.small_cnn import SmallCNN
from torch import nn

from pruner import metrics
from pruner.apply import prune_
from pruner.equivalence import batch_of
from pruner.metrics import PruningMetrics, compute_metrics
from pruner.plan import PruningPlan
from tracker.batches import Batch
from tracker.discover import discover, example_call
from tracker.errors import DiscoveryError
from tracker.example_inputs import Call


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_SECONDS", 0.0)


def pair() -> tuple[SmallCNN, SmallCNN]:
    original = small_cnn.model()
    pruned = deepcopy(original)
    discover(pruned, small_cnn.images())
    prune_(pruned, PruningPlan({"conv1": range(5), "fc1": range(64)}))
    return pruned, original


def test_every_number_is_what_it_says() -> None:
    pruned, original = pair()
    result = compute_metrics(pruned, original)
    before, after = (sum(p.numel() for p in model.parameters()) for model in (original, pruned))
    size = result["model_size"]
    assert (size["original_parameters"], size["pruned_parameters"]) == (before, after)
    assert size["parameter_reduction"] == pytest.approx(1 - after / before)
    assert size["original_bytes"] == 4 * (before + 2 * 10) + 8  # the norm's two statistics, and its counter
    assert size["pruned_bytes"] == 4 * (after + 2 * 5) + 8
    assert result["sparsity"]["original_neurons"] == 202
    assert result["sparsity"]["pruned_neurons"] == 202 - 69
    assert result["sparsity"]["neurons_removed"] == pytest.approx(69 / 202)
    assert result["compression_ratio"]["parameters"] == pytest.approx(before / after)
    assert result["memory_savings"]["bytes"] == size["original_bytes"] - size["pruned_bytes"]


def test_flops_are_two_per_multiplication_of_the_example_batch() -> None:
    pruned, original = pair()
    result = compute_metrics(pruned, original)["flops"]
    pixels, batch = 64, 4
    products = pixels * 10 * 1 * 9 + pixels * 64 * 10 * 9 + 256 * 128 + 128 * 10
    fewer = pixels * 5 * 1 * 9 + pixels * 64 * 5 * 9 + 256 * 64 + 64 * 10
    assert (result["original"], result["pruned"]) == (2 * batch * products, 2 * batch * fewer)
    assert result["reduction"] == pytest.approx(1 - fewer / products)


def test_speedup_is_measured_and_estimated() -> None:
    pruned, original = pair()
    result = compute_metrics(pruned, original)
    latency = result["latency_ms"]
    assert latency["original"] > 0
    assert latency["pruned"] > 0
    assert result["speedup"]["measured"] == pytest.approx(latency["original"] / latency["pruned"])
    assert result["speedup"]["estimated"] == pytest.approx(result["flops"]["original"] / result["flops"]["pruned"])


def test_latency_is_the_median_of_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that only the models move, the answer is exact."""
    now = 0.0

    class Slow(nn.Module):
        def __init__(self, seconds: list[float]) -> None:
            super().__init__()
            self.seconds = iter(seconds)

        def forward(self) -> None:
            nonlocal now
            now += next(self.seconds, 1.0)

    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now)
    warm_up = [100.0] * metrics._WARM_UP
    models = [Slow([*warm_up, 5.0, 1.0, 2.0, 3.0, 4.0]), Slow([*warm_up, 7.0, 7.0, 7.0, 7.0, 99.0])]
    assert metrics.latencies_ms(models, [Batch(), Batch()]) == [3000.0, 7000.0]


def test_zero_weights_are_a_share() -> None:
    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.fill_(1.0)
    assert metrics.zero_weights(model) == pytest.approx(9 / 12)


def test_tied_weights_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert metrics.count_parameters(model) == 16 + 8
    assert metrics.count_bytes(model) == 4 * 24


def test_a_layer_of_one_neuron_still_counts() -> None:
    original = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    pruned = deepcopy(original)
    discover(pruned, torch.zeros(1, 4))
    prune_(pruned, PruningPlan({"0": [0, 1]}))
    assert compute_metrics(pruned, original)["sparsity"]["pruned_neurons"] == 6


def test_inputs_are_found_on_either_model_or_guessed() -> None:
    one, other = small_cnn.model(), small_cnn.model()
    discover(other, small_cnn.images(3))
    batch = 3
    assert compute_metrics(one, other)["flops"]["original"] % (2 * batch) == 0
    assert metrics.example_of(one, other).args[0].shape == (3, 1, 8, 8)
    assert metrics.example_of(other, one).args[0].shape == (3, 1, 8, 8)
    assert isinstance(metrics.example_of(small_cnn.model(), small_cnn.model()), Call)


def test_without_inputs_the_error_says_how_to_give_them() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x * y * self.weight

    with pytest.raises(DiscoveryError, match="example_inputs"):
        compute_metrics(Odd(), Odd())


def test_models_are_left_as_they_were() -> None:
    pruned, original = pair()
    original.train()
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    compute_metrics(pruned, original)
    assert original.training
    assert not pruned.training
    assert all(torch.equal(before[name], tensor) for name, tensor in original.state_dict().items())


def test_the_result_is_json_and_the_class_returns_the_same_keys() -> None:
    pruned, original = pair()
    result = PruningMetrics().compute(pruned, original)
    assert json.loads(json.dumps(result)) == result
    assert result.keys() == compute_metrics(pruned, original).keys()


@pytest.fixture
def _agreement() -> Iterator[None]:
    @metrics.register("agreement")
    def agreement(pruned: nn.Module, original: nn.Module, batch: Batch) -> float:
        same = pruned(*batch.args).argmax(-1) == original(*batch.args).argmax(-1)
        return float(same.float().mean())

    yield
    metrics.unregister("agreement")


@pytest.mark.usefixtures("_agreement")
def test_a_registered_metric_comes_with_the_others() -> None:
    original = small_cnn.model()
    assert compute_metrics(deepcopy(original), original)["custom"] == {"agreement": 1.0}


def test_without_registered_metrics_there_are_none() -> None:
    assert compute_metrics(small_cnn.model(), small_cnn.model())["custom"] == {}


def test_flops_of_one_model_alone() -> None:
    model = nn.Linear(8, 4)
    discover(model, torch.zeros(3, 8))
    call = example_call(model)
    assert call is not None
    assert metrics.count_flops(model, batch_of(call, model)) == 2 * 3 * 8 * 4
