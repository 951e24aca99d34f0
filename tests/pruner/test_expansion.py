"""A model with more neurons is the same function, and its optimizer goes on as if it had had them from the start."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pruner.before_and_after import everything, interrupted
from tests.pruner.small_models import CASES, case, randomised
from tests.pruner.test_companions import OPTIMIZERS, data, dense
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pruner import (
    ExpansionPlan,
    GradualPruning,
    PruningPlan,
    expand_,
    load_pruned,
    prune_,
    pruning_history,
    save_pruned,
)
from pruner.equivalence import answers
from pruner.expansion import _grown
from pruner.gradual import reshape
from tracker import discover
from tracker.batches import Batch
from tracker.errors import PlanError, StorageError, UnknownLayerError, VerificationError
from tracker.recommendations import Expand, Recommendations


def outputs(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    return answers(model, Batch((x,)))


@pytest.mark.parametrize("way", ["split", "grow"])
@pytest.mark.parametrize("name", CASES)
@settings(max_examples=8, deadline=None)
@given(draw=st.data())
def test_the_function_stays_whatever_is_copied(name, way, draw):
    model, x = case(name)
    before = outputs(model, x)
    neurons = discover(model, x)
    groups = [group for group in neurons if group.exact]
    plan = ExpansionPlan(
        {g.name: draw.draw(st.lists(st.integers(0, g.size - 1), max_size=4), label=g.name) for g in groups}
    )
    objects = [id(p) for p in model.parameters()]
    result = expand_(model, plan, neurons, way=way)
    for key, value in outputs(model, x).items():
        torch.testing.assert_close(value, before[key], rtol=1e-10, atol=1e-10)
    assert result.neurons_after == result.neurons_before + plan.neurons
    assert (result.proof is not None) == (plan.neurons > 0)
    assert objects == [id(p) for p in model.parameters()]
    again = discover(model, x)
    assert {g.name: g.size for g in again if g.exact} == {g.name: g.size + len(plan.copy[g.name]) for g in groups}


def test_shares_of_what_is_said() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    first, second = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    discover(model, torch.randn(4, 2))
    expand_(model, ExpansionPlan({"0": [1, 1, 2]}))
    assert torch.equal(model[0].weight, first[[0, 1, 1, 1, 2, 2]])
    torch.testing.assert_close(model[2].weight, second[:, [0, 1, 1, 1, 2, 2]] / torch.tensor([1, 3, 3, 3, 2, 2.0]))
    assert (model[0].out_features, model[2].in_features) == (6, 6)


def test_neurons_that_grow_have_weights_of_their_own_and_no_say() -> None:
    model = nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 1))
    first, second = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    discover(model, torch.randn(4, 8))
    expand_(model, ExpansionPlan({"0": [1, 1]}), way="grow")
    assert torch.equal(model[0].weight[[0, 1, 4]], first)
    new = model[0].weight.detach()[[2, 3]]
    assert not torch.equal(new[0], first[1])
    assert not torch.equal(new[0], new[1])
    assert all(torch.equal(row.sort().values, first[1].sort().values) for row in new)
    assert torch.equal(model[2].weight[:, [0, 1, 4]], second)
    assert (model[2].weight[:, [2, 3]] == 0).all()


def test_indices_of_blocks_and_of_strides() -> None:
    """Positions (n, k): a block for each neuron (heads), every n-th (interleaved), three parts (fused q, k and v)."""
    blocks = np.arange(6).reshape(3, 2)
    assert _grown(6, [(blocks, np.array([0, 1, 0]))]).source.tolist() == [0, 1, 2, 3, 2, 3, 4, 5]
    strided = np.array([[0, 2], [1, 3]])
    assert _grown(4, [(strided, np.array([1, 0]))]).source.tolist() == [0, 0, 1, 2, 2, 3]
    fused = np.arange(12).reshape(3, 2, 2).transpose(1, 0, 2).reshape(2, 6)
    grown = _grown(12, [(fused, np.array([0, 2]))])
    assert grown.source.tolist() == [0, 1, 2, 3, 2, 3, 2, 3, 4, 5, 6, 7, 6, 7, 6, 7, 8, 9, 10, 11, 10, 11, 10, 11]
    assert grown.new.sum() == 12
    assert grown.share.unique().tolist() == pytest.approx([1 / 3, 1])


# With a learning rate of 0 the weights stay, and the state is that of so many gradients at one point. What Rprop and
# the like keep does not depend on the gradient by a power, or only nearly so.
STATEFUL = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.0, momentum=0.9),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.0, amsgrad=True),
    "adamax": lambda ps: torch.optim.Adamax(ps, lr=0.0, eps=1e-30),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.0, eps=1e-30, momentum=0.5),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=0.0),
}


@pytest.mark.parametrize("way", ["split", "grow"])
@pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL)
def test_state_is_what_it_would_be_had_the_model_been_that_large(make, way):
    def steps(model, optimizer):
        for seed in range(3):
            x, y = data(seed)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    plan = ExpansionPlan({"conv": [0, 3, 3], "hidden": [5]})
    early, late = dense(), dense()
    discover(early, data()[0]), discover(late, data()[0])
    expand_(early, plan, way=way)
    first, second = make(early.parameters()), make(late.parameters())
    steps(early, first)
    steps(late, second)
    expand_(late, plan, optimizer=second, way=way)
    for (name, ours), theirs in zip(late.named_parameters(), early.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        known = torch.ones_like(ours, dtype=torch.bool)
        if way == "grow":  # what reads a new neuron has a gradient that nobody knew before; it starts at 0
            fresh = {"hidden.weight": [1, 5, 6], "out.weight": [6]}.get(name)
            if fresh:
                known[:, fresh] = False
        if name == "conv.bias":
            continue  # before a batch norm, whatever gradient it has is rounding
        pairs = [(ours.grad, theirs.grad)]
        pairs += [(second.state[ours][key], first.state[theirs][key]) for key in second.state[ours]]
        for mine, wanted in pairs:
            if mine.dim():
                assert torch.isfinite(mine).all()
                torch.testing.assert_close(mine[known], wanted[known], rtol=1e-8, atol=1e-14, msg=name)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_goes_on_with_every_optimizer_and_average(make) -> None:
    model = dense()
    optimizer, average = make(model.parameters()), AveragedModel(model)
    discover(model, data()[0])
    for seed in range(4):
        if seed == 2:
            expand_(model, ExpansionPlan({"conv": [0], "hidden": [1, 2]}), optimizer=[optimizer, average])
        x, y = data(seed)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        average.update_parameters(model)
    assert torch.isfinite(loss)
    assert average.module.conv.weight.shape == model.conv.weight.shape == (13, 1, 3, 3)


def test_an_average_is_the_same_function_as_before() -> None:
    model = dense().eval()
    average = AveragedModel(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    x = data()[0]
    discover(model, x)
    before = average.eval()(x)
    for way in ("split", "grow"):
        expand_(model, ExpansionPlan({"conv": [0, 4], "hidden": [1, 2]}), optimizer=average, way=way)
        torch.testing.assert_close(average(x), before, rtol=1e-10, atol=1e-10)


def test_copies_with_noise_part_and_masters_have_the_same() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).bfloat16()
    masters = [p.detach().float().requires_grad_() for p in model.parameters()]
    optimizer = torch.optim.Adam(masters)
    x = torch.randn(3, 4).bfloat16()
    discover(model, x)
    before = model(x)
    expand_(model, ExpansionPlan({"0": [2]}), optimizer=optimizer, noise=0.05)
    weight = model[0].weight.detach().float()
    assert 0 < (weight[2] - weight[3]).abs().max() < 0.5 * weight[2].std()
    assert 0 < (model(x) - before).abs().max() < 0.1 * before.abs().max()
    for parameter, master in zip(model.parameters(), masters, strict=True):
        torch.testing.assert_close(parameter, master.bfloat16(), rtol=1e-2, atol=1e-3)


def test_dry_run_and_errors_leave_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = case("cnn")
    discover(model, x)
    before = everything(model)
    plan = ExpansionPlan({"conv1": [0, 1]})
    result = expand_(model, plan, dry_run=True)
    assert result.parameters_after > result.parameters_before
    assert everything(model) == before
    monkeypatch.setattr("pruner.expansion._factor", lambda *_: None)  # the next layer now hears it twice
    with pytest.raises(VerificationError, match="The larger model is not the model before"):
        expand_(model, plan)
    assert everything(model) == before


def test_an_interrupt_at_any_line_leaves_the_old_model_or_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracker.trial.run", lambda *_: None)  # slow, and looks at shapes only
    model = randomised(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))).eval()
    neurons = discover(model, torch.randn(5, 3))
    before = everything(model)
    places: list[str] = []
    while everything(model) == before:
        place = interrupted(
            len(places) + 1,
            ("pruner/expansion.py", "pruner/slicing.py", "pruner/lineage.py", "pruner/snapshot.py"),
            lambda: expand_(model, ExpansionPlan({"0": [1, 2]}), neurons, noise=0.01, proof=False),
        )
        if place is None:
            break
        places.append(place)
    assert {"_cuts", "_scaled", "_shake", "recorded", "replace"} <= set(places)
    assert model[0].weight.shape == (6, 3)
    assert len(pruning_history(model)) == 1


def test_models_that_grew_are_stored_and_pruned_again(tmp_path: Path) -> None:
    model, x = case("cnn")
    twin = copy.deepcopy(model)
    discover(model, x)
    prune_(model, PruningPlan({"conv1": [0]}))
    expand_(model, ExpansionPlan({"conv1": [0, 2, 2], "fc1": [1]}))
    prune_(model, PruningPlan({"conv1": [1]}))
    expected = outputs(model, x)
    save_pruned(model, tmp_path / "m")
    manifest = json.loads((tmp_path / "m" / "pruning.json").read_text())
    size = manifest["history"][0]["layers"]["conv1"]["neurons"]
    assert manifest["kept"]["conv1"] == [1, 2, 3, 3, 3, *range(4, size)]
    loaded = load_pruned(tmp_path / "m", twin)
    for key, value in outputs(loaded, x).items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)
    manifest["history"][1]["layers"]["fc1"]["copied"] = []
    manifest["history"][1]["layers"]["conv1"]["copied"] = []
    (tmp_path / "m" / "pruning.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match=r"does not lead|within"):
        load_pruned(tmp_path / "m", twin)


def test_a_pruning_goes_on_in_another_process_after_an_expansion() -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))

    x = torch.randn(8, 4)
    first = model()
    pruning = GradualPruning(first, 0.5, begin=1, every=1, end=2, example=x)
    pruning.step(1)
    expand_(first, ExpansionPlan({"0": [3]}), discover(first, x))
    state = json.loads(json.dumps(pruning.state_dict()))
    other = model()
    discover(other, x)
    reshape(other, state)
    assert [p.shape for p in other.parameters()] == [p.shape for p in first.parameters()]


def test_what_a_tracker_recommends() -> None:
    model, x = case("cnn")
    neurons = discover(model, x)
    group = neurons["conv1"]
    advice = Recommendations(expand=(Expand(layer="conv1", reason="saturated", suggested=group.size + 2),))
    plan = ExpansionPlan.recommended(neurons, advice)
    assert {name: len(sources) for name, sources in plan.copy.items()} == {"conv1": 2}
    expand_(model, plan)
    assert discover(model, x)["conv1"].size == group.size + 2


def test_no_neuron_is_copied_twice_before_all_are_once() -> None:
    model, x = case("cnn")
    neurons = discover(model, x)
    size = neurons["conv1"].size
    plan = ExpansionPlan.to_sizes(neurons, {"conv1": 2 * size + 1})
    counts = np.bincount(plan.copy["conv1"], minlength=size)
    assert sorted(counts)[:-1] == [1] * (size - 1)
    assert plan == ExpansionPlan.to_sizes(neurons, {"conv1": 2 * size + 1})
    assert plan != ExpansionPlan.to_sizes(neurons, {"conv1": 2 * size + 1}, seed=1)


def test_plans_are_values(tmp_path: Path) -> None:
    plan = ExpansionPlan({"a": torch.tensor([2, 1, 2])}, "abc", {"why": "x"})
    assert plan.copy["a"] == (1, 2, 2)
    assert plan.neurons == 3
    assert copy.deepcopy(plan) == plan == pickle.loads(pickle.dumps(plan))  # noqa: S301
    plan.save(tmp_path / "plan.json")
    assert ExpansionPlan.load(tmp_path / "plan.json") == plan
    with pytest.raises(PlanError, match="Not an expansion plan"):
        ExpansionPlan.from_json({**plan.to_json(), "version": 2})
    with pytest.raises(PlanError, match="other keys"):
        ExpansionPlan.from_json({**plan.to_json(), "more": 1})
    with pytest.raises(StorageError):
        ExpansionPlan.load(tmp_path / "none.json")


def test_plans_that_cannot_be() -> None:
    model, x = case("transformer")
    neurons = discover(model, x)
    exact = next(group for group in neurons if group.exact)
    inexact = next(group for group in neurons if not group.exact)
    for bad in ([-1], [True], ["a"], [1.5]):
        with pytest.raises(PlanError):
            ExpansionPlan({exact.name: bad})
    with pytest.raises(PlanError, match="out of range"):
        expand_(model, ExpansionPlan({exact.name: [exact.size]}))
    with pytest.raises(PlanError, match="is not exact"):
        expand_(model, ExpansionPlan({inexact.name: [0]}))
    with pytest.raises(UnknownLayerError):
        expand_(model, ExpansionPlan({"none": [0]}))
    with pytest.raises(PlanError, match="made for a model of structure"):
        expand_(model, ExpansionPlan({exact.name: [0]}, "other"))
    with pytest.raises(PlanError, match="is no size to expand"):
        ExpansionPlan.to_sizes(neurons, {exact.name: exact.size - 1})
    with pytest.raises(PlanError, match="neither 'split' nor 'grow'"):
        expand_(model, ExpansionPlan({exact.name: [0]}), way="other")
    for noise in (-0.1, float("nan"), 1.0):
        with pytest.raises(PlanError, match="noise"):
            expand_(model, ExpansionPlan({exact.name: [0]}), noise=noise)
