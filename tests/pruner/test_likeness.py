import copy

import torch
from torch import nn

from pruner.likeness import difference_between
from tracker.discover import discover


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def test_a_copy_does_not_differ_and_another_activation_does():
    model = network()
    other = copy.deepcopy(model)
    assert difference_between(model, other) == ""
    other[1] = nn.GELU()
    assert difference_between(model, other).startswith("its output differs by ")


def test_the_call_that_the_model_was_discovered_with_is_asked():
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor, factor: float) -> torch.Tensor:
            out: torch.Tensor = self.fc(x) * factor
            return out

    model = Doubled()
    other = copy.deepcopy(model)
    assert "no example inputs are known" in difference_between(model, other)
    discover(model, (torch.randn(2, 3), 2.0))
    assert difference_between(model, other) == ""
    with torch.no_grad():
        other.fc.weight += 1
    assert difference_between(model, other) != ""


def test_a_model_without_an_output_of_that_name_differs():
    class Renamed(nn.Sequential):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"answer": super().forward(x)}

    model = network()
    assert "differs by inf" in difference_between(model, Renamed(*copy.deepcopy(model)))
