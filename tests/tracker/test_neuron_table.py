"""The table of a map fits a terminal and tells what a person wants to know."""

import torch
from torch import nn

from tracker import discover


def test_layers_readers_and_reasons_are_shown() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 5), nn.Linear(5, 2))
    lines = str(discover(model, torch.randn(2, 4))).splitlines()
    assert lines[0] == "Sequential: 11 neurons in 2 layers, 5 of them removed exactly"
    assert [line.split()[:4] for line in lines[2:4]] == [["0", "mlp", "6", "no"], ["2", "mlp", "5", "yes"]]
    assert "2 (its neurons are normalised together)" in lines[2]
    assert lines[-1].split(maxsplit=2) == ["3", "2", "is the model's output"]
    assert max(map(len, lines)) <= 120


def test_names_with_brackets_and_many_readers() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 6)
            self.heads = nn.ModuleList(nn.Linear(6, 2) for _ in range(5))

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            hidden = self.first(x)
            return [head(hidden) for head in self.heads]

    table = str(discover(Many(), torch.randn(2, 4)))
    assert "heads.0, heads.1, heads.2 and 2 more" in table
    two = nn.Sequential(nn.Linear(4, 8), nn.GLU(), nn.Linear(4, 2))
    found = discover(two, torch.randn(2, 4))
    assert "4 neurons in 1 layers" in str(found)
    assert str(found) == str(discover(two, torch.randn(2, 4)))
