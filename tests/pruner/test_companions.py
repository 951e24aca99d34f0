"""What is trained along with a model shrinks with it, and goes on as if the model had been small from the start."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pruner.before_and_after import everything
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pruner import PruningEngine, PruningPlan, check, prune_, pruning_history
from pruner.companions import Along
from tracker import discover
from tracker.errors import PlanError, VerificationError

WIDTH = 12


class Net(nn.Module):
    def __init__(self, conv: int = WIDTH, hidden: int = WIDTH):
        super().__init__()
        self.conv = nn.Conv2d(1, conv, 3, padding=1)
        self.norm = nn.BatchNorm2d(conv)
        self.hidden = nn.Linear(conv, hidden)
        self.out = nn.Linear(hidden, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.hidden(self.norm(self.conv(x)).relu().mean((2, 3))).relu())


def data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 1, 5, 5, generator=generator).double(), torch.randint(3, (16,), generator=generator)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> None:
    x, y = data(seed)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def dense(dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


class Lamb(torch.optim.Optimizer):
    """Adam whose step is scaled by the norms of weight and update (You et al. 2020), as written in many a trainer."""

    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                state["step"] += 1
                state["exp_avg"].lerp_(p.grad, 0.1)
                state["exp_avg_sq"].lerp_(p.grad.square(), 0.01)
                update = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + 1e-6)
                state["trust"] = p.norm() / update.norm().clamp(min=1e-12)
                p.sub_(update * state["trust"], alpha=group["lr"])


OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.01, amsgrad=True),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.01),
    "nadam": lambda ps: torch.optim.NAdam(ps, lr=0.01),
    "radam": lambda ps: torch.optim.RAdam(ps, lr=0.01),
    "adamax": lambda ps: torch.optim.Adamax(ps, lr=0.01),
    "adadelta": lambda ps: torch.optim.Adadelta(ps),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.01, centered=True, momentum=0.5),
    "rprop": lambda ps: torch.optim.Rprop(ps, lr=0.01),
    "asgd": lambda ps: torch.optim.ASGD(ps, lr=0.01),
    "adafactor": lambda ps: torch.optim.Adafactor(ps, lr=0.01),
    "lamb": Lamb,
}


def small_twin(model: Net, optimizer, make, removed: dict[str, list[int]]) -> tuple[Net, torch.optim.Optimizer]:
    """A small network built as such, with the weights and the state that `removed` leaves, cut here by hand."""
    stays = {name: [i for i in range(WIDTH) if i not in removed.get(name, [])] for name in ("conv", "hidden")}
    dims = {"conv": ("conv", None), "norm": ("conv", None), "hidden": ("hidden", "conv"), "out": (None, "hidden")}

    def cut(name: str, tensor: torch.Tensor, full: torch.Size) -> torch.Tensor:
        for dim, group in enumerate(dims[name.split(".")[0]]):
            if group and dim < tensor.dim() and tensor.shape[dim] == full[dim] and full[dim] > 1:
                tensor = tensor[(slice(None),) * dim + (stays[group],)]
        return tensor.clone()

    small = Net(len(stays["conv"]), len(stays["hidden"])).double()
    small.load_state_dict({name: cut(name, x, x.shape) if x.dim() else x for name, x in model.state_dict().items()})
    twin = make(small.parameters())
    for (name, parameter), own in zip(model.named_parameters(), small.parameters(), strict=True):
        for key, value in optimizer.state[parameter].items():
            per_value = isinstance(value, torch.Tensor) and value.dim()
            twin.state[own][key] = cut(name, value, parameter.shape) if per_value else copy.deepcopy(value)
    return small, twin


@settings(max_examples=4, deadline=None)
@given(
    conv=st.sets(st.integers(0, WIDTH - 1), max_size=WIDTH - 1),
    hidden=st.sets(st.integers(0, WIDTH - 1), max_size=WIDTH - 1),
    steps=st.integers(1, 3),
)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_step_after_pruning_is_the_step_of_a_model_that_was_small_from_the_start(make, conv, hidden, steps):
    model = dense()
    optimizer = make(model.parameters())
    for number in range(steps):
        step(model, optimizer, number)
    removed = {name: sorted(gone) for name, gone in (("conv", conv), ("hidden", hidden)) if gone}
    small, twin = small_twin(model, optimizer, make, removed)
    prune_(model, PruningPlan(removed), discover(model, data()[0]), optimizer=optimizer)
    for number in range(2):
        step(model, optimizer, 10 + number)
        step(small, twin, 10 + number)
    for (name, ours), theirs in zip(model.named_parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=name)


def test_factored_state_without_a_kept_dimension_is_cut_by_rows_and_columns():
    model = dense()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weight = model.hidden.weight
    rows, columns = torch.arange(12.0), torch.arange(100.0, 112.0)
    optimizer.state[weight] = {"exp_avg_sq_row": rows.clone(), "exp_avg_sq_col": columns.clone()}
    prune_(model, PruningPlan({"hidden": [0], "conv": [1, 2]}), discover(model, data()[0]), optimizer=optimizer)
    assert optimizer.state[weight]["exp_avg_sq_row"].tolist() == rows[1:].tolist()
    assert optimizer.state[weight]["exp_avg_sq_col"].tolist() == [100.0, *columns[3:].tolist()]


def averages():
    ema_pytorch = pytest.importorskip("ema_pytorch")
    return {
        "swa": lambda model: AveragedModel(model),
        "ema": lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
        "ema_pytorch": lambda model: ema_pytorch.EMA(model, beta=0.9, update_after_step=0, update_every=1),
        "ema_pytorch, model outside": lambda model: ema_pytorch.EMA(
            model, beta=0.9, update_after_step=0, update_every=1, include_online_model=False
        ),
    }


@pytest.mark.parametrize("name", averages())
def test_an_average_is_the_average_of_the_sliced_weights(name):
    model = dense()
    average = averages()[name](model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    update = getattr(average, "update_parameters", None) or (lambda _: average.update())
    for number in range(4):
        step(model, optimizer, number)
        update(model)
    inside = Along.of(model, average).averages[0]
    before = {key: value.clone() for key, value in inside.state_dict().items()}
    prune_(
        model, PruningPlan({"hidden": [0, 5], "conv": [3]}), discover(model, data()[0]), optimizer=[optimizer, average]
    )
    hidden, conv = [i for i in range(12) if i not in (0, 5)], [i for i in range(12) if i != 3]
    assert torch.equal(inside.hidden.weight, before["hidden.weight"][hidden][:, conv])
    assert torch.equal(inside.norm.running_var, before["norm.running_var"][conv])
    assert inside.hidden.out_features == 10
    assert len(pruning_history(inside)) == 1
    step(model, optimizer, 9)
    update(model)
    inside(data()[0])


def test_a_repair_moves_an_average_by_as_much_as_the_weights():
    model = dense()
    average = AveragedModel(model)
    with torch.no_grad():
        average.module.out.weight.add_(1.0)
    new = model.out.weight.detach() * 3
    prune_(
        model,
        PruningPlan({"hidden": [0]}),
        discover(model, data()[0]),
        optimizer=average,
        repair={"out.weight": new},
    )
    torch.testing.assert_close(average.module.out.weight, new[:, 1:] + 1.0)
    torch.testing.assert_close(model.out.weight.detach(), new[:, 1:])


def test_masters_in_higher_precision_that_an_optimizer_steps_are_cut_with_their_state():
    model = dense(torch.bfloat16)
    masters = [parameter.detach().float().requires_grad_() for parameter in model.parameters()]
    optimizer = torch.optim.Adam(masters, lr=0.01)
    x, y = data()
    for _ in range(2):
        nn.functional.cross_entropy(model(x.bfloat16()), y).backward()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            master.grad, parameter.grad = parameter.grad.float(), None
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, model.parameters(), strict=True):
                parameter.copy_(master)
    moments = optimizer.state[masters[4]]["exp_avg"].clone()
    prune_(model, PruningPlan({"hidden": [0, 1]}), discover(model, x.bfloat16()), optimizer=optimizer)
    for master, parameter in zip(masters, model.parameters(), strict=True):
        assert torch.equal(master.bfloat16(), parameter)
    assert torch.equal(optimizer.state[masters[4]]["exp_avg"], moments[2:])


def test_several_optimizers_each_keep_the_state_of_their_own_parameters():
    model = dense()
    one = torch.optim.SGD([*model.conv.parameters(), *model.norm.parameters()], lr=0.1, momentum=0.9)
    other = torch.optim.Adam([*model.hidden.parameters(), *model.out.parameters()])
    for number in range(2):
        step(model, one, number)
        other.step()
    prune_(model, PruningPlan({"conv": [0], "hidden": [1]}), discover(model, data()[0]), optimizer=[one, other])
    assert one.state[model.conv.weight]["momentum_buffer"].shape == model.conv.weight.shape
    assert other.state[model.hidden.weight]["exp_avg"].shape == model.hidden.weight.shape
    step(model, one)
    other.step()


def test_a_schedule_of_the_learning_rate_goes_on_where_it_was():
    rates = []
    for pruned in (False, True):
        model = dense()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
        for number in range(8):
            step(model, optimizer, number)
            schedule.step()
            if pruned and number == 3:
                prune_(model, PruningPlan({"hidden": [0]}), discover(model, data()[0]), optimizer=optimizer)
        rates.append(schedule.get_last_lr())
    assert rates[0] == rates[1]


def test_a_dry_run_and_a_failed_proof_leave_every_companion_as_it_was(monkeypatch):
    model = dense()
    average = AveragedModel(model)
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer)
    neurons = discover(model, data()[0])
    before = everything(model, optimizer), everything(average)
    check(model, PruningPlan({"hidden": [0]}), neurons, optimizer=[optimizer, average])
    assert (everything(model, optimizer), everything(average)) == before

    def disproved(*_: object) -> None:
        raise VerificationError("no", hint="none")

    monkeypatch.setattr("pruner.apply.compare", disproved)
    with pytest.raises(VerificationError):
        prune_(model, PruningPlan({"hidden": [0]}), neurons, optimizer=[optimizer, average])
    assert (everything(model, optimizer), everything(average)) == before


def test_the_engine_restores_averages_and_masters_with_the_model():
    model = dense()
    average = AveragedModel(model)
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer)
    engine = PruningEngine()
    engine.update_config(**{"logging.log_to_console": False})
    discover(model, data()[0])

    def values() -> list[torch.Tensor]:
        state = [x for of in optimizer.state.values() for x in of.values()]
        return [x.clone() for x in (*model.state_dict().values(), *average.state_dict().values(), *state)]

    before = values()
    engine.backup(model, [optimizer, average])
    engine.prune_by_magnitude(model, 0.3, optimizer=[optimizer, average])
    assert average.module.hidden.out_features == model.hidden.out_features < WIDTH
    engine.restore(model)
    assert average.module.hidden.out_features == WIDTH
    assert all(torch.equal(now, then) for now, then in zip(values(), before, strict=True))
    step(model, optimizer)


@pytest.mark.parametrize(
    ("companion", "message"),
    [
        (lambda: AveragedModel(nn.Linear(2, 2)), "holds no model of the names and shapes"),
        (lambda: "adam", "str is neither an optimizer nor an average"),
        (lambda: torch.optim.SGD(Net().parameters(), lr=0.1), "holds none of this model's parameters"),
    ],
)
def test_what_has_nothing_to_do_with_the_model_is_refused(companion, message):
    model, other = dense(), companion()
    neurons = discover(model, data()[0])
    before = everything(model)
    with pytest.raises(PlanError, match=message):
        prune_(model, PruningPlan({"hidden": [0]}), neurons, optimizer=other)
    assert everything(model) == before
