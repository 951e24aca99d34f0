"""Outputs, their difference, and what is seen while a model runs."""

import pytest
import torch
from benchmarks.zoo import plain_models
from benchmarks.zoo.forward import Seen, difference, outputs
from benchmarks.zoo.randomise import in_dtype, randomise, uninitialised
from torch import Tensor, nn


def test_the_difference_is_relative_to_the_largest_value_and_the_worst_of_all_outputs() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])
    assert difference([a, a], [a, b]) == 0.5
    assert difference([a], [a[:1]]) == float("inf")
    assert difference([a], [a, a]) == float("inf")
    assert difference([torch.tensor([float("nan")])], [torch.ones(1)]) == float("inf")


@pytest.mark.parametrize(
    ("name", "attends"),
    [("mlp", False), ("unet", False), ("experts", False), ("handwritten_attention", True), ("nano_gpt", True)],
)
def test_attention_is_seen(name: str, attends: bool) -> None:
    example = getattr(plain_models, name)()
    with Seen().looking() as seen:
        outputs(example.model, example.args, example.kwargs)
    assert seen.attention is attends


def test_casts_are_seen_where_they_happen() -> None:
    class Narrow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float().sigmoid()

    model = nn.Sequential(nn.Linear(3, 3), Narrow())
    with Seen().looking() as seen:
        outputs(model.double(), (torch.randn(1, 3, dtype=torch.float64),), {})
    assert list(seen.casts) == ["float32 in Narrow"]


def test_everything_is_random_and_always_the_same() -> None:
    def made() -> nn.Module:
        with uninitialised():
            model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.LayerNorm(4))
        randomise(model)
        return model

    first, second = made().state_dict(), made().state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])
        if tensor.is_floating_point():
            assert len(tensor.unique()) == tensor.numel(), name
    assert (first["1.running_var"] > 0).all()


def test_inputs_of_every_shape_change_their_type() -> None:
    scene = plain_models.Scene(torch.ones(1), torch.ones(1, dtype=torch.int64))
    changed = in_dtype({"scene": scene, "rest": [torch.ones(1), (torch.ones(1), None)]}, torch.float64)
    assert changed["scene"].image.dtype == changed["rest"][0].dtype == changed["rest"][1][0].dtype == torch.float64
    assert changed["scene"].words.dtype == torch.int64
