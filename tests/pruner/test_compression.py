"""`compress` on small trained models: what it keeps, what it refuses, and what its numbers mean."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pruner
from pruner.metrics import count_parameters
from tracker.discover import discover
from tracker.errors import ConfigError, DataError, PlanError

BATCHES = 12


class Net(nn.Module):
    """Two hidden layers with more neurons than the task needs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(12, 48), nn.Linear(48, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.fc2(torch.relu(self.fc1(x))))
        out: Tensor = self.fc3(hidden)
        return out


def data(seed: int = 0, count: int = BATCHES) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(5, 12, generator=torch.Generator().manual_seed(9))
    return [torch.randn(32, 5, generator=random) @ mixing for _ in range(count)]


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    """The weights of a network that has learned something smooth."""
    torch.manual_seed(0)
    model = Net()
    target = nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 4))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(300):
        x = data(seed=step, count=1)[0]
        loss = F.mse_loss(model(x), target(x).detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict()


def net(weights: dict[str, Tensor]) -> Net:
    model = Net()
    model.load_state_dict(weights)
    return model


def error(model: nn.Module, dense: nn.Module) -> float:
    with torch.no_grad():
        x = torch.cat(data(seed=77))
        wanted = dense(x)
        return float((model(x) - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())


@pytest.mark.parametrize("effort", ["low", "default"])
@pytest.mark.parametrize("budgets", ["measured", "uniform", "global", "z-score"])
def test_it_keeps_the_answers_far_better_than_the_removal_alone(
    trained: dict[str, Tensor], effort: str, budgets: str
) -> None:
    model, bare, dense = net(trained), net(trained), net(trained)
    results = pruner.compress(model, data(), ratio=0.5, effort=effort, budgets=budgets)
    assert results["neurons_pruned"] == 40
    assert results["verification"]["summary"]["overall_success"]
    bare_plan = pruner.PruningPlan(results["plan"]["remove"])
    pruner.prune_(bare, bare_plan, discover(bare, data()[0]))
    assert error(model, dense) < 0.25 * error(bare, dense)
    assert results["repair"]["kept"] != "removed"
    json.dumps(results)


def test_nothing_is_left_behind_in_the_model(trained: dict[str, Tensor]) -> None:
    model = net(trained).train()
    model.fc1.weight.requires_grad_(False)
    state = torch.get_rng_state()
    pruner.compress(model, data(), ratio=0.3)
    assert model.training
    assert not model.fc1.weight.requires_grad
    assert model.fc2.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_same_seed_gives_the_same_model(trained: dict[str, Tensor]) -> None:
    models = [net(trained) for _ in range(2)]
    for model in models:
        pruner.compress(model, data(), ratio=0.5, seed=3)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("what", ["params", "flops"])
def test_a_target_is_the_share_that_is_left(trained: dict[str, Tensor], what: str) -> None:
    model = net(trained)
    before = count_parameters(model)
    results = pruner.compress(model, data(), target={what: 0.6}, effort="low")
    assert results["budgets"]["left"] == pytest.approx(0.6, abs=0.03)
    if what == "params":
        assert count_parameters(model) / before == pytest.approx(0.6, abs=0.03)


def test_what_an_earlier_forward_left_in_the_model_does_no_harm(trained: dict[str, Tensor]) -> None:
    model = net(trained)
    left = model(data()[0])
    model.last = left  # part of a graph: it cannot be copied
    assert pruner.compress(model, data(), ratio=0.5, effort="low")["neurons_pruned"] == 40
    assert model.last is left


def test_too_few_samples_to_judge_by_are_pointed_out(trained: dict[str, Tensor]) -> None:
    results = pruner.compress(net(trained), [data()[0][:5]], ratio=0.5, effort="low")
    assert "too few samples" in " ".join(results["warnings"])
    assert results["repair"]["held_out"] == 0
    assert not pruner.compress(net(trained), data(), ratio=0.0, effort="low")["warnings"]


def test_widths_are_rounded(trained: dict[str, Tensor]) -> None:
    model = net(trained)
    pruner.compress(model, data(), ratio=0.5, round_to=8, effort="low")
    assert model.fc1.out_features % 8 == model.fc2.out_features % 8 == 0


def test_a_dry_run_changes_nothing(trained: dict[str, Tensor]) -> None:
    model = net(trained)
    results = pruner.compress(model, data(), ratio=0.5, effort="low", dry_run=True)
    assert results["dry_run"]
    assert results["parameters_after"] < results["parameters_before"]
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("effort", ["low", "default"])
def test_dicts_with_an_attention_mask_and_a_tied_embedding(effort: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=24, n_layer=2, n_head=2, bos_token_id=0)
    model = transformers.GPT2LMHeadModel(config).eval()
    mask = (torch.arange(12) < torch.randint(6, 13, (24, 1))).long()
    batches = [{"input_ids": torch.randint(0, 50, (24, 12)), "attention_mask": mask} for _ in range(2)]
    results = pruner.compress(model, batches, ratio=0.5, kinds={"mlp"}, effort=effort)
    assert results["neurons_pruned"] == 96
    assert model.config.use_cache
    assert ("blocks" in results["repair"]["distances"]) == (effort == "default")
    assert model.lm_head.weight is model.transformer.wte.weight
    assert results["repair"]["distances"]["closed form"] <= results["repair"]["distances"]["removed"]


def test_heads_go_too() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    batches = [{"input_ids": torch.randint(0, 50, (16, 12))} for _ in range(2)]
    results = pruner.compress(model, batches, ratio=0.5, kinds={"attention"}, effort="low")
    assert results["neurons_pruned"] == 4
    assert results["verification"]["summary"]["overall_success"]


def _once() -> Iterator[Any]:
    yield from data()


@pytest.mark.parametrize(
    ("options", "wrong", "says"),
    [
        ({}, PlanError, "either a ratio or a target"),
        ({"ratio": 0.5, "target": {"params": 0.5}}, PlanError, "either a ratio or a target"),
        ({"ratio": 1.5}, PlanError, "ratio = 1.5"),
        ({"ratio": 0.99}, PlanError, "max_sparsity_per_layer"),
        ({"ratio": 0.85}, PlanError, "max_pruning_ratio"),
        ({"target": {"size": 0.5}}, PlanError, "not understood"),
        ({"target": {"params": 50}}, PlanError, "is not a number between 0 and 1"),
        ({"target": {"params": 0.01}}, PlanError, "are left"),
        ({"ratio": 0.5, "effort": "some"}, ConfigError, "effort"),
        ({"ratio": 0.5, "budgets": "fair"}, ConfigError, "budgets"),
        ({"ratio": 0.5, "kinds": {"heads"}}, ConfigError, "kinds"),
        ({"ratio": 0.5, "data": []}, DataError, "empty"),
        ({"ratio": 0.5, "data": _once()}, DataError, "only once"),
        ({"ratio": 0.5, "data": [torch.full((4, 12), torch.nan)]}, DataError, "NaN"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_lost(
    trained: dict[str, Tensor], options: dict[str, Any], wrong: type[Exception], says: str
) -> None:
    model = net(trained)
    options = {"data": data(), "effort": "low"} | options
    with pytest.raises(wrong, match=says):
        pruner.compress(model, **options)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in model.state_dict().items())


class Halved(nn.Module):
    """Its weight is computed, so that nobody can solve for it."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outs, ins)), nn.Parameter(torch.zeros(outs))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * torch.tensor(0.5), self.bias)


@pytest.mark.parametrize("budgets", ["measured", "uniform"])
@pytest.mark.parametrize("others", [True, False])
def test_neurons_whose_readers_cannot_be_solved_for_go_too(budgets: Any, others: bool) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 12), nn.ReLU(), Halved(12, 16)]
    model = nn.Sequential(*layers, *([nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)] if others else []))
    model[0].weight.data[[2, 7]] *= 1e-3  # type: ignore[index, operator, union-attr]
    model[0].bias.data[[2, 7]] = 0  # type: ignore[index, operator, union-attr]
    results = pruner.compress(model, [torch.randn(64, 5) for _ in range(4)], ratio=0.5, effort="low", budgets=budgets)
    assert results["neurons_pruned"] == (18 if others else 6)
    assert results["repair"]["left_out"] == {"2.weight": "is computed from other parameters"}
    assert results["verification"]["summary"]["overall_success"]
    assert {2, 7} <= set(results["plan"]["remove"]["0"])  # those that say least go first
    assert ("curve" in results["budgets"]["layers"]["0"]) == (budgets == "measured")


class Autoencoder(nn.Module):
    """A variational one: every forward draws noise, twice in blocks and once between them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.mean, self.spread = nn.Linear(32, 4), nn.Linear(32, 4)
        self.decoder = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encoder(x + 0.1 * torch.randn_like(x))
        mean = self.mean(hidden)
        drawn = mean + torch.randn_like(mean) * (0.5 * self.spread(hidden)).exp()
        out: Tensor = self.decoder(drawn)
        return out


@pytest.mark.parametrize("effort", ["low", "default"])
def test_a_model_that_draws_random_numbers_is_compared_with_the_same_ones(effort: str) -> None:
    torch.manual_seed(0)
    model, batches = Autoencoder(), [torch.randn(32, 10) for _ in range(8)]
    before = torch.random.get_rng_state()
    results = pruner.compress(model, batches, ratio=0.5, effort=effort)
    assert torch.equal(torch.random.get_rng_state(), before)
    distances = results["repair"]["distances"]
    assert distances["removed"] < 0.5  # between two draws it would be about 2, whatever is removed
    assert min(distances.values()) < 0.6 * distances["removed"]
