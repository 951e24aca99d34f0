"""Weights kept as a direction and a length: what goes from the direction, the length makes up for."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

import pruner
from pruner import ExpansionPlan, PruningPlan, expand_, load_pruned, masked, prune_, save_pruned
from tracker import NeuronMap, discover
from tracker.errors import DiscoveryError, PlanError

norm = parametrizations.weight_norm


def perceptron() -> nn.Module:
    layers = [norm(nn.Linear(5, 12)), nn.ReLU(), norm(nn.Linear(12, 8)), nn.ReLU(), nn.Linear(8, 3)]
    return randomised(nn.Sequential(*layers))


def randomised(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter)
    return model.eval()


def temporal() -> tuple[nn.Module, Tensor]:
    """Dilated convolutions, as in WaveNet."""
    layers = [norm(nn.Conv1d(3, 16, 3, dilation=2)), nn.ReLU(), norm(nn.Conv1d(16, 16, 3)), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv1d(16, 2, 1)), torch.randn(2, 3, 30)


def generator() -> tuple[nn.Module, Tensor]:
    """As in HiFi-GAN: a transposed convolution has one norm for each channel that it reads."""
    up = [norm(nn.ConvTranspose1d(2**n, 2 ** (n - 1), 4, 2, 1)) for n in (4, 3)]
    layers = [norm(nn.Conv1d(4, 16, 7, padding=3)), nn.LeakyReLU(), up[0], nn.LeakyReLU(), up[1], nn.Tanh()]
    return nn.Sequential(*layers, norm(nn.Conv1d(4, 1, 7, padding=3))), torch.randn(2, 4, 10)


def positions() -> tuple[nn.Module, Tensor]:
    """As in wav2vec: a norm for each place of the kernel, over all channels."""
    middle = norm(nn.Conv1d(16, 16, 8, padding=4, groups=4), dim=2)
    return nn.Sequential(nn.Conv1d(4, 16, 1), nn.GELU(), middle, nn.GELU(), nn.Conv1d(16, 3, 1)), torch.randn(2, 4, 10)


def every_second(neurons: NeuronMap) -> PruningPlan:
    return PruningPlan({group.name: range(0, group.size, 2) for group in neurons})


@pytest.mark.parametrize("made", [temporal, generator, positions])
def test_what_stays_weighs_what_it_did(made: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    model, x = made()
    model, x = randomised(model).double(), x.double()
    dense = copy.deepcopy(model)
    neurons = discover(model, x)
    assert len(neurons) >= 2
    assert all(group.exact for group in neurons)
    with masked(model, every_second(neurons), neurons):
        expected = model(x)
    result = prune_(model, every_second(neurons), neurons)
    assert result.proof is not None
    assert result.proof.error < 1e-14
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    neurons = discover(dense, x)
    grown = expand_(dense, ExpansionPlan.to_sizes(neurons, {g.name: 2 * g.size for g in neurons}))
    assert grown.proof is not None
    assert grown.proof.error < 1e-14


def test_the_hook_of_old_does_the_same() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layers = [nn.utils.weight_norm(nn.Linear(*size)) for size in ((5, 12), (12, 8), (8, 3))]
    model = randomised(nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])).double()
    neurons = discover(model, torch.randn(4, 5).double())
    assert [(group.size, group.exact) for group in neurons] == [(12, True), (8, True)]
    result = prune_(model, every_second(neurons), neurons)
    assert result.proof is not None
    assert result.proof.error < 1e-14


def test_the_map_is_saved_with_its_lengths() -> None:
    model = perceptron()
    neurons = discover(model, torch.randn(2, 5))
    assert NeuronMap.from_json(neurons.to_json()).lengths == neurons.lengths
    assert [(length.direction, length.dim) for length in neurons.lengths] == [
        ("0.parametrizations.weight.original1", 0),
        ("2.parametrizations.weight.original1", 0),
    ]


def test_a_map_of_another_model_is_refused() -> None:
    model = perceptron()
    data = discover(model, torch.randn(2, 5)).to_json()
    data["lengths"][0][0] = "elsewhere.weight"
    with pytest.raises(PlanError, match=r"weight norm of 'elsewhere.weight', which the model lacks"):
        prune_(model, PruningPlan({"2.parametrizations.weight": [0]}), NeuronMap.from_json(data))
    data["lengths"][0] = ["too", "short"]
    with pytest.raises(DiscoveryError, match="malformed"):
        NeuronMap.from_json(data)


def test_an_average_and_the_optimizer_follow_each_by_its_own_norms() -> None:
    model, x = perceptron(), torch.randn(4, 5)
    average, optimizer = AveragedModel(model), torch.optim.AdamW(model.parameters())
    model(x).square().sum().backward()
    optimizer.step()
    randomised(average.module)
    for parameter in average.module.parameters():
        parameter.data *= torch.rand_like(parameter) + 0.5
    neurons = discover(model, x)
    plan = every_second(neurons)
    with masked(average.module, plan, discover(average.module, x)):
        expected = average.module(x)
    discover(model, x)
    prune_(model, plan, neurons, optimizer=[optimizer, average])
    torch.testing.assert_close(average.module(x), expected, rtol=1e-5, atol=1e-5)
    model(x).square().sum().backward()
    optimizer.step()
    assert model(x).isfinite().all()


@pytest.mark.parametrize("effort", ["low", "default"])
def test_such_weights_are_solved_for_and_trained(effort: Any) -> None:
    model, data = perceptron(), [torch.randn(64, 5) for _ in range(4)]
    dense, plain = copy.deepcopy(model), copy.deepcopy(model)
    results = pruner.compress(model, data, ratio=0.5, effort=effort)
    assert results["verification"]["summary"]["overall_success"]
    assert results["repair"]["left_out"] == {}
    prune_(plain, PruningPlan.from_json(results["plan"]), discover(plain, data[0]))
    with torch.no_grad():
        error = [sum(float((one(x) - dense(x)).square().mean()) for x in data) for one in (model, plain)]
    assert error[0] < 0.3 * error[1]


def test_a_pruned_one_is_stored_and_built_again(tmp_path: Any) -> None:
    model, x = perceptron(), torch.randn(4, 5)
    neurons = discover(model, x)
    prune_(model, every_second(neurons), neurons)
    save_pruned(model, tmp_path / "smaller")
    torch.testing.assert_close(load_pruned(tmp_path / "smaller", perceptron())(x), model(x))


def test_a_norm_for_each_channel_that_is_read_leaves_no_direction_of_zeros() -> None:
    model, x = generator()
    dense = copy.deepcopy(randomised(model))
    results = pruner.compress(model, [torch.randn(16, *x.shape[1:]) for _ in range(3)], ratio=0.5, effort="low")
    assert results["neurons_pruned"] == 14
    assert all(0 < distance < 10 for distance in results["repair"]["distances"].values())
    plain = copy.deepcopy(dense)
    prune_(plain, PruningPlan.from_json(results["plan"]), discover(plain, x))
    with torch.no_grad():
        assert (model(x) - dense(x)).norm() < (plain(x) - dense(x)).norm()
