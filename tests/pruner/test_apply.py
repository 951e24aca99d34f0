import copy
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pruner.before_and_after import everything, interrupted
from tests.pruner.small_models import CASES, ResidualCNN, case, randomised
from torch import nn

from pruner.apply import check, prune_
from pruner.equivalence import Agreement, answers
from pruner.lineage import pruning_history
from pruner.masking import masked
from pruner.plan import PruningPlan
from tracker.batches import Batch
from tracker.discover import discover, forget
from tracker.errors import DataError, PlanError, UnknownLayerError, VerificationError
from tracker.neuron_map import NeuronMap


def some(neurons: NeuronMap, share: float = 0.5, *, exact: bool = True) -> PruningPlan:
    """A plan that takes every second neuron or so of every group."""
    taken = {g.name: range(0, g.size - 1, round(1 / share)) for g in neurons if g.exact or not exact}
    return PruningPlan(taken)


def outputs(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    return answers(model, Batch((x,)))


def trained(model: nn.Module, x: torch.Tensor, optimizer: torch.optim.Optimizer, steps: int = 2) -> torch.Tensor:
    """Take some steps; returns the last loss, whose graph still refers to the parameters."""
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum(torch.tanh(t).mean() for t in torch.utils._pytree.tree_leaves(model(x)))
        loss.backward()
        optimizer.step()
    return loss


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_the_sliced_model_is_the_masked_one_whatever_is_removed(name, data):
    model, x = case(name)
    neurons = discover(model, x)
    remove = {
        group.name: data.draw(st.sets(st.integers(0, group.size - 1), max_size=group.size - 1), label=group.name)
        for group in neurons
        if group.exact
    }
    plan = PruningPlan(remove)
    with masked(model, plan, neurons):
        expected = outputs(model, x)
    result = prune_(model, plan, neurons, proof=False)
    found = outputs(model, x)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-12, atol=1e-12)
    assert result.neurons_before - result.neurons_after == plan.neurons
    assert result.parameters_after == sum(p.numel() for p in model.parameters())
    assert (result.parameters_after < result.parameters_before) == (plan.neurons > 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_the_proof_is_made_and_holds_in_every_type(name, dtype):
    model, x = case(name, dtype)
    result = prune_(model, some(discover(model, x)))
    assert result.proof is not None
    assert result.proof.holds
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_every_object_stays_the_object_it_was():
    model, x = case("transformer")
    neurons = discover(model, x)
    model.train()
    model.attention.eval()
    before = {name: id(t) for name, t in chain(model.named_parameters(), model.named_buffers())}
    modules = {name: id(m) for name, m in model.named_modules()}
    seen = []
    model.first.up.register_forward_hook(lambda *_: seen.append("forward"))
    model.first.up.weight.register_hook(lambda grad: seen.append("grad"))
    prune_(model, some(neurons))
    assert {name: id(t) for name, t in chain(model.named_parameters(), model.named_buffers())} == before
    assert {name: id(m) for name, m in model.named_modules()} == modules
    assert model.head.weight is model.embed.weight
    assert model.training
    assert not model.attention.training
    seen.clear()
    model(x)["logits"].sum().backward()
    assert seen == ["forward", "forward", "grad"]
    assert model.first.pieces == (4, 4)
    assert type(model.first.pieces) is tuple
    assert model.attention.num_heads == 2


@pytest.mark.parametrize("make", [prune_, check])
def test_exact_layers_are_proven_beside_one_that_is_not(make):
    model, x = case("transformer")
    neurons = discover(model, x)
    exact = {group.name: [0] for group in neurons if group.exact}
    result = make(model, PruningPlan({**exact, "embed": [1, 4]}))
    assert result.proof is not None
    assert result.proof.error < 1e-12


def test_a_tied_weight_is_cut_once():
    model, x = case("transformer")
    neurons = discover(model, x)
    group = neurons["attention.out"]
    assert not group.exact
    result = prune_(model, PruningPlan({group.name: [1, 4]}))
    assert result.proof is None
    assert model.head.weight is model.embed.weight
    assert model.embed.weight.shape == (11, 4)
    assert model.norm.normalized_shape == (4,)
    assert model(x)["logits"].shape == (2, 5, 11)


def test_frozen_parameters_are_cut_and_stay_frozen():
    model, x = case("parametrized")
    prune_(model, some(discover(model, x)))
    assert model.fc1.weight.shape == (4, 5)
    assert not model.fc1.weight.requires_grad
    assert model.fc2.parametrizations.weight.original.requires_grad
    assert model.fc2.weight.shape == (4, 4)


def test_gradients_and_buffers_lose_the_same_neurons():
    model, x = case("cnn")
    discover(model, x)
    model(x).sum().backward()
    grad, mean = model.bn.weight.grad, model.bn.running_mean
    old = grad.clone(), mean.clone(), model.stem.weight.detach().clone()
    alias = mean
    prune_(model, PruningPlan({"stem": [1, 2]}))
    keep = [0, 3, 4, 5]
    assert model.bn.weight.grad is grad
    assert torch.equal(grad, old[0][keep])
    assert torch.equal(alias, old[1][keep])
    assert torch.equal(model.stem.weight, old[2][keep])
    assert model.depthwise.groups == 4


def test_a_sparse_gradient_is_cut_too():
    model = nn.Sequential(nn.Embedding(7, 6, sparse=True), nn.Flatten(), nn.Linear(12, 2)).double()
    x = torch.tensor([[1, 2], [3, 1]])
    neurons = discover(model, x)
    model(x).sum().backward()
    dense = model[0].weight.grad.to_dense()
    prune_(model, PruningPlan({"0": [0]}), neurons)
    assert torch.equal(model[0].weight.grad.to_dense(), dense[:, 1:])


def test_channels_last_stays_channels_last():
    model, x = case("cnn")
    model = model.to(memory_format=torch.channels_last)
    prune_(model, some(discover(model, x)))
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not model.conv1.weight.is_contiguous()
    assert model.fc1.weight.is_contiguous()


OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.01),
    "amsgrad": lambda ps: torch.optim.AdamW(ps, lr=0.01, amsgrad=True),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.01, centered=True, momentum=0.5),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=0.01),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_goes_on_as_it_would_have_with_the_neurons_masked(make):
    model, x = case("transformer")
    neurons, plan = discover(model, x), PruningPlan({"first.up": [0, 3, 6], "attention.qkv": [1]})
    optimizer = make(model.parameters())
    trained(model, x, optimizer)
    twin = copy.deepcopy(model)
    twin_optimizer = make(twin.parameters())
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    prune_(model, plan, neurons, optimizer=optimizer)
    trained(model, x, optimizer)
    with masked(twin, plan, neurons):
        trained(twin, x, twin_optimizer)
    prune_(twin, plan, neurons, proof=False)

    for (name, sliced), zeroed in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(sliced, zeroed, rtol=1e-8, atol=1e-8, msg=name)


def test_master_weights_of_another_type_and_factored_state_are_cut():
    model, x = case("cnn", torch.bfloat16)
    neurons = discover(model, x)
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    trained(model, x, optimizer, steps=1)
    weight = model.fc1.weight
    master = weight.detach().float()
    optimizer.state[weight]["master"] = master
    rows = optimizer.state[weight]["row_var"].clone()
    prune_(model, PruningPlan({"fc1": [0, 1]}), neurons, optimizer=optimizer)
    assert optimizer.state[weight]["master"] is master
    assert torch.equal(master, weight.float())
    assert torch.equal(optimizer.state[weight]["row_var"], rows[2:])
    trained(model, x, optimizer, steps=1)


def test_optimizer_state_that_cannot_be_cut_is_refused_before_anything_changes():
    model, x = case("parametrized")
    neurons = discover(model, x)
    optimizer = torch.optim.LBFGS([p for p in model.parameters() if p.requires_grad])

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(x)[0].square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    before = everything(model)
    with pytest.raises(PlanError, match=r"LBFGS keeps .* make a new optimizer"):
        prune_(model, some(neurons), neurons, optimizer=optimizer)
    assert everything(model) == before


def test_the_optimizer_of_another_model_is_refused():
    model, x = case("cnn")
    other, _ = case("cnn")
    with pytest.raises(PlanError, match="SGD holds none of this model's parameters"):
        prune_(model, some(discover(model, x)), optimizer=torch.optim.SGD(other.parameters(), lr=0.1))


def test_training_goes_on_while_the_last_loss_is_still_alive():
    model, x = case("cnn")
    neurons = discover(model, x)
    optimizer = torch.optim.Adam(model.parameters())
    loss = trained(model, x, optimizer)
    prune_(model, some(neurons), optimizer=optimizer)
    again = trained(model, x, optimizer)
    assert torch.isfinite(again)
    assert loss.grad_fn is not None


@pytest.mark.parametrize("name", CASES)
def test_a_dry_run_says_what_would_happen_and_changes_nothing(name):
    model, x = case(name)
    neurons = discover(model, x)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    trained(model, x, optimizer)
    before = everything(model, optimizer)
    promised = check(model, some(neurons), neurons, optimizer=optimizer)
    assert everything(model, optimizer) == before
    assert prune_(model, some(neurons), neurons, optimizer=optimizer) == promised
    assert everything(model, optimizer) != before


def test_a_plan_that_removes_nothing_changes_nothing():
    model, x = case("cnn")
    neurons = discover(model, x)
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = prune_(model, PruningPlan({}), neurons)
    assert (result.removed, result.integers, result.proof) == ({}, (), None)
    assert result.neurons_before == result.neurons_after
    assert all(torch.equal(p, parameters[name]) for name, p in model.named_parameters())


def test_pruning_twice_is_pruning_once_with_both_plans():
    once, x = case("cnn")
    twice, _ = case("cnn")
    discover(once, x)
    discover(twice, x)
    prune_(once, PruningPlan({"conv1": [0, 3, 4], "fc1": [2]}))
    prune_(twice, PruningPlan({"conv1": [3]}))
    prune_(twice, PruningPlan({"conv1": [0, 3], "fc1": [2]}))  # 4 has become 3
    for one, other in zip(once.parameters(), twice.parameters(), strict=True):
        assert torch.equal(one, other)
    assert twice.conv1.out_channels == 5


def test_the_model_carries_its_history_and_so_do_copies():
    model, x = case("cnn")
    neurons = discover(model, x)
    assert pruning_history(model) == ()
    first = prune_(model, PruningPlan({"conv1": [3]}, provenance={"strategy": "magnitude"}), neurons)
    second = prune_(copy.deepcopy(model), PruningPlan({"fc1": [0, 1]}), discover(model, x))
    assert len(pruning_history(model)) == 1
    copied = copy.deepcopy(model)
    prune_(copied, PruningPlan({"fc1": [0, 1]}), discover(copied, x))
    one, two = pruning_history(copied)
    assert one["layers"] == {"conv1": {"neurons": 8, "removed": [3], "copied": []}}
    assert one["provenance"] == {"strategy": "magnitude"}
    assert one["fingerprint"] == neurons.fingerprint
    assert one["result"] == two["fingerprint"] == first.fingerprint
    assert two["result"] == second.fingerprint
    assert {"module": "fc2", "path": ["in_features"], "old": 10, "new": 8} in two["integers"]


def test_a_model_without_weights_is_cut_without_proof():
    with torch.device("meta"):
        model = ResidualCNN()
    neurons = discover(model, torch.empty(2, 1, 8, 8, device="meta"))
    result = prune_(model, some(neurons))
    assert result.proof is None
    assert model.conv1.weight.shape == (4, 3, 3, 3)
    assert model.conv1.weight.is_meta


def test_the_map_is_discovered_where_none_is_given():
    model, _ = case("cnn")
    forget(model)
    result = prune_(model, PruningPlan({"conv1": [0]}))
    assert result.removed == {"conv1": 1}
    assert result.proof is not None


def test_a_compiled_model_is_cut_inside():
    model, x = case("cnn")
    discover(model, x)
    prune_(torch.compile(model, backend="eager"), PruningPlan({"conv1": [0]}))
    assert model.conv1.out_channels == 7


@pytest.mark.parametrize(
    ("plan", "error"),
    [
        (PruningPlan({"conv9": [0]}), UnknownLayerError),
        (PruningPlan({"conv1": [8]}), PlanError),
        (PruningPlan({"conv1": range(8)}), PlanError),
        (PruningPlan({"conv1": [0]}, "another"), PlanError),
    ],
    ids=["unknown", "out of range", "empties a layer", "another structure"],
)
def test_a_plan_that_does_not_fit_is_refused_with_the_model_untouched(plan, error):
    model, x = case("cnn")
    neurons = discover(model, x)
    before = everything(model)
    for run in (prune_, check):
        with pytest.raises(error):
            run(model, plan, neurons)
    assert everything(model) == before


def test_a_map_from_before_the_last_pruning_is_refused():
    model, x = case("cnn")
    neurons = discover(model, x)
    prune_(model, PruningPlan({"conv1": [0]}), neurons)
    with pytest.raises(PlanError, match=r"map was made for .* discover|Discover the model again"):
        prune_(model, PruningPlan({"conv1": [0]}), neurons)


def test_a_map_of_another_model_without_fingerprint_is_refused():
    model, _ = case("cnn")
    other, y = case("parametrized")
    neurons = replace(discover(other, y), fingerprint="")
    with pytest.raises(PlanError, match="which the model lacks"):
        prune_(model, PruningPlan({"fc1": [0]}), neurons)


def test_a_model_that_would_not_run_is_refused_before_any_weight_is_touched():
    model, x = case("transformer")
    neurons = discover(model, x)
    stale = replace(neurons, integers=tuple(i for i in neurons.integers if i.path != ("num_heads",)))
    before = everything(model)
    with pytest.raises(PlanError, match="would not run"):
        prune_(model, PruningPlan({"attention.qkv": [0]}), stale)
    assert everything(model) == before


def wrong_about(neurons: NeuronMap, name: str) -> NeuronMap:
    """A map that takes the wrong columns out of the consumers of one group: every shape fits, the function does not."""

    def turned(group):
        members = {s: np.roll(p, 1, axis=0) if s in group.consumers else p for s, p in group.members.items()}
        return replace(group, members=members) if group.name == name else group

    return replace(neurons, groups=tuple(map(turned, neurons.groups)))


@pytest.mark.parametrize("guilty", ["stem", "conv1", "fc1"])
def test_a_wrong_cut_is_caught_by_the_proof_and_the_layer_named(guilty):
    model, x = case("cnn")
    neurons = wrong_about(discover(model, x), guilty)
    before = everything(model)
    with pytest.raises(VerificationError, match=rf"layer at fault is '{guilty}'\.") as caught:
        prune_(model, PruningPlan({"stem": [0], "conv1": [2, 5], "fc1": [1]}), neurons)
    assert "1.8e-12" in str(caught.value)
    assert everything(model) == before
    assert prune_(model, PruningPlan({guilty: [0]}), neurons, proof=False).proof is None


def test_layers_that_are_wrong_only_together_are_named_together(monkeypatch):
    model, x = case("cnn")
    neurons = discover(model, x)
    monkeypatch.setattr("pruner.apply.compare", _disagrees_about_both(model))
    with pytest.raises(VerificationError, match="'conv1' together with 'fc1'"):
        prune_(model, PruningPlan({"conv1": [2], "fc1": [1]}), neurons)


def _disagrees_about_both(model):
    def compare(sliced, expected):
        both = sliced.conv1.out_channels < 8 and sliced.fc1.out_features < 10
        return Agreement("output", 1.0 if both else 0.0, 0.1)

    return compare


def test_weights_that_are_not_finite_are_named_and_no_false_alarm():
    model, x = case("cnn")
    neurons = discover(model, x)
    with torch.no_grad():
        model.conv2.weight[0, 0, 0, 0] = torch.nan
    before = everything(model)
    with pytest.raises(DataError, match=r"holds NaN or Inf, and so does its weight 'conv2\.weight'"):
        prune_(model, PruningPlan({"fc1": [0]}), neurons)
    assert everything(model) == before


def test_a_layer_that_is_known_to_be_read_nowhere_is_not_proven():
    model, x = case("cnn")
    neurons = discover(model, x)
    blind = replace(neurons, groups=tuple(replace(g, reads=()) for g in neurons))
    with pytest.raises(VerificationError, match=r"'conv1' cannot be masked"):
        prune_(model, PruningPlan({"conv1": [0]}), blind)


def test_constant_example_inputs_do_not_hide_a_wrong_cut():
    model, x = case("parametrized")
    with torch.no_grad():
        model.fc1.bias.zero_()
    neurons = wrong_about(discover(model, torch.zeros_like(x)), "fc1")
    with pytest.raises(VerificationError, match="fc1"):
        prune_(model, PruningPlan({"fc1": [0]}), neurons)


@pytest.mark.parametrize(("run", "proof"), [(prune_, False), (prune_, True), (check, False)])
def test_an_interrupt_at_any_line_leaves_the_old_model_or_the_new_one(run, proof, monkeypatch):
    monkeypatch.setattr("tracker.trial.run", lambda *_: None)  # slow, and looks at shapes only
    model = randomised(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))).eval()
    x = torch.randn(5, 3)
    neurons, plan = discover(model, x), PruningPlan({"0": [1, 2]})
    optimizer = torch.optim.Adam(model.parameters())
    trained(model, x, optimizer)
    before = everything(model, optimizer)
    places = []
    while everything(model, optimizer) == before:
        place = interrupted(
            len(places) + 1,
            ("pruner/apply.py", "pruner/slicing.py", "pruner/lineage.py", "pruner/snapshot.py"),
            lambda: run(model, plan, neurons, optimizer=optimizer, proof=proof),
        )
        if place is None:
            break
        places.append(place)
    assert {"cuts_without", "cut_to_size", "_made", "replace", "_give", "hold"} <= set(places)
    assert ("recorded" in places) == (run is prune_)
    assert (model[0].weight.shape == (2, 3)) == (run is prune_)
    assert (pruning_history(model) != ()) == (run is prune_)
    if run is prune_:
        assert place == "_operate", "the first line after the commit"
    else:
        assert {"restore", "__exit__"} <= set(places)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_columns_and_rows_of_every_type_are_those_that_stay(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).to(dtype)
    rows, columns = model[0].weight.detach()[[0, 2, 3, 6]], model[2].weight.detach()[:, [0, 2, 3, 6]]
    discover(model, torch.zeros(2, 5, dtype=dtype))
    prune_(model, PruningPlan({"0": [1, 4, 5]}), proof=False)
    assert torch.equal(model[0].weight, rows)
    assert torch.equal(model[2].weight, columns)
    assert model[2].weight.is_contiguous()
