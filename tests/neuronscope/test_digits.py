"""The digits network: what the demo prunes."""

import pytest
import torch
from torch import nn

from neuronscope.data_names import digits
from neuronscope.digits import DigitsCNN, train, trained_cnn
from tracker import discover


def test_every_neuron_can_be_removed_exactly() -> None:
    neurons = discover(DigitsCNN().eval(), torch.zeros(2, 1, 8, 8))
    assert neurons.neurons == 1024
    assert all(group.exact for group in neurons)
    assert [entry.name for entry in neurons.frozen] == ["fc2"]


def test_it_has_what_the_demo_promises() -> None:
    kinds = {type(module) for module in DigitsCNN().modules()}
    assert kinds >= {nn.Conv2d, nn.BatchNorm2d, nn.Linear}


def test_training_repeats_itself_and_leaves_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    one, other = trained_cnn(epochs=1), trained_cnn(epochs=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert not one.training
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_another_seed_gives_another_network() -> None:
    weights = [trained_cnn(epochs=1, seed=seed).fc2.weight for seed in (0, 1)]
    assert not torch.equal(*weights)


def test_a_checkpoint_that_is_loaded_trains_nothing() -> None:
    with torch.device("meta"):
        model = trained_cnn()
    assert all(parameter.is_meta for parameter in model.parameters())


def test_training_leaves_scales_at_exactly_zero() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10))
    train(model, digits(batch_size=256)[0], epochs=12)
    scales = model[1].weight
    assert 0 < int((scales == 0).sum()) < 32
    assert not model.training


@pytest.mark.parametrize("batch", [1, 3])
def test_images_to_logits(batch: int) -> None:
    assert DigitsCNN().eval()(torch.rand(batch, 1, 8, 8)).shape == (batch, 10)
