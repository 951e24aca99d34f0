"""What a removal does to shapes and integers, and what the trial refuses."""

from typing import Any

import pytest
import torch
from tests.tracker.equivalence import check_exact
from tests.tracker.samples import Sample, reason, sizes
from torch import Tensor, nn
from torch.nn import functional as F

from tracker import discover, trial
from tracker.discover import example_call
from tracker.example_inputs import Call


class Small(nn.Module):
    """A convolution, a norm and a linear layer that reads its pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc1, self.fc2 = (
            nn.Conv2d(3, 8, 1),
            nn.BatchNorm2d(8),
            nn.Linear(32, 6),
            nn.Linear(6, 2),
        )
        self.same = self.fc1

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.relu(self.same(self.norm(self.conv(x)).flatten(1))))
        return result


CALL = Call((torch.zeros(2, 3, 2, 2),))
ROWS = Call((torch.zeros(2, 4),))


def test_shapes_of_everything_that_changes_under_all_names() -> None:
    model = Small()
    found = discover(model, CALL.args)
    shapes = trial.sliced_shapes(model, found, {"conv": [0, 3], "fc1": 1})
    assert shapes == {
        "conv.weight": (6, 3, 1, 1),
        "conv.bias": (6,),
        **{f"norm.{name}": (6,) for name in ("weight", "bias", "running_mean", "running_var")},
        "fc1.weight": (5, 24),
        "same.weight": (5, 24),
        "fc1.bias": (5,),
        "same.bias": (5,),
        "fc2.weight": (2, 5),
    }
    assert trial.sliced_shapes(model, found, {"conv": 0, "fc1": []}) == {}


def test_integers_before_and_after() -> None:
    model = Small()
    found = discover(model, CALL.args)
    changes = {(module, path): (old, new) for module, path, old, new in trial.integers_after(model, found, {"conv": 3})}
    assert changes == {
        ("conv", ("out_channels",)): (8, 5),
        ("norm", ("num_features",)): (8, 5),
        ("fc1", ("in_features",)): (32, 20),
    }
    assert model.conv.out_channels == 8


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_removal_that_works(count: int) -> None:
    model = Small()
    found = discover(model, CALL.args)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert trial.run(model, found, {"conv": count}, CALL) is None
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.conv.out_channels == 8


def test_a_removal_that_fails_says_what_and_where() -> None:
    model = Small()
    found = discover(model, CALL.args)
    failure = trial.run(model, found, {"conv": 1}, Call((torch.zeros(2, 3, 4, 4),)))
    assert failure is not None
    assert "the code fails at test_trial.py" in failure
    assert "RuntimeError" in failure


def test_a_removal_that_changes_a_number_is_a_failure() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        hidden = F.relu(m.a(x))
        result: Tensor = m.b(hidden * 2 if int(hidden.shape[1]) == 1 else hidden)
        return result

    model, call = Sample(compute, a=nn.Linear(6, 8), b=nn.Linear(8, 3)), Call((torch.zeros(2, 6),))
    found = discover(model, *call.args)
    assert sizes(found) == {"a": 8}  # nothing tells in advance that a single neuron is another case
    assert trial.run(model, found, {"a": 6}, call) is None
    failure = trial.run(model, found, {"a": 7}, call)
    assert failure is not None
    assert "the code computes something else without some of them, after test_trial.py" in failure


def test_only_the_layers_that_break_the_code_are_refused() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        hidden = F.relu(m.layers[0](x))
        checked = m.layers[1](hidden)
        if int(checked.shape[1]) not in m.allowed:
            raise ValueError("a width that nobody expects")
        result: Tensor = m.layers[3](F.relu(m.layers[2](F.relu(checked))))
        return result

    layers = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)])
    found = check_exact(Sample(compute, layers=layers, allowed=frozenset({8})), torch.randn(2, 6))
    assert sizes(found) == {"layers.0": 8, "layers.2": 8}
    assert "a width that nobody expects" in reason(found, "layers.1")


def test_values_are_looked_at_on_copies() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        m.steps.add_(1)
        x += 1
        if m.a(x).abs().sum().item() < 0:
            raise ValueError("never")
        result: Tensor = m.b(F.relu(m.a(x)))
        return result

    model, x = Sample(compute, a=nn.Linear(6, 8), b=nn.Linear(8, 3)), torch.zeros(2, 6)
    model.register_buffer("steps", torch.zeros(2))
    found = discover(model, x)
    assert trial.run(model, found, {"a": 4}, Call((x,))) is None
    assert x.sum() == 0
    assert model.get_buffer("steps").sum() == 0


def test_a_number_that_changed_after_discovery_is_no_reason_to_refuse() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.scale = nn.Linear(4, 6), nn.Linear(6, 3), 0.5

        def forward(self, x: Tensor) -> Tensor:
            scale = self.scale if self.scale > 0 else 1 / self.fc1.weight.shape[0]
            result: Tensor = self.fc2(self.fc1(x)) * scale
            return result

    model = Scaled()
    found = discover(model, ROWS.args)
    call = example_call(model)
    assert call is not None
    assert trial.run(model, found, {"fc1": 2}, call) is None
    model.scale = 2.0
    assert trial.run(model, found, {"fc1": 2}, call) is None
    model.scale = -1.0
    assert "a number follows its size" in str(trial.run(model, found, {"fc1": 2}, call))
