"""Every criterion against arithmetic on a tiny model, and what all of them have in common."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.pruner import small_cnn
from torch import Tensor, nn
from torch.nn import functional as F

from pruner import criteria
from pruner.config import create_default_config
from pruner.criteria import Evidence
from pruner.criteria_strategies import standardised
from pruner.engine import PruningEngine
from tracker.batches import evaluating, iter_batches
from tracker.discover import discover
from tracker.errors import DataError

ALL = ["both", "consumer", "flap", "greedy", "obs", "producer", "random", "taylor", "wanda"]
WEIGHTS_ONLY = {"both", "consumer", "producer", "random"}


class Tiny(nn.Module):
    """Five neurons between two layers; the second has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(torch.tanh(self.up(x)))
        return out


def tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny()


def data(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 4, generator=random), torch.randint(0, 3, (16,), generator=random)) for _ in range(count)]


def scores(name: str, model: nn.Module, batches: list[object], seed: int = 0) -> dict[str, Tensor]:
    neurons = discover(model, data_loader=batches)
    with evaluating(model):
        return criteria.find(name)(Evidence(model, neurons, list(iter_batches(batches, model)), seed))


def seen(model: Tiny, held_out: bool = False) -> Tensor:
    """What the second layer reads of the samples that are not held out."""
    x = torch.cat([x for x, _ in data()])
    rows = torch.arange(len(x)) % 8 != 7
    return torch.tanh(model.up(x[rows if not held_out else ~rows])).detach().double()


def test_they_are_all_there() -> None:
    assert criteria.names() == ALL


def test_producer_consumer_and_both() -> None:
    model = tiny()
    made, read = model.up.weight.detach().double().norm(dim=1), model.down.weight.detach().double().norm(dim=0)
    torch.testing.assert_close(scores("producer", model, data())["up"], made)
    torch.testing.assert_close(scores("consumer", model, data())["up"], read)
    torch.testing.assert_close(scores("both", model, data())["up"], (made * read).sqrt())


def test_both_does_not_see_a_scale_that_moves_from_one_side_to_the_other() -> None:
    model, moved = tiny(), tiny()
    with torch.no_grad():
        moved.up.weight[2] *= 5
        moved.down.weight[:, 2] /= 5
    torch.testing.assert_close(scores("both", model, data())["up"], scores("both", moved, data())["up"])


def test_wanda() -> None:
    model = tiny()
    x = seen(model)
    expected = model.down.weight.detach().double().abs().sum(0) * x.square().mean(0).sqrt()
    torch.testing.assert_close(scores("wanda", model, data())["up"], expected, rtol=1e-5, atol=1e-7)


def test_flap() -> None:
    model = tiny()
    x = seen(model)
    expected = model.down.weight.detach().double().square().sum(0) * x.var(0, correction=0)
    torch.testing.assert_close(scores("flap", model, data())["up"], expected, rtol=1e-5, atol=1e-7)


def _error(model: Tiny, gone: list[int]) -> float:
    """The mean square error of the best affine map from the neurons that are left to what the second layer wrote."""
    x = seen(model)
    y = x @ model.down.weight.detach().double().T
    y = y - y.mean(0)
    kept = [n for n in range(5) if n not in gone]
    left = x[:, kept] - x[:, kept].mean(0)
    solution = torch.linalg.lstsq(left, y).solution if kept else torch.zeros(0, 3, dtype=y.dtype)
    return float((left @ solution - y).square().sum() / y.square().sum())


def test_obs_is_the_error_of_the_model_without_the_neuron_solved_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruner.compensation.elimination.one_shot.__kwdefaults__", {"ridge": 1e-9})
    model = tiny()
    expected = torch.tensor([_error(model, [n]) for n in range(5)], dtype=torch.float64)
    torch.testing.assert_close(scores("obs", model, data())["up"], expected, rtol=1e-4, atol=1e-7)


def test_greedy_removes_what_costs_least_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruner.compensation.elimination.eliminate.__kwdefaults__", {"ridge": 1e-9})
    model = tiny()
    found = scores("greedy", model, data())["up"]
    gone: list[int] = []
    for neuron in found.argsort().tolist():
        following = {n: _error(model, [*gone, n]) for n in range(5) if n not in gone}
        assert neuron == min(following, key=lambda n: following[n])
        assert float(found[neuron]) == pytest.approx(following[neuron], rel=1e-3)
        gone.append(neuron)


def test_taylor_is_the_squared_derivative_by_a_gate() -> None:
    model = tiny()
    expected = torch.zeros(5, dtype=torch.float64)
    for x, labels in data():
        for sample, label in zip(x, labels, strict=True):
            gate = torch.ones(5, requires_grad=True)
            loss = F.cross_entropy(model.down(gate * torch.tanh(model.up(sample))), label)
            (gradient,) = torch.autograd.grad(loss, gate)
            expected += gradient.double().square()
    torch.testing.assert_close(scores("taylor", model, data())["up"], expected, rtol=1e-4, atol=1e-8)


def test_taylor_needs_no_labels() -> None:
    found = scores("taylor", tiny(), [x for x, _ in data()])
    assert (found["up"] > 0).all()


def test_a_neuron_that_says_the_same_as_another_costs_nothing_by_obs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruner.compensation.elimination.one_shot.__kwdefaults__", {"ridge": 1e-9})
    model = tiny()
    with torch.no_grad():
        model.up.weight[3], model.up.bias[3] = model.up.weight[1], model.up.bias[1]
    obs, wanda = (scores(name, model, data())["up"] for name in ("obs", "wanda"))
    assert obs[[1, 3]].max() < 0.1 * obs[[0, 2, 4]].min()
    assert wanda[[1, 3]].max() > 0.1 * wanda[[0, 2, 4]].min()


def test_padding_does_not_count() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    model = transformers.BertModel(config, add_pooling_layer=False)
    ids = torch.randint(1, 40, (8, 6))
    short = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    longer = torch.cat([ids, torch.randint(1, 40, (8, 3))], 1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(8, 3, dtype=torch.int64)], 1)
    for name in ("wanda", "flap", "obs"):
        one, other = scores(name, model, short), scores(name, model, [{"input_ids": longer, "attention_mask": mask}])
        for group, values in one.items():
            torch.testing.assert_close(values, other[group], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_criterion_scores_every_neuron(name: str, dtype: torch.dtype) -> None:
    model = small_cnn.model().to(dtype)
    found = scores(name, model, [small_cnn.images(16).to(dtype)])
    assert {group: len(values) for group, values in found.items()} == {"conv1": 10, "conv2": 64, "fc1": 128}
    for values in found.values():
        assert values.dtype == torch.float64
        assert values.device.type == "cpu"
        assert not torch.isnan(values).any()


@pytest.mark.parametrize("name", ALL)
def test_without_data_it_says_so_or_does_not_need_them(name: str) -> None:
    model = tiny()
    evidence = Evidence(model, discover(model, data()[0][0]))
    if name in WEIGHTS_ONLY:
        assert len(criteria.find(name)(evidence)["up"]) == 5
    else:
        with pytest.raises(DataError, match=name):
            criteria.find(name)(evidence)


def test_random_is_its_seed() -> None:
    one, same, other = (scores("random", tiny(), data(), seed)["up"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", [name for name in ALL if name != "producer"])
def test_every_criterion_is_a_strategy(name: str) -> None:
    model = tiny()
    config = create_default_config().update(strategy={"default_strategy": name, "target_sparsity": 0.4})
    results = PruningEngine(config=config).prune_by_strategy(model, data_loader=data())
    assert results["neurons_pruned"] == 2
    assert results["strategy"] == name
    found = scores(name, tiny(), data())["up"]
    assert results["layers"]["up"]["removed"] == sorted(found.argsort()[:2].tolist())


def test_a_strategy_that_needs_data_says_so() -> None:
    model = tiny()
    discover(model, data()[0][0])
    with pytest.raises(DataError, match=r"wanda.*data_loader"):
        PruningEngine().prune_by_strategy(model, "wanda", 0.4)


def test_scores_are_standardised_about_the_layers_mean() -> None:
    values = np.array([1.0, 2.0, 3.0, np.inf])
    found = standardised(values)
    np.testing.assert_allclose(found[:3], (values[:3] - 2) / values[:3].std())
    assert np.isinf(found[3])
    np.testing.assert_array_equal(standardised(np.ones(3)), np.zeros(3))
