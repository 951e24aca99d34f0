"""Experts: stacked in one parameter, or layers of their own that the model routes samples to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pruner
from pruner.compensation.bench import Bench
from pruner.compensation.experts import lined_up
from pruner.compensation.observation import captured
from tracker.batches import evaluating, iter_batches
from tracker.discover import discover

EXPERTS, WIDTH, HIDDEN = 3, 8, 12


class Routed(nn.Module):
    """Two experts a token out of three, each a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH)) for _ in range(EXPERTS)
        )

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        weights, chosen = self.router(flat).softmax(-1).topk(2, -1)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            row, place = torch.where(chosen == number)
            if len(row):
                out = out.index_add(0, row, expert(flat[row]) * weights[row, place, None])
        return x + out.view_as(x)


class Stacked(nn.Module):
    """All experts see everything, by one product of stacks; `looped` takes their matrices one by one, and those from
    `running` on never.
    """

    def __init__(self, looped: bool = False, running: int = EXPERTS) -> None:
        super().__init__()
        self.looped, self.running = looped, running
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN) / WIDTH**0.5)
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH) / HIDDEN**0.5)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        share = self.router(flat).softmax(-1)
        if self.looped:
            out = torch.stack([torch.relu(flat @ self.up[i]) @ self.down[i] for i in range(self.running)])
            share = share[:, : self.running]
        else:
            out = torch.bmm(torch.relu(torch.bmm(flat.expand(EXPERTS, -1, -1), self.up)), self.down)
        return x + (out * share.T.unsqueeze(-1)).sum(0).view_as(x)


class Taps(nn.Module):
    """A stack whose matrices share their neurons: the taps of a kernel, summed before they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN) / WIDTH**0.5)
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH) / HIDDEN**0.5)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        hidden = torch.bmm(flat.expand(EXPERTS, -1, -1), self.up).sum(0)
        return x + torch.bmm(torch.relu(hidden).expand(EXPERTS, -1, -1), self.down).sum(0).view_as(x)


class Net(nn.Module):
    """Three such layers, with a norm before each, and an output layer."""

    def __init__(self, kind: Any = Stacked, **options: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(kind(**options) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = layer(norm(x))
        out: Tensor = self.head(x)
        return out


def data(count: int = 6) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    mixing = torch.randn(4, WIDTH, generator=random)
    return [torch.randn(16, 10, 4, generator=random) @ mixing for _ in range(count)]


def compressed(model: nn.Module, effort: str = "low", **options: Any) -> Any:
    quiet = pruner.create_default_config().update(logging={"log_to_console": False})
    return pruner.compress(model, data(), ratio=0.5, kinds={"mlp"}, effort=effort, config=quiet, **options)


@pytest.mark.parametrize("kind", [Routed, Stacked, Taps])
@pytest.mark.parametrize("effort", ["low", "default"])
def test_the_others_take_over(kind: Any, effort: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pruner.compensation import pipeline

    monkeypatch.setitem(pipeline.EFFORTS, "default", pipeline.Work(1, 20, 10))
    torch.manual_seed(0)
    results = compressed(Net(kind), effort)
    distances = results["repair"]["distances"]
    assert results["verification"]["summary"]["overall_success"]
    assert min(distances.values()) < 0.5 * distances["removed"]
    assert not results["repair"]["left_out"]


@pytest.mark.parametrize("looped", [False, True])
def test_every_expert_is_solved_for_by_itself(looped: bool) -> None:
    torch.manual_seed(0)
    solved = compressed(Net(Stacked, looped=looped))["repair"]["layers"]
    assert [layer["consumer"] for layer in solved] == [
        f"layers.{i}.down[{e}]" for i in range(3) for e in range(EXPERTS)
    ]
    assert all(layer["errors"]["least squares"] < layer["errors"]["none"] for layer in solved)


def test_experts_that_can_spare_different_neurons_lose_those() -> None:
    """Half of each expert's neurons are dead, others in each: nothing at all is lost."""
    torch.manual_seed(0)
    model = Net()
    for layer in model.layers:
        for expert in range(EXPERTS):
            dead = torch.randperm(HIDDEN)[: HIDDEN // 2]
            layer.up.data[expert][:, dead] = 0
    wanted = [model(x).detach() for x in data()]
    results = compressed(model)
    assert [layer.up.shape for layer in model.layers] == [(EXPERTS, WIDTH, HIDDEN // 2)] * 3
    assert results["repair"]["distances"]["removed"] < 1e-9
    for x, y in zip(data(), wanted, strict=True):
        torch.testing.assert_close(model(x), y, rtol=1e-3, atol=1e-4)


def test_a_dry_run_leaves_them_as_they_were() -> None:
    torch.manual_seed(0)
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compressed(model, dry_run=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def bench_of(model: nn.Module) -> Bench:
    neurons = discover(model, data()[0])
    groups = [group.name for group in neurons if group.kind == "mlp" and group.exact]
    assert groups
    return Bench.of(model, neurons, groups, list(iter_batches(data(), model)))


def test_only_what_stays_the_same_function_is_lined_up() -> None:
    torch.manual_seed(0)
    for kind, moved in ((Stacked, {"up", "down"}), (Taps, set())):
        model = Net(kind).eval()
        with evaluating(model):
            bench = bench_of(model)
            lined = lined_up(bench)
        assert {name.rpartition(".")[2] for name in lined.rearranged} == moved
        torch.testing.assert_close(lined.model(data()[0]), model(data()[0]), rtol=1e-4, atol=1e-5)
        assert lined.model.head.weight is model.head.weight  # not a copy
        for name, value in lined.rearranged.items():
            assert not torch.equal(value, model.get_parameter(name))


def test_an_expert_that_never_ran_goes_by_its_weights() -> None:
    torch.manual_seed(0)
    model = Net(looped=True, running=EXPERTS - 1)
    results = compressed(model, budgets="uniform")
    assert results["verification"]["summary"]["overall_success"]
    assert "layers.0.down[2]" not in {layer["consumer"] for layer in results["repair"]["layers"]}
    assert model.layers[0].down.shape == (EXPERTS, HIDDEN // 2, WIDTH)


def test_routed_layers_are_told_from_others() -> None:
    torch.manual_seed(0)
    model = Net(Routed).eval()
    with evaluating(model):
        assert all(consumer.routed for consumer in bench_of(model).consumers.found)
    plain = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH)).eval()
    with evaluating(plain):
        neurons = discover(plain, data()[0])
        bench = Bench.of(plain, neurons, [g.name for g in neurons if g.exact], list(iter_batches(data(), plain)))
    assert not any(consumer.routed for consumer in bench.consumers.found)


@pytest.mark.parametrize("implementation", ["grouped_mm", "eager"])
def test_what_each_expert_of_transformers_reads(implementation: str) -> None:
    """Against a look at the layers' own arguments."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=32,
        num_local_experts=EXPERTS,
        num_experts_per_tok=2,
    )
    config._experts_implementation = implementation
    model = MixtralForCausalLM(config).eval()
    batches = [{"input_ids": torch.randint(0, 32, (4, 9))} for _ in range(2)]
    neurons = discover(model, example_kwargs=batches[0])
    name = "model.layers.0.mlp.experts"
    with evaluating(model):
        bench = Bench.of(model, neurons, [name], list(iter_batches(batches, model)))
        seen: list[Any] = []
        experts = model.get_submodule(name)
        handle = experts.register_forward_pre_hook(lambda _, args: seen.append(args))
        with captured(model, neurons, bench.consumers.found) as calls:
            model(**batches[0])
        handle.remove()
    x, chosen, _ = seen[0]
    for expert in range(EXPERTS):
        gate, up = F.linear(x[(chosen == expert).any(1)], experts.gate_up_proj[expert]).chunk(2, -1)
        found = torch.cat([call.x for call in calls[f"{name}.down_proj[{expert}]"]])
        wanted = experts.act_fn(gate) * up  # in whatever order
        assert found.shape == wanted.shape
        torch.testing.assert_close(found.T @ found, wanted.T @ wanted)


class OneOfTwo(nn.Module):
    """The sign of the first value decides which of two layers runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 4)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(len(x), 4)
        for number, layer in enumerate(self.layers):
            rows = ((x[:, 0] > 0) == bool(number)).nonzero().flatten()
            if len(rows):
                out = out.index_add(0, rows, layer(x[rows]))
        return out


def test_the_proof_looks_for_data_that_reach_every_expert() -> None:
    torch.manual_seed(0)
    rows = [torch.randn(32, WIDTH) for _ in range(8)]
    batches = [torch.cat([-x[:, :1].abs(), x[:, 1:]], 1) for x in rows[:7]]
    batches.append(torch.cat([rows[7][:, :1].abs(), rows[7][:, 1:]], 1))
    model = OneOfTwo()
    discover(model, torch.cat([batches[0], batches[-1]]))
    quiet = pruner.create_default_config().update(logging={"log_to_console": False})
    results = pruner.compress(model, batches, ratio=0.5, effort="low", budgets="uniform", config=quiet)
    assert results["neurons_pruned"] == HIDDEN
    assert results["verification"]["summary"]["overall_success"]


class Sliced(nn.Module):
    """Experts side by side in one matrix, which is cut when it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(EXPERTS * HIDDEN, WIDTH) / WIDTH**0.5)
        self.down = nn.Parameter(torch.randn(EXPERTS * HIDDEN, WIDTH) / HIDDEN**0.5)

    def forward(self, x: Tensor) -> Tensor:
        ups, downs = (w.view(EXPERTS, -1, WIDTH) for w in (self.up, self.down))
        return x + sum(torch.relu(x @ up.T) @ down for up, down in zip(ups, downs, strict=True))


def test_a_matrix_that_is_read_in_slices_is_not_solved_for() -> None:
    torch.manual_seed(0)
    results = compressed(Net(Sliced))
    assert results["verification"]["summary"]["overall_success"]
    assert set(results["repair"]["left_out"]) == {f"layers.{i}.down" for i in range(3)}
    assert results["neurons_pruned"] == 3 * HIDDEN // 2
