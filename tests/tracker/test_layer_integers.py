"""What PyTorch's layers show of their sizes is true after a removal."""

from typing import Any

import pytest
import torch
from tests.tracker.equivalence import check_exact, draw, randomised, sliced
from tests.tracker.samples import sizes
from torch import Tensor, nn
from torch.nn import functional as F

C, T = nn.Conv2d, nn.ConvTranspose2d


@pytest.mark.parametrize(
    ("layer", "shown"),
    [
        (C(8, 8, 3), {"in_channels": ("weight", 1, 1), "out_channels": ("weight", 0, 1)}),
        (C(8, 8, 3, groups=8), dict.fromkeys(["in_channels", "out_channels", "groups"], ("weight", 0, 1))),
        (C(8, 8, 3, groups=2), {"in_channels": ("weight", 1, 2), "out_channels": ("weight", 0, 1)}),
        (T(8, 8, 3), {"in_channels": ("weight", 0, 1), "out_channels": ("weight", 1, 1)}),
        (T(8, 8, 3, groups=2), {"in_channels": ("weight", 0, 1), "out_channels": ("weight", 1, 2)}),
        (T(8, 8, 3, groups=8), dict.fromkeys(["in_channels", "out_channels", "groups"], ("weight", 0, 1))),
        (nn.BatchNorm2d(8), {"num_features": ("running_mean", 0, 1)}),
        (nn.BatchNorm2d(8, affine=False), {"num_features": ("running_mean", 0, 1)}),
        (nn.InstanceNorm2d(8, affine=True), {"num_features": ("weight", 0, 1)}),
        (nn.GroupNorm(8, 8), {"num_channels": ("weight", 0, 1), "num_groups": ("weight", 0, 1)}),
        (nn.PReLU(8), {"num_parameters": ("weight", 0, 1)}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)  # fmt: skip
def test_attributes_tell_the_shape_of_the_weights(layer: nn.Module, shown: dict[str, tuple[str, int, int]]) -> None:
    model = nn.Sequential(C(3, 8, 1), layer, nn.ReLU(), C(8, 2, 1))
    found = check_exact(model, torch.randn(2, 3, 6, 6), groups=["0"])
    for seed in range(3):
        cut = sliced(randomised(model), found, draw(found, seed))
        left: Any = cut.get_submodule("1")
        for attribute, (tensor, dim, times) in shown.items():
            assert getattr(left, attribute) == getattr(left, tensor).shape[dim] * times
        assert cut.get_submodule("0").out_channels == cut.get_parameter("0.weight").shape[0]
        assert cut.get_submodule("3").in_channels == cut.get_parameter("3.weight").shape[1]


def test_lookups_norms_and_recurrent_layers() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.inner, self.norm = nn.Embedding(9, 6), nn.Linear(6, 8), nn.LayerNorm(8)
            self.lstm, self.head = nn.LSTM(8, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, ids: Tensor) -> Tensor:
            result: Tensor = self.head(self.lstm(self.norm(self.inner(self.embed(ids))))[0])
            return result

    found = check_exact(Mixed(), torch.zeros(2, 4, dtype=torch.long))
    follows = {(integer.module, integer.path[0]): dict(integer.follows) for integer in found.integers}
    assert follows["embed", "embedding_dim"] == follows["inner", "in_features"] == {"embed": 1}
    assert follows["norm", "normalized_shape"] == follows["lstm", "input_size"] == {"inner": 1}
    assert follows["lstm", "hidden_size"] == follows["head", "in_features"] == {"lstm": 1}


def test_a_layer_that_computes_with_what_it_shows_keeps_the_number() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            scale: float = self.in_features**0.5
            return F.linear(x, self.weight, self.bias) / scale

    found = check_exact(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Scaled(8, 2)), torch.randn(2, 4))
    assert [group.size for group in found] == [8]
    assert any(integer.path[0] == "code_sizes" for integer in found.integers)


def test_a_layer_whose_attribute_means_something_else_keeps_it() -> None:
    last = nn.Linear(8, 2)
    last.in_features = 99
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), last)
    found = check_exact(model, torch.randn(2, 4))
    assert sizes(found) == {"0": 8}
    assert ("2", ("in_features",)) not in {(integer.module, integer.path) for integer in found.integers}
