"""Models that people wrap, convert, hook into and build in unusual places: pruned right, or refused in words.

The expected outputs come from two products written out by hand, not from masking.
"""

import copy
import functools
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.tracker.test_compiled import Counting
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

from pruner.apply import check, prune_, pruning_history
from pruner.engine import PruningEngine
from pruner.plan import PruningPlan
from pruner.workflow import IntegratedTrackingPruningWorkflow
from tracker.discover import discover
from tracker.errors import DiscoveryError, PlanError

GONE, KEPT = [1, 4, 6], [0, 2, 3, 5, 7]
PLAN = PruningPlan({"fc1": GONE})
X = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.relu(self.fc1(x)))


def net(dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


def expected(model: Net, x: Tensor = X) -> Tensor:
    """What the model without `GONE` says, from the values of its weights now."""
    first, second = ((layer.weight.detach().clone(), layer.bias.detach().clone()) for layer in (model.fc1, model.fc2))
    return linear(torch.relu(linear(x, first[0][KEPT], first[1][KEPT])), second[0][:, KEPT], second[1])


def pruned(model: nn.Module, x: Tensor = X, plan: PruningPlan = PLAN) -> Any:
    """Discover and prune; the proof must have been made, and hold."""
    result = prune_(model, plan, discover(model, x))
    assert result.proof is not None, result.unproven
    assert result.proof.holds
    return result


def says(model: nn.Module, wanted: Tensor, x: Tensor = X) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(x), wanted)


# Compiled


@pytest.mark.parametrize("dynamic", [None, True, False])
def test_a_compiled_model_is_compiled_again(dynamic: bool | None) -> None:
    torch.compiler.reset()
    model, compiler = net(), Counting()
    wanted = expected(model)
    compiled = torch.compile(model, backend=compiler, fullgraph=True, dynamic=dynamic)
    compiled(X)
    pruned(compiled)
    assert compiler.graphs == 1
    says(compiled, wanted)
    assert compiler.graphs == 2
    compiled(X).sum().backward()
    assert model.fc1.weight.grad.shape == (5, 5)


@pytest.mark.parametrize("before", [True, False], ids="used unused".split())
def test_a_model_compiled_in_place_is_compiled_again(before: bool) -> None:
    torch.compiler.reset()
    model, compiler = net(), Counting()
    wanted = expected(model)
    model.compile(backend=compiler)
    if before:
        model(X)
    pruned(model)
    says(model, wanted)
    assert compiler.graphs == 1 + before


def test_compiled_parts_are_compiled_again() -> None:
    torch.compiler.reset()
    wrapped, in_place = net(), net()
    model = nn.Sequential(torch.compile(wrapped, backend="eager"), nn.Linear(3, 5).double(), in_place)
    in_place.compile(backend="eager")
    with torch.no_grad():  # PyTorch's compiler looks for the gradient of what one compiled part hands to the next
        model(X)
    wanted = expected(in_place, linear(expected(wrapped), model[1].weight, model[1].bias)).detach()
    pruned(model, plan=PruningPlan({"0._orig_mod.fc1": GONE, "2.fc1": GONE}))
    says(model, wanted)


class Freezing(Counting):
    """A compiler that makes constants of the weights, as inductor's `freezing` does."""

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        self.graphs += 1
        weights = [x.detach().clone() if isinstance(x, nn.Parameter) else None for x in inputs]

        def run(*now: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():
                out: tuple[Tensor, ...] = graph(*(x if w is None else w for x, w in zip(now, weights, strict=True)))
            return out

        return run


@pytest.mark.skipif(not hasattr(torch.compiler, "skip_all_guards_unsafe"), reason="this PyTorch always guards")
def test_code_that_holds_the_weights_of_a_model_is_dropped_wherever_it_is() -> None:
    torch.compiler.reset()
    model, compiler = net(), Freezing()
    wanted, whole = expected(model), model(X).detach()
    unguarded = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
    compiled = torch.compile(model, backend=compiler, options=unguarded)
    engine = PruningEngine()
    says(compiled, whole)
    engine.backup(model)
    pruned(model)  # the one inside
    says(compiled, wanted)
    engine.restore(model)
    says(compiled, whole)
    assert compiler.graphs == 3


def test_pruning_a_compiled_model_often_keeps_it_compiled() -> None:
    torch.compiler.reset()
    wide = nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 3)).double()
    compiler = Counting()
    model = torch.compile(wide, backend=compiler, fullgraph=True)
    model(X)
    rounds = torch._dynamo.config.recompile_limit + 3
    for done in range(rounds):
        pruned(model, plan=PruningPlan({"0": [done]}))
        model(X)
    assert compiler.graphs == rounds + 1


def test_a_function_compiled_inside_of_a_model_follows() -> None:
    torch.compiler.reset()

    class Inside(Net):
        @torch.compile(backend="eager")
        def body(self, x: Tensor) -> Tensor:
            return super().forward(x)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    model = Inside().double()
    model(X)
    wanted = expected(model)
    pruned(model)
    says(model, wanted)


# Spread


def test_a_data_parallel_model_is_pruned_inside() -> None:
    wrapped = nn.DataParallel(net())
    wanted = expected(wrapped.module)
    pruned(wrapped)
    says(wrapped, wanted)
    assert len(pruning_history(wrapped)) == 1


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_distributed_model_is_refused_until_it_is_unwrapped(process_group: None) -> None:
    wrapped = nn.parallel.DistributedDataParallel(net())
    neurons = discover(wrapped, X)
    for act in (prune_, check):
        with pytest.raises(DiscoveryError, match="wrap it again"):
            act(wrapped, PLAN, neurons)
    model = wrapped.module
    wanted = expected(model)
    assert prune_(model, PLAN, neurons).proof
    again = nn.parallel.DistributedDataParallel(model)
    says(again, wanted)
    again(X).sum().backward()
    assert model.fc1.weight.grad.shape == (5, 5)


def test_the_engine_and_the_workflow_refuse_a_distributed_model_too(process_group: None, tmp_path: Path) -> None:
    wrapped = nn.parallel.DistributedDataParallel(net())
    for act in (
        lambda: PruningEngine().prune_by_magnitude(wrapped, data_loader=[X]),
        lambda: IntegratedTrackingPruningWorkflow(output_dir=tmp_path).run_complete_workflow(wrapped, [X]),
    ):
        with pytest.raises(DiscoveryError, match="wrap it again"):
            act()
    assert wrapped.module.fc1.weight.shape == (8, 5)


def test_a_model_that_cannot_be_cut_is_refused_with_a_map_too() -> None:
    model = net()
    neurons = discover(model, X)
    model.fc2.weight = nn.Parameter(model.fc2.weight.detach().to_sparse())
    with pytest.raises(DiscoveryError, match="sparse"):
        prune_(model, PLAN, neurons)
    assert model.fc1.weight.shape == (8, 5)


# Numbers


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


# Others' hooks


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


# Unusual places


def test_attributes_in_slots_are_left_alone() -> None:
    class Slotted(Net):
        __slots__ = ("divisor", "last")

        def __init__(self) -> None:
            super().__init__()
            self.divisor = 8

        def forward(self, x: Tensor) -> Tensor:
            self.last = torch.relu(self.fc1(x))
            return self.fc2(self.last) / self.divisor

    model = Slotted().double()
    wanted = expected(model) / 8
    pruned(model)
    says(model, wanted)
    assert model.divisor == 8
    assert model.last.shape == (4, 5)


def test_a_second_and_a_third_pruning() -> None:
    model = net()
    first, second = ([p.detach().clone() for p in layer.parameters()] for layer in (model.fc1, model.fc2))
    left = list(range(8))
    for gone in ([1], [0, 3], [2]):
        left = [neuron for at, neuron in enumerate(left) if at not in gone]
        pruned(model, plan=PruningPlan({"fc1": gone}))
        hidden = torch.relu(linear(X, first[0][left], first[1][left]))
        says(model, linear(hidden, second[0][:, left], second[1]))
    assert len(pruning_history(model)) == 3


def _saved(model: nn.Module) -> nn.Module:
    memory = io.BytesIO()
    torch.save(model, memory)
    memory.seek(0)
    loaded: nn.Module = torch.load(memory, weights_only=False)
    return loaded


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), _saved],  # noqa: S301 (just written)
    ids="copied pickled saved".split(),
)
def test_copies_are_pruned_for_themselves(again: Callable[[nn.Module], nn.Module]) -> None:
    model = net()
    neurons = discover(model, X)
    wanted, whole = expected(model), model(X).detach()
    copied = again(model)
    prune_(copied, PLAN, neurons)
    says(copied, wanted)
    says(model, whole)
    twice = again(copied)
    pruned(twice, plan=PruningPlan({"fc1": [0]}))
    assert len(pruning_history(twice)) == 2
    says(copied, wanted)


def test_an_averaged_model_is_pruned_as_a_model() -> None:
    averaged = torch.optim.swa_utils.AveragedModel(net())
    wanted = expected(averaged.module)
    pruned(averaged, plan=PruningPlan({"module.fc1": GONE}))
    says(averaged, wanted)


def test_layers_in_a_plain_list_keep_their_width() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.Linear(5, 8).double()]
            self.rest = Net().double()
            self.rest.fc1 = nn.Linear(8, 8).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(torch.relu(self.layers[0](x)))

    model = Hidden()
    wanted = expected(model.rest, torch.relu(model.layers[0](X)).detach())
    pruned(model, plan=PruningPlan({"rest.fc1": GONE}))
    says(model, wanted)
    assert model.layers[0].weight.shape == (8, 5)


def test_the_models_of_a_pipeline_are_pruned_one_by_one() -> None:
    pipeline = {"encoder": net(), "decoder": net()}
    with pytest.raises(DiscoveryError, match="'encoder', 'decoder'"):
        discover(pipeline, X)
    for model in pipeline.values():
        pruned(model)


# Through the whole engine


def test_the_engine_takes_wrapped_models() -> None:
    torch.compiler.reset()
    for wrap in (nn.DataParallel, lambda model: torch.compile(model, backend="eager")):
        model = wrap(net())
        PruningEngine().prune_by_magnitude(model, data_loader=[X])
        assert len(pruning_history(model)) == 1
        assert model(X).shape == (4, 3)
