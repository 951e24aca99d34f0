"""The map of a model as it is now, after it was pruned too."""

import pytest
import torch
from tests.pruner import small_cnn
from torch import Tensor, nn

from pruner.current_map import current_map
from pruner.engine import PruningEngine
from tracker.discover import discover
from tracker.errors import DiscoveryError


class TwoInputs(nn.Module):
    """A model whose inputs nobody can guess."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(3, 8), nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, *, y: Tensor) -> Tensor:
        answer: Tensor = self.out(torch.relu(self.left(x) * self.right(y)))
        return answer


def test_after_pruning_the_inputs_of_the_first_discovery_are_used_again() -> None:
    model = TwoInputs()
    with pytest.raises(DiscoveryError, match="example_inputs"):
        current_map(model)
    first = discover(model, torch.randn(4, 3), {"y": torch.randn(4, 5)})
    assert current_map(model) is first
    engine = PruningEngine()
    assert engine.prune_by_magnitude(model, 0.5)["neurons_after"] == 4
    assert current_map(model).neurons == 4
    assert engine.prune_by_magnitude(model, 0.75)["neurons_after"] == 2


def test_inputs_come_from_the_loader_where_nothing_else_is_known() -> None:
    model = TwoInputs()
    batch = {"x": torch.randn(4, 3), "y": torch.randn(4, 5)}
    assert current_map(model, [batch]).neurons == 8


def test_or_are_guessed() -> None:
    assert current_map(small_cnn.model()).neurons == 202
