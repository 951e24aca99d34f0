"""Removing neurons by number."""

from copy import deepcopy

import pytest
import torch
from tests.pruner import small_cnn
from tests.pruner.small_cnn import SmallCNN

from pruner.core import NeuronPruner
from pruner.masking import masked
from pruner.plan import PruningPlan
from tracker.discover import discover
from tracker.errors import PlanError, UnknownLayerError


def found() -> SmallCNN:
    model = small_cnn.model()
    discover(model, small_cnn.images())
    return model


def test_one_neuron_goes_and_the_model_is_the_masked_one() -> None:
    model, x = found(), small_cnn.images(seed=7)
    with masked(model, PruningPlan({"conv2": [9]})), torch.no_grad():
        expected = model(x)
    result = NeuronPruner().prune_neuron(model, "conv2", 9)
    assert (result.neurons_before, result.neurons_after) == (202, 201)
    assert model.conv2.weight.shape[0] == 63
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)


def test_several_layers_at_once_and_again() -> None:
    model = found()
    pruner = NeuronPruner()
    assert pruner.prune_neurons(model, {"conv1": [0, 5], "fc1": [7]}).neurons_after == 199
    assert pruner.prune_neurons(model, {"conv1": [0, 5], "fc1": [7]}).neurons_after == 196
    assert model.conv1.weight.shape[0] == 6


def test_a_dry_run_says_the_same_and_changes_nothing() -> None:
    model = found()
    before = deepcopy(model.state_dict())
    dry = NeuronPruner().prune_neurons(model, {"fc1": range(10)}, dry_run=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert NeuronPruner().prune_neurons(model, {"fc1": range(10)}) == dry


def test_the_optimizer_goes_along() -> None:
    model = found().train()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        model(small_cnn.images()).sum().backward()
        optimizer.step()
        NeuronPruner().prune_neuron(model, "fc1", 0, optimizer=optimizer)
    assert optimizer.state[model.fc1.weight]["exp_avg"].shape == model.fc1.weight.shape == (126, 256)


@pytest.mark.parametrize(
    ("layer", "neurons", "error", "words"),
    [
        ("conv11", [0], UnknownLayerError, "Did you mean 'conv1'"),
        ("fc2", [0], UnknownLayerError, "model's output"),
        ("conv1", [10], PlanError, "out of range"),
        ("conv1", [0, 0], PlanError, "more than once"),
        ("conv1", range(10), PlanError, "removes all 10"),
    ],
)
def test_bad_numbers_and_names_change_nothing(
    layer: str, neurons: list[int], error: type[Exception], words: str
) -> None:
    model = found()
    before = deepcopy(model.state_dict())
    with pytest.raises(error, match=words):
        NeuronPruner().prune_neurons(model, {layer: neurons})
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
