"""Other types of numbers, models without values, and the modes of autograd."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.pruner.small_net import GONE, KEPT, PLAN, Net, X, expected, net, pruned, says
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from pruner.apply import check, prune_
from pruner.plan import PruningPlan
from tracker.discover import discover


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)], ids=str)
def test_a_model_in_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    model = net(dtype)
    wanted = expected(model, X.to(dtype))
    result = pruned(model, X.to(dtype))
    assert torch.finfo(dtype).eps < result.proof.tolerance < tolerance
    assert model.fc1.weight.dtype == dtype
    torch.testing.assert_close(model(X.to(dtype)).detach(), wanted)


def test_inputs_for_a_model_in_half_precision_are_found() -> None:
    for given in ({}, {"data_loader": [X.float()]}):
        model = net(torch.bfloat16)
        assert prune_(model, PLAN, discover(model, **given)).proof


class Mixed(nn.Module):
    """Norm and head in float32, the layers between in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.fc1, self.fc2 = nn.Linear(5, 8, dtype=torch.bfloat16), nn.Linear(8, 3, dtype=torch.bfloat16)
        self.norm = nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.fc1(self.norm(x).bfloat16()))
        return self.head(self.fc2(hidden).float())


@pytest.mark.parametrize("first", ["head", "fc1"])
def test_a_model_of_several_types_gets_inputs_of_the_one_it_was_given(first: str) -> None:
    model = Mixed()
    if first == "fc1":  # then the first parameter is none of the inputs' type
        model.head, model.fc1 = model._modules.pop("head"), model._modules.pop("fc1")
        model._modules["head"] = model._modules.pop("head")
    result = pruned(model, X.float())
    assert result.proof.tolerance > 1e-3
    assert {p.dtype for p in model.fc1.parameters()} == {torch.bfloat16}
    assert model.head.weight.dtype == torch.float32


@pytest.mark.parametrize("inside", [True, False])
def test_under_autocast(inside: bool) -> None:
    class Casting(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                return super().forward(x)

    model = Casting()
    wanted = expected(model, X.float())
    with torch.autocast("cpu", torch.bfloat16):
        model(X.float())  # fills autocast's cache of weights
        pruned(model, X.float())
        after = model(X.float())
        torch.testing.assert_close(after.detach().float(), wanted, rtol=0.03, atol=0.03)


def test_a_failed_pruning_under_autocast_leaves_no_cut_weights_behind() -> None:
    model = net(torch.float32)
    x = X.float()
    with torch.autocast("cpu", torch.bfloat16):
        before = model(x)
        check(model, PLAN, discover(model, x))
        assert torch.equal(model(x), before)


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_complex_parameters() -> None:
    class Waves(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(torch.tanh(self.fc1(x)))

    model, x = Waves().to(torch.complex128), X.to(torch.complex128)
    weights = [p.detach().clone() for p in model.parameters()]
    pruned(model, x)
    hidden = torch.tanh(linear(x, weights[0][KEPT], weights[1][KEPT]))
    says(model, linear(hidden, weights[2][:, KEPT], weights[3]), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_another_default_type_changes_nothing(dtype: torch.dtype) -> None:
    model = net(torch.float32)
    wanted = expected(model, X.float())
    torch.set_default_dtype(dtype)
    try:
        assert prune_(model, PLAN, discover(model)).proof
    finally:
        torch.set_default_dtype(torch.float32)
    says(model, wanted, X.float())


def test_another_default_device_changes_nothing() -> None:
    model = net()
    wanted = expected(model)
    with torch.device("meta"):  # stands for an accelerator: whatever is made without a device lands there
        assert prune_(model, PLAN, discover(model)).proof
    says(model, wanted)


# Without values


def test_a_model_without_values_is_cut_and_says_why_nothing_is_proven() -> None:
    with torch.device("meta"):
        model = net()
    for act in (check, prune_):
        result = act(model, PLAN, discover(model, torch.zeros(4, 5)))
        assert result.proof is None
        assert "meta device" in result.unproven
        assert "meta device" in result.to_json()["unproven"]
        assert result.parameters_after == 48
    assert model.fc1.weight.shape == (5, 5)
    assert model.fc1.out_features == model.fc2.in_features == 5
    assert model(torch.zeros(4, 5, device="meta")).shape == (4, 3)


def test_inputs_without_values() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    result = prune_(model, PruningPlan({"1": [0]}), discover(model, torch.zeros(2, 3, dtype=torch.long, device="meta")))
    assert result.proof is None
    assert "inputs have no values" in result.unproven
    plain = net()
    assert prune_(plain, PLAN, discover(plain, X.to("meta"))).proof


def test_whatever_keeps_a_proof_away_is_said() -> None:
    def why(plan: PruningPlan = PLAN, **options: Any) -> str:
        model = net()
        neurons = discover(model, X)
        if options.pop("copied", False):
            model = copy.deepcopy(model)
        result = check(model, plan, neurons, **options)
        assert (result.proof is None) == bool(result.unproven)
        return result.unproven

    assert why() == ""
    assert why(proof=False) == "it was not asked for"
    assert why(PruningPlan({})) == "nothing is removed"
    assert "discover the model first" in why(copied=True)


# Modes of autograd


def test_in_inference_mode_a_model_stays_one_that_can_train() -> None:
    model = net()
    wanted = expected(model)
    with torch.inference_mode():
        pruned(model)
    assert not any(p.is_inference() for p in model.parameters())
    says(model, wanted)
    model(X).sum().backward()
    assert model.fc1.weight.grad.shape == (5, 5)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_model_made_in_inference_mode_stays_one(mode: Callable[[], Any]) -> None:
    with torch.inference_mode():
        model = net()
        wanted = expected(model)
    with mode():
        pruned(model)
    assert all(p.is_inference() for p in model.parameters())
    with torch.no_grad():
        says(model, wanted)


def test_in_inference_mode_a_check_leaves_everything_as_it_was() -> None:
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    with torch.inference_mode():
        check(model, PLAN, discover(model, X))
    assert all(torch.equal(p, old) and not p.is_inference() for p, old in zip(model.parameters(), before, strict=True))
    model(X).sum().backward()


def test_without_gradients_and_with_frozen_weights() -> None:
    model = net()
    model.fc1.requires_grad_(False)
    wanted = expected(model)
    with torch.no_grad():
        pruned(model)
    says(model, wanted)
    model(X).sum().backward()
    assert model.fc1.weight.grad is None
    assert model.fc2.weight.grad.shape == (3, 5)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # which is so where nothing is trained
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    class Thrifty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = net(), nn.Linear(3, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.inner, x, use_reentrant=reentrant))

    model = Thrifty().train()
    wanted = linear(expected(model.inner), model.head.weight, model.head.bias).detach()
    pruned(model, plan=PruningPlan({"inner.fc1": GONE}))
    x = X.clone().requires_grad_()
    out = model(x)
    torch.testing.assert_close(out.detach(), wanted)
    out.sum().backward()
    assert model.inner.fc1.weight.grad.shape == (5, 5)
