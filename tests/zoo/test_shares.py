"""How much of a model is prunable, counted by hand."""

import torch
from benchmarks.zoo.forward import Seen, outputs
from benchmarks.zoo.shares import Shares, shares
from torch import nn

from tracker import discover


def counted_in(model: nn.Module, x: torch.Tensor) -> Shares:
    with Seen().looking(x) as seen:
        outputs(model, (x,), {})
    return shares(model, discover(model, x), seen)


def test_a_perceptron() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    counted = counted_in(model, torch.randn(2, 4))
    assert counted.prunable == 4 * 6 + 6 + 6 * 3
    assert (counted.refused, counted.embedding) == (0, 0)
    assert counted.residual + counted.output == 3  # the bias of the output
    assert counted.share_beside_residual == 1.0


def test_the_numbers_add_up_and_embeddings_stand_aside() -> None:
    model = nn.Sequential(nn.Embedding(10, 8), nn.LayerNorm(8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10))
    counted = counted_in(model, torch.randint(0, 10, (2, 5)))
    assert counted.embedding == 80
    assert (counted.prunable, counted.output) == (8 * 12 + 12 + 12 * 10, 0)
    parts = (counted.prunable, counted.residual, counted.refused, counted.output, counted.embedding)
    assert sum(parts) == sum(parameter.numel() for parameter in model.parameters())


def test_what_is_refused_lowers_the_share() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.middle, self.leave = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.enter(x).relu().sort(-1).values
            return self.leave(self.middle(hidden).relu())

    model = Picky()
    counted = counted_in(model, torch.randn(2, 4))
    assert counted.refused == 4 * 6 + 6  # what is sorted, with its bias
    assert counted.share_beside_residual < 1


def test_what_reads_inputs_and_writes_outputs_is_neither_prunable_nor_refused() -> None:
    counted = counted_in(nn.Linear(4, 3), torch.randn(2, 4))
    assert (counted.output, counted.residual, counted.refused) == (12, 3, 0)


def test_what_never_runs_stands_aside() -> None:
    class ForTraining(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave, self.aside = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.enter(x).relu()
            return self.leave(hidden) + (self.aside(hidden) if self.training else 0)

    counted = counted_in(ForTraining(), torch.randn(2, 4))
    assert counted.unused == 6 * 3 + 3
    assert counted.share_beside_residual == 1.0
