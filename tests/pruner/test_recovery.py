import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruner import PruningPlan, prune_, recover
from pruner.recovery_loss import Objective, Weights, labelled
from tracker import discover
from tracker.batches import Batch, as_batch
from tracker.errors import DataError, PlanError


class Net(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 8), nn.BatchNorm1d(8)) for _ in range(2)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def batches(count: int = 8, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Three classes that a linear map of the inputs tells apart."""
    random = torch.Generator().manual_seed(seed)
    way = torch.randn(8, 3, generator=torch.Generator().manual_seed(42))
    found = []
    for _ in range(count):
        x = torch.randn(32, 8, generator=random)
        found.append((x, (x @ way).argmax(-1)))
    return found


def accuracy(model: nn.Module) -> float:
    x, y = map(torch.cat, zip(*batches(4, seed=1), strict=True))
    return float((model(x).argmax(-1) == y).float().mean())


def nearness(dense: nn.Module) -> Any:
    x = torch.cat([x for x, _ in batches(4, seed=1)])
    with torch.no_grad():
        wanted = dense.eval()(x)
    return lambda model: -float((model(x) - wanted).square().mean().detach())


@pytest.fixture
def dense() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    recover(model, batches(40), steps=150, learning_rate=1e-2)
    return model.eval()


@pytest.fixture
def pruned(dense: nn.Module) -> nn.Module:
    model = copy.deepcopy(dense)
    neurons = discover(model, torch.randn(4, 8))
    prune_(model, PruningPlan({group.name: range(20) for group in neurons if group.kind == "mlp"}))
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_labels_bring_accuracy_back(dense: nn.Module, pruned: nn.Module) -> None:
    assert accuracy(dense) > 0.9
    damaged = accuracy(pruned)
    objects = [id(p) for p in pruned.parameters()]
    result = recover(pruned, batches(), steps=100, metric=accuracy, learning_rate=1e-2, patience=10)
    assert result.before == damaged < result.after == accuracy(pruned)
    assert objects == [id(p) for p in pruned.parameters()]
    assert not pruned.training
    assert all(p.grad is None and p.requires_grad for p in pruned.parameters())


@pytest.mark.parametrize("hidden", [0.0, 1.0])
@pytest.mark.parametrize("lora", [None, 4])
def test_the_dense_model_teaches_without_labels(
    dense: nn.Module, pruned: nn.Module, hidden: float, lora: int | None
) -> None:
    if lora:
        pytest.importorskip("peft")
    metric = nearness(dense)
    before, modules = state(dense), [(name, type(m)) for name, m in pruned.named_modules()]
    objects = [id(p) for p in pruned.parameters()]
    inputs = [x for x, _ in batches()]
    result = recover(
        pruned, inputs, steps=60, teacher=dense, hidden=hidden, lora=lora, metric=metric, learning_rate=1e-2
    )
    assert result.after is not None
    assert result.before is not None
    assert result.after > 0.7 * result.before  # both are below zero: nearer by a third at least
    assert result.after == pytest.approx(metric(pruned))
    assert same(before, state(dense))
    assert [(name, type(m)) for name, m in pruned.named_modules()] == modules
    assert objects == [id(p) for p in pruned.parameters()]
    assert all(p.requires_grad for p in pruned.parameters())
    prune_(pruned, PruningPlan({"blocks.0.0": [0]}))  # it is a model like any other


def test_the_best_weights_seen_are_kept_and_patience_ends_it(pruned: nn.Module) -> None:
    before = state(pruned)
    told = iter([0.5, 0.6, 0.4, 0.3, 0.2, 0.1, *[0.6] * 9])
    seen: list[dict[str, Tensor]] = []

    def metric(model: nn.Module) -> float:
        seen.append(state(model))
        return next(told)

    result = recover(pruned, batches(), steps=100, metric=metric, checks=10, patience=3)
    assert (result.before, result.best_step, result.steps) == (0.5, 10, 40)
    assert [check.metric for check in result.checks] == [0.6, 0.4, 0.3, 0.2]
    assert same(state(pruned), seen[1])
    assert not same(state(pruned), before)


def test_a_model_that_only_gets_worse_stays_as_it_was(pruned: nn.Module) -> None:
    before = state(pruned)
    falling = iter(range(0, -100, -1))
    result = recover(pruned, batches(), steps=20, metric=lambda _: next(falling), patience=2)
    assert (result.best_step, result.steps) == (0, 4)
    assert same(state(pruned), before)


def test_the_same_seed_gives_the_same_weights_and_leaves_random_numbers_alone(pruned: nn.Module) -> None:
    data = torch.utils.data.DataLoader(batches(), batch_size=None, shuffle=True)
    twins = [copy.deepcopy(pruned) for _ in range(3)]
    torch.manual_seed(5)
    for twin, seed in zip(twins, (1, 1, 2), strict=True):
        recover(twin, data, steps=10, seed=seed)
    here = torch.rand(1)
    assert same(state(twins[0]), state(twins[1]))
    assert not same(state(twins[0]), state(twins[2]))
    assert here == torch.rand(1, generator=torch.Generator().manual_seed(5))


def test_frozen_parameters_stay(pruned: nn.Module) -> None:
    pruned.head.requires_grad_(False)
    head, block = state(pruned.head), state(pruned.blocks[0])
    recover(pruned, batches(), steps=5)
    assert same(head, state(pruned.head))
    assert not same(block, state(pruned.blocks[0]))
    assert not pruned.head.weight.requires_grad


def test_parts_in_evaluation_mode_stay_in_it_when_the_model_trains(pruned: nn.Module) -> None:
    pruned.train()
    pruned.blocks[0][3].eval()
    before = [pruned.blocks[i][3].running_mean.clone() for i in range(2)]
    recover(pruned, batches(), steps=3)
    assert torch.equal(before[0], pruned.blocks[0][3].running_mean)
    assert not torch.equal(before[1], pruned.blocks[1][3].running_mean)
    assert pruned.training
    assert not pruned.blocks[0][3].training


def test_half_precision_takes_steps_that_it_would_round_away(dense: nn.Module, pruned: nn.Module) -> None:
    teacher, model = copy.deepcopy(dense).bfloat16(), pruned.bfloat16()
    metric = nearness(dense)

    def judged(model: nn.Module) -> float:
        return metric(copy.deepcopy(model).float())

    result = recover(model, [x for x, _ in batches()], steps=60, teacher=teacher, metric=judged, learning_rate=1e-3)
    assert result.after is not None
    assert result.before is not None
    assert result.after > 0.8 * result.before
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_an_own_loss_gets_the_output_and_the_batch(pruned: nn.Module) -> None:
    seen: list[Any] = []

    def loss(output: Tensor, batch: Any) -> Tensor:
        seen.append(batch)
        return nn.functional.cross_entropy(output, batch[1])

    data = batches()
    recover(pruned, data, steps=10, loss=loss)
    assert len(seen) == 10
    assert seen[0] is data[0]
    assert seen[8] is data[0]


def test_the_optimizer_that_trained_it_goes_on(pruned: nn.Module) -> None:
    optimizer = torch.optim.SGD(pruned.parameters(), 0.05, momentum=0.9)
    numbers: dict[int, dict[str, float]] = {}
    recover(pruned, batches(), steps=10, optimizer=optimizer, checks=2, log=lambda n, s: numbers.update({s: dict(n)}))
    assert all("momentum_buffer" in optimizer.state[p] for p in pruned.parameters())
    assert list(numbers) == [5, 10]
    assert numbers[5].keys() == {"recovery/loss"}
    with pytest.raises(PlanError, match="no parameter of this model"):
        recover(pruned, batches(), steps=1, optimizer=torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1))


@pytest.mark.parametrize("lora", [None, 2])
def test_ctrl_c_leaves_the_best_weights(pruned: nn.Module, lora: int | None) -> None:
    if lora:
        pytest.importorskip("peft")
    before = state(pruned)

    def endless() -> Any:
        for index, batch in enumerate(batches() * 10):
            if index == stop:
                raise KeyboardInterrupt
            yield batch

    class Data:
        def __iter__(self) -> Any:
            return endless()

    stop = 3
    with pytest.raises(KeyboardInterrupt):
        recover(pruned, Data(), steps=40, checks=4, metric=accuracy, lora=lora)
    assert same(before, state(pruned))
    rising = iter(range(100))
    stop = 15
    with pytest.raises(KeyboardInterrupt):
        recover(pruned, Data(), steps=40, checks=4, metric=lambda _: next(rising), lora=lora, learning_rate=1e-2)
    assert before.keys() == state(pruned).keys()
    assert not same(before, state(pruned))
    assert all(p.requires_grad for p in pruned.parameters())


def test_a_loss_that_diverges(pruned: nn.Module) -> None:
    before = state(pruned)
    with pytest.raises(DataError, match=r"loss became (nan|inf) within the steps up to 2.*Lower the learning rate"):
        recover(pruned, batches(), steps=20, loss=lambda output, _: output.sum() * float("nan"))
    assert same(before, state(pruned))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"steps": 0}, "steps = 0"),
        ({"steps": True}, "steps = True"),
        ({"steps": 1, "hidden": 1.0}, "Give teacher="),
        ({"steps": 1, "labels": 0.0}, "Nothing counts"),
        ({"steps": 1, "labels": float("nan")}, "labels = nan"),
        ({"steps": 1, "temperature": 0}, "temperature = 0"),
        ({"steps": 1, "lora": 0}, "lora = 0"),
        ({"steps": 1, "lora": 2, "optimizer": torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)}, "not both"),
    ],
)
def test_options_that_make_no_sense(pruned: nn.Module, options: dict[str, Any], why: str) -> None:
    with pytest.raises(PlanError, match=why):
        recover(pruned, batches(), **options)


def test_teachers_that_do_not_fit(pruned: nn.Module) -> None:
    with pytest.raises(PlanError, match="the model itself"):
        recover(pruned, batches(), steps=1, teacher=pruned)
    with pytest.raises(PlanError, match=r"answers with \(32, 5\).*the model with \(32, 3\)"):
        recover(pruned, batches(), steps=1, teacher=nn.Sequential(nn.Linear(8, 5)))
    with pytest.raises(PlanError, match="No block"):
        recover(pruned, batches(), steps=1, teacher=nn.Sequential(nn.Linear(8, 3)), hidden=1.0)


def test_data_that_cannot_be_used(pruned: nn.Module) -> None:
    with pytest.raises(DataError, match="empty"):
        recover(pruned, [], steps=1)
    with pytest.raises(DataError, match="used up"):
        recover(pruned, iter(batches(2)), steps=5)
    with pytest.raises(DataError, match=r"no labels.*or give a teacher"):
        recover(pruned, [torch.randn(4, 8)], steps=1)
    with pytest.raises(DataError, match=r"Batch 1: .*NaN"):
        recover(pruned, [torch.randn(4, 8), torch.full((4, 8), float("nan"))], steps=4, loss=lambda o, _: o.sum())
    with pytest.raises(DataError, match="metric gave nan"):
        recover(pruned, batches(), steps=1, metric=lambda _: float("nan"))
    pruned.requires_grad_(False)
    with pytest.raises(PlanError, match="frozen"):
        recover(pruned, batches(), steps=1)


def test_adapters_only_where_they_can_be(pruned: nn.Module) -> None:
    peft = pytest.importorskip("peft")
    with pytest.raises(PlanError, match="no linear layer"):
        recover(nn.Sequential(nn.Conv2d(8, 3, 1)), [(torch.randn(2, 8, 1, 1), torch.zeros(2).long())], steps=1, lora=2)
    config = peft.LoraConfig(r=2, target_modules=["head"])
    with pytest.raises(PlanError, match="'head' carries adapters already"):
        recover(peft.inject_adapter_in_model(config, pruned), batches(), steps=1, lora=2)


def test_the_objective_is_the_sum_of_its_parts(dense: nn.Module, pruned: nn.Module) -> None:
    """Against the formulas written out."""
    raw = batches(1)[0]
    batch = as_batch(raw, pruned)
    whole = Objective(pruned, Weights(0.3, 0.5, 0.7), dense, temperature=2.0)
    whole.look(raw, batch)
    assert whole.blocks == ("blocks.0", "blocks.1")
    with torch.no_grad():
        found = float(whole(raw, batch))
        x, y = raw
        ours, theirs = pruned(x), dense(x)
        labels = float(nn.functional.cross_entropy(ours, y))
        p, q = (theirs / 2).softmax(-1), (ours / 2).softmax(-1)
        answers = float(4 * (p * (p.log() - q.log())).sum(-1).mean())
        hidden = []
        h, t = x, x
        for mine, taught in zip(pruned.blocks, dense.blocks, strict=True):
            a, b = mine(h), taught(t)
            hidden.append(float((a - b).square().mean() / (b - b.mean(0)).square().mean()))
            h, t = h + a, t + b
    assert found == pytest.approx(0.3 * labels + 0.5 * answers + 0.7 * sum(hidden) / 2, rel=1e-5)


def test_losses_by_labels() -> None:
    said = torch.randn(4, 5, 3)
    target = torch.tensor([[0, 1, 2, -100, 1]] * 4)
    kept = target.flatten() >= 0
    expected = nn.functional.cross_entropy(said.flatten(0, 1)[kept], target.flatten()[kept])
    assert torch.allclose(labelled(said, Batch(target=target)), expected)
    assert torch.allclose(labelled(torch.ones(4, 1), Batch(target=torch.zeros(4))), torch.tensor(1.0))
    assert labelled({"loss": torch.tensor(0.5), "logits": said}, Batch(target=target)) == 0.5
    with pytest.raises(DataError, match="not known how labels"):
        labelled(said, Batch(target=torch.zeros(7).long()))
