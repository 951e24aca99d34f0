"""Layers as matrices: the matrix on the rows is what the layer writes."""

from typing import Any

import pytest
import torch
from tests.pruner import small_cnn
from torch import Tensor, nn

from pruner.compensation.consumers import Bias, consumers_of, input_rows, norms_behind, output_rows
from tracker.discover import discover


def one(model: nn.Module, x: Tensor, name: str) -> Any:
    neurons = discover(model, x)
    found = consumers_of(model, neurons, [group.name for group in neurons])
    return next(consumer for consumer in found.found if consumer.module == name)


@pytest.mark.parametrize(
    "second",
    [
        nn.Conv2d(6, 5, 3, padding=1),
        nn.Conv2d(6, 5, 3, stride=2, dilation=2, padding=(2, 1)),
        nn.Conv2d(6, 5, (1, 3), padding="same"),
    ],
)
def test_a_convolution_is_a_matrix_over_its_patches(second: nn.Conv2d) -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), second)
    x = torch.randn(3, 2, 9, 9)
    consumer = one(model, x, "2")
    inside = model[1](model[0](x))
    rows = input_rows(consumer, second, inside, None)
    written = output_rows(consumer, second, inside, second(inside), None)
    assert second.bias is not None
    torch.testing.assert_close(rows @ consumer.matrix(second.weight).T + second.bias, written, rtol=1e-4, atol=1e-5)
    some = torch.tensor([0, 5, 17])
    torch.testing.assert_close(input_rows(consumer, second, inside, some), rows[some])


def test_a_linear_layer_over_flattened_maps_has_several_columns_a_channel() -> None:
    model = small_cnn.model()
    consumer = one(model, small_cnn.images(), "fc1")
    assert consumer.columns["conv2"].shape == (small_cnn.CONV2, 4)
    assert consumer.bias == Bias("fc1.bias", 1)


def test_a_matrix_that_is_put_back_is_the_weight() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3))
    consumer = one(model, torch.randn(2, 2, 9, 9), "2")
    weight = model[2].weight.detach().clone()
    doubled = torch.zeros_like(weight)
    consumer.put(doubled, 2 * consumer.matrix(weight))
    torch.testing.assert_close(doubled, 2 * weight)


def test_a_grouped_convolution_is_several_consumers() -> None:
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 3, 1))
    x = torch.randn(2, 2, 9, 9)
    neurons = discover(model, x)
    found = [c for c in consumers_of(model, neurons, [g.name for g in neurons]).found if c.module == "2"]
    assert [consumer.outputs for consumer in found] == [(0, 2), (2, 4)]
    inside = model[1](model[0](x))
    for consumer in found:
        rows = input_rows(consumer, model[2], inside, None)
        written = output_rows(consumer, model[2], inside, model[2](inside), None)
        assert consumer.outputs is not None
        own = model[2].bias[consumer.outputs[0] : consumer.outputs[1]]
        torch.testing.assert_close(rows @ consumer.matrix(model[2].weight).T + own, written, rtol=1e-4, atol=1e-5)


def test_a_shared_weight_is_left_out_with_the_reason() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.relu(self.first(x))
            out: Tensor = self.a(hidden) + self.b(hidden)
            return out

    model = Twice()
    neurons = discover(model, torch.randn(5, 4))
    found = consumers_of(model, neurons, [group.name for group in neurons])
    assert not found.found
    assert "is shared" in " ".join(found.left_out.values())


def test_the_norm_behind_takes_the_constant() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3, bias=False), nn.BatchNorm2d(5)).eval()
    x = torch.randn(2, 2, 9, 9)
    assert norms_behind(model, ["2"], lambda: model(x)) == {"2": Bias("3.running_mean", -1)}
