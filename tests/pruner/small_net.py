"""Two layers, eight neurons, three of which go: what unusual models are made of."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pruner.apply import prune_
from pruner.plan import PruningPlan
from tracker.discover import discover

GONE, KEPT = [1, 4, 6], [0, 2, 3, 5, 7]
PLAN = PruningPlan({"fc1": GONE})
X = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


def net(dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


def expected(model: Net, x: Tensor = X) -> Tensor:
    """What the model without `GONE` says, from the values of its weights now."""
    first, second = ((layer.weight.detach().clone(), layer.bias.detach().clone()) for layer in (model.fc1, model.fc2))
    return linear(torch.relu(linear(x, first[0][KEPT], first[1][KEPT])), second[0][:, KEPT], second[1])


def pruned(model: nn.Module, x: Tensor = X, plan: PruningPlan = PLAN) -> Any:
    """Discover and prune; the proof must have been made, and hold."""
    result = prune_(model, plan, discover(model, x))
    assert result.proof is not None, result.unproven
    assert result.proof.holds
    return result


def says(model: nn.Module, wanted: Tensor, x: Tensor = X) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(x), wanted)
