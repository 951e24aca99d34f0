import copy

import pytest
import torch
from torch import Tensor, nn

from tracker.activity import observe
from tracker.batches import evaluating
from tracker.compiled import as_written, drop_compiled_code
from tracker.discover import discover


class Counting:
    """A compiler that counts how often it is asked, and then compiles nothing."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()


class MLP(nn.Module):
    """Of a class of one's own: PyTorch does not compile its own classes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


def test_nothing_is_compiled_within_the_block() -> None:
    compiler, x = Counting(), torch.randn(2, 5)
    model = MLP()
    model.compile(backend=compiler)
    with as_written():
        model(x)
    assert compiler.graphs == 0
    model(x)
    assert compiler.graphs == 1
    with as_written(), torch.no_grad():
        model(torch.randn(7, 5))
    assert compiler.graphs == 1
    model(x)
    assert compiler.graphs == 1


def test_looking_at_a_compiled_model_compiles_nothing_of_it() -> None:
    compiler, x = Counting(), torch.randn(2, 5)
    model = MLP()
    plain = copy.deepcopy(model)
    model.compile(backend=compiler)
    model(x)
    neurons = discover(model, x)
    activity = observe(model, [x])
    with evaluating(model):
        model(x)
    assert compiler.graphs == 1
    assert neurons.to_json() == discover(plain, x).to_json()
    assert activity.to_json() == observe(plain, [x]).to_json()


def test_compiled_code_is_dropped() -> None:
    compiler, x = Counting(), torch.randn(2, 5)
    model = torch.compile(MLP(), backend=compiler)
    for _ in range(2):
        model(x)
    assert compiler.graphs == 1
    drop_compiled_code()
    for _ in range(2):
        model(x)
    assert compiler.graphs == 2
