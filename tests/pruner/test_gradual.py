"""Pruning while a model trains, by steps, and going on in another process."""

import copy
import doctest
import json

import pytest
import torch
from torch import nn

from pruner import GradualPruning, create_default_config, gradual
from pruner.gradual import reshape
from tracker.errors import PlanError

QUIET = create_default_config().update(logging={"log_to_console": False}, validation={"dry_run_first": False})


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Dropout(0.1), nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 3))


def train(model, optimizer, pruning, first: int, last: int) -> None:
    pruning.start()
    for number in range(first, last + 1):
        generator = torch.Generator().manual_seed(number)
        torch.manual_seed(number)
        x = torch.randn(16, 6, generator=generator)
        loss = nn.functional.cross_entropy(model(x), (x.sum(1) > 0).long() + (x[:, 0] > 1).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pruning.step(number)


def run(**options):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    given = {"begin": 4, "every": 3, "end": 13, "config": QUIET, "example": torch.randn(2, 6)} | options
    return model, optimizer, GradualPruning(model, optimizer=optimizer, **given)


def hidden(model: nn.Sequential) -> int:
    return model[0].out_features + model[3].out_features


def test_neurons_go_after_the_steps_of_the_schedule_and_no_others():
    sizes, logged = [], []
    model, optimizer, pruning = run(sparsity=0.5, log=lambda numbers, step: logged.append((step, numbers)))
    for number in range(1, 18):
        train(model, optimizer, pruning, number, number)
        sizes.append(hidden(model))
    changed = [number + 1 for number in range(1, 17) if sizes[number] != sizes[number - 1]]
    assert changed == [4, 7, 10, 13] == [step for step, _ in logged] == pruning.events
    assert pruning.finished
    assert sizes[-1] == 32
    assert logged[-1][1] == {
        "pruning/sparsity_target": 0.5,
        "pruning/sparsity": 0.5,
        "pruning/neurons": 32.0,
        "pruning/parameters": float(sum(p.numel() for p in model.parameters())),
    }


class Grid(nn.Module):
    """Nothing about its layers says that it wants four dimensions of this length."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 16), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x.reshape(2, 3, 7, 5)).relu())


def test_the_example_serves_also_where_nobody_called_start():
    model = Grid()
    pruning = GradualPruning(model, 0.5, begin=1, every=1, end=1, config=QUIET, example=torch.randn(2, 3, 7, 5))
    pruning.step(1)
    assert model.up.out_features == 8


def test_a_target_is_met_in_parameters():
    model, optimizer, pruning = run(target={"params": 0.4})
    before = sum(p.numel() for p in model.parameters())
    train(model, optimizer, pruning, 1, 14)
    assert sum(p.numel() for p in model.parameters()) / before == pytest.approx(0.4, abs=0.03)


def test_what_was_watched_before_a_removal_counts():
    def watched(watch: int) -> list[int]:
        model, optimizer, pruning = run(sparsity=0.5, watch=watch)
        with torch.no_grad():
            model[0].bias[:8] = -50.0  # dead, and as heavy as any
            model[0].weight[:8] *= 3
        train(model, optimizer, pruning, 1, 4)
        removed = {name: layer["removed"] for name, layer in pruning.state_dict()["history"][0].items()}
        return [neuron for neuron in removed.get("0", ()) if neuron < 8]

    assert watched(0) == []
    assert len(watched(3)) == 8


@pytest.mark.parametrize("killed_after", [2, 5, 7, 9, 13])
@pytest.mark.parametrize("watch", [0, 2])
def test_a_killed_run_that_goes_on_gives_the_same_model(killed_after, watch):
    model, optimizer, pruning = run(sparsity=0.6, watch=watch)
    train(model, optimizer, pruning, 1, killed_after)
    saved = json.loads(json.dumps(pruning.state_dict(), allow_nan=False))
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, pruning, killed_after + 1, 16)

    again, other, resumed = run(sparsity=0.6, watch=watch)
    resumed.load_state_dict(saved)
    again.load_state_dict(weights)
    other.load_state_dict(state)
    train(again, other, resumed, killed_after + 1, 16)
    assert resumed.finished
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_dense_model_gets_the_shapes_of_a_saved_state():
    model, optimizer, pruning = run(sparsity=0.5)
    train(model, optimizer, pruning, 1, 13)
    other = net()
    gradual.current_map(other, [torch.randn(2, 6)])
    reshape(other, pruning.state_dict())
    other.load_state_dict(model.state_dict())
    with pytest.raises(PlanError, match="has lost neurons already"):
        reshape(other, pruning.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.5, "target": {"params": 0.5}}, "either a sparsity or a target"),
        ({}, "either a sparsity or a target"),
        ({"sparsity": 1.5}, "not a number from 0 to 1"),
        ({"sparsity": 0.5, "end": 2}, "end = 2 is before begin = 4"),
        ({"sparsity": 0.5, "every": 0}, "every = 0 is no number of steps"),
        ({"sparsity": 0.5, "begin": 1.5}, "begin = 1.5 is no number of steps"),
        ({"target": {"latency": 0.5}}, "target of latency is not for training"),
        ({"sparsity": 0.5, "schedule": "stairs"}, "no known schedule"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(options, message):
    with pytest.raises(PlanError, match=message):
        run(**options)


def test_a_state_of_another_schedule_or_version_is_refused():
    model, optimizer, pruning = run(sparsity=0.5)
    train(model, optimizer, pruning, 1, 5)
    _, _, other = run(sparsity=0.6)
    with pytest.raises(PlanError, match="another schedule"):
        other.load_state_dict(pruning.state_dict())
    other = net()
    wrong = GradualPruning(other, 0.5, begin=4, every=3, end=13, config=QUIET, example=torch.randn(2, 6))
    wrong.load_state_dict(pruning.state_dict())
    wrong.load_state_dict(pruning.state_dict())  # the same neurons are gone: nothing to do
    changed = json.loads(json.dumps(pruning.state_dict()))
    first = next(iter(changed["history"][0]))
    changed["history"][0][first]["removed"] = [n + 1 for n in changed["history"][0][first]["removed"]]
    with pytest.raises(PlanError, match="has lost neurons already"):
        wrong.load_state_dict(changed)
    _, _, other = run(sparsity=0.6)
    with pytest.raises(PlanError, match="version 9"):
        other.load_state_dict(pruning.state_dict() | {"version": 9})


def test_the_docstring_runs():
    globs = {"torch": torch, "nn": nn, "GradualPruning": GradualPruning, "quiet": QUIET}
    for test in doctest.DocTestFinder().find(GradualPruning, globs=globs):
        assert doctest.DocTestRunner().run(test).failed == 0
