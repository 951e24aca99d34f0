"""Hooks of others, weights that are computed, and what hangs on parameters."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.pruner.small_net import GONE, KEPT, Net, X, expected, net, pruned, says
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils import parametrizations, parametrize, prune

from pruner.apply import prune_
from pruner.plan import PruningPlan
from tracker.discover import discover
from tracker.errors import PlanError


def test_hooks_that_only_look_see_what_they_saw_before_and_stay() -> None:
    model, log = net(), []
    wanted = expected(model)
    model.fc1.register_forward_pre_hook(lambda *_: log.append("pre"))
    model.fc1.register_forward_hook(lambda *_: log.append("forward"))
    model.fc2.register_full_backward_pre_hook(lambda *_: log.append("backward pre"))
    model.fc2.register_full_backward_hook(lambda *_: log.append("backward"))
    model.register_forward_hook(lambda *_: log.append("model"))
    pruned(model)
    log.clear()
    says(model, wanted)
    model(X).sum().backward()
    assert log == ["pre", "forward", "model"] * 2 + ["backward pre", "backward"]


def test_hooks_that_change_every_neuron_alike_are_part_of_the_model() -> None:
    model = net()
    model.fc1.register_forward_hook(lambda module, args, out: out * 2 + 1)
    weight, bias = model.fc1.weight.detach()[KEPT] * 2, model.fc1.bias.detach()[KEPT] * 2 + 1
    wanted = linear(torch.relu(linear(X, weight, bias)), model.fc2.weight.detach()[:, KEPT], model.fc2.bias.detach())
    pruned(model)
    says(model, wanted)


@pytest.mark.parametrize("change", [torch.add, torch.mul])
def test_a_hook_that_brings_a_vector_of_its_own_keeps_the_neurons(change: Callable[..., Tensor]) -> None:
    model, vector = net(), torch.randn(8, dtype=torch.float64)
    model.fc1.register_forward_hook(lambda module, args, out: change(out, vector))
    neurons = discover(model, X)
    assert not neurons.groups
    assert "fc1" in {frozen.name for frozen in neurons.frozen}


def test_a_forward_that_was_replaced_on_the_instance() -> None:
    model = net()
    wanted = expected(model)
    calls = []
    for module in (model, model.fc1):
        old = module.forward

        @functools.wraps(old)
        def forward(*args: Any, _old: Callable[..., Tensor] = old, **kwargs: Any) -> Tensor:
            calls.append(_old)
            return _old(*args, **kwargs)

        module.forward = forward
    pruned(model)
    calls.clear()
    says(model, wanted)
    assert len(calls) == 2


# Weights that are computed


def reparametrised(change: Callable[[nn.Linear], Any]) -> Net:
    model = net()
    change(model.fc1)
    model(X)
    return model.eval()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "change",
    [
        nn.utils.weight_norm,
        parametrizations.weight_norm,
        lambda layer: prune.random_unstructured(layer, "weight", 0.4),
        lambda layer: parametrize.register_parametrization(layer, "weight", nn.Tanh()),
        parametrizations.orthogonal,
    ],
    ids="weight_norm_hook weight_norm mask elementwise orthogonal".split(),
)
def test_layers_whose_weight_is_computed(change: Callable[[nn.Linear], Any]) -> None:
    model = reparametrised(change)
    wanted = expected(model)
    neurons = discover(model, X)
    (group,) = neurons
    assert group.exact, group.note
    assert prune_(model, PruningPlan({group.name: GONE}), neurons).proof
    says(model, wanted)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "change",
    [nn.utils.spectral_norm, parametrizations.spectral_norm, lambda layer: nn.utils.weight_norm(layer, dim=None)],
    ids="spectral_norm_hook spectral_norm weight_norm_of_all".split(),
)
def test_a_norm_over_all_neurons_changes_without_some_of_them(change: Callable[[nn.Linear], Any]) -> None:
    model = reparametrised(change)
    neurons = discover(model, X)
    (group,) = neurons
    assert not group.exact
    assert group.note
    result = prune_(model, PruningPlan({group.name: GONE}), neurons)
    assert f"no layer in the plan is exact; '{group.name}': {group.note}" in result.unproven
    assert model(X).shape == (4, 3)
    assert model.fc1.weight.shape == (5, 5)


class Equalised(nn.Module):
    """A weight scaled in the forward, as in generators that equalise learning rates."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outs, ins)), nn.Parameter(torch.randn(outs))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight * torch.tensor(0.5), self.bias)


class LowRank(nn.Module):
    def __init__(self, ins: int, rank: int, outs: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(rank, ins)), nn.Parameter(torch.randn(outs, rank))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.b @ self.a)


def test_weights_scaled_in_the_forward() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Equalised(5, 8), nn.ReLU(), Equalised(8, 3)).double()
    first, second = model[0], model[2]
    hidden = torch.relu(linear(X, first.weight[KEPT] / 2, first.bias[KEPT]))
    wanted = linear(hidden, second.weight[:, KEPT] / 2, second.bias).detach()
    pruned(model, plan=PruningPlan({"0": GONE}))
    says(model, wanted)


@pytest.mark.parametrize("width", [8, 6], ids="square not_square".split())
def test_products_of_two_weights(width: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(LowRank(5, 8, width), nn.ReLU(), LowRank(width, 8, 3)).double()
    rank1, hidden, rank2 = discover(model, X)
    a1, b1, a2, b2 = (p.detach() for p in model.parameters())
    keep = list(range(width))[1:]
    middle = torch.relu(X @ (b1[keep][:, KEPT] @ a1[KEPT]).T)
    wanted = middle @ (b2[:, KEPT] @ a2[KEPT][:, keep]).T
    pruned(model, plan=PruningPlan({rank1.name: GONE, hidden.name: [0], rank2.name: GONE}))
    says(model, wanted)


def test_a_weight_of_which_no_neuron_can_go_is_named() -> None:
    class Orthonormal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 5))

        def forward(self, x: Tensor) -> Tensor:
            return linear(x, torch.linalg.qr(self.weight).Q)

    neurons = discover(nn.Sequential(Orthonormal(), nn.ReLU(), nn.Linear(8, 3)).double(), X)
    assert not neurons.groups
    assert {frozen.name for frozen in neurons.frozen} == {"0", "2"}
    assert all(frozen.reason for frozen in neurons.frozen)


# Shared memory and what hangs on parameters


def test_views_of_one_buffer_get_memory_of_their_own() -> None:
    model = net()
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(flat, model.parameters())
    before, wanted = flat.clone(), expected(model)
    pruned(model)
    says(model, wanted)
    assert torch.equal(flat, before)
    with torch.no_grad():
        model.fc1.weight.zero_()
    assert torch.equal(flat, before)


def test_two_parameters_in_the_same_memory_are_refused_and_left_alone() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = nn.Linear(5, 8, bias=False), nn.Linear(8, 5, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.decode(torch.relu(self.encode(x)))

    model = Tied().double()
    model.decode.weight.data = model.encode.weight.data.t()
    with pytest.raises(PlanError, match=r"'encode.weight' and 'decode.weight' are two tensors in the same memory"):
        prune_(model, PruningPlan({"encode": GONE}), discover(model, X))
    assert model.decode.weight.data_ptr() == model.encode.weight.data_ptr()
    assert model.encode.weight.shape == (8, 5)


def test_what_hangs_on_a_parameter_value_by_value_is_cut_along() -> None:
    model = net()
    weight = model.fc1.weight
    average = weight.detach() * 0.9
    weight.average, weight.no_decay, weight.scale = average.clone(), True, torch.ones(2)
    model.fc2.weight.like = weight
    pruned(model)
    assert torch.equal(weight.average, average[KEPT])
    assert weight.no_decay is True
    assert weight.scale.shape == (2,)
    assert model.fc2.weight.like is weight
    assert weight.shape == (5, 5)


def test_parameters_of_a_class_of_their_own_keep_it() -> None:
    class Named(nn.Parameter):
        pass

    model = net()
    model.fc1.weight = Named(model.fc1.weight.detach())
    wanted = expected(model)
    pruned(model)
    assert type(model.fc1.weight) is Named
    says(model, wanted)
