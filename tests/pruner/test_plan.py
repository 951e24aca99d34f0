import copy
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruner.plan import PruningPlan
from tracker.errors import PlanError, StorageError, UnknownLayerError
from tracker.neuron_map import Frozen, NeuronGroup, NeuronMap, Site


def group(name: str, size: int, *others: str) -> NeuronGroup:
    sites = tuple(Site(f"{module}.weight", 0) for module in (name, *others))
    members = {site: np.arange(size).reshape(size, 1) for site in sites}
    return NeuronGroup(name, size, "mlp", True, sites, (), members)


NEURONS = NeuronMap(
    groups=(group("conv1", 8), group("fc1", 4, "fc1_again")),
    frozen=(Frozen("head", 3, "is the model's output", (Site("head.weight", 0),)),),
    fingerprint="aaaa",
    model="Net",
)


@pytest.mark.parametrize(
    "indices",
    [
        [5, 0, 2],
        (2, 0, 5),
        {0, 2, 5},
        range(0, 6, 2),
        np.array([5, 0, 2]),
        torch.tensor([2, 5, 0]),
        [np.int32(2), 0, 5],
    ],
    ids=["list", "tuple", "set", "range", "numpy", "tensor", "numpy scalars"],
)
def test_any_kind_of_indices_becomes_an_ascending_tuple_of_plain_integers(indices):
    removed = PruningPlan({"conv1": indices}).remove["conv1"]
    assert removed == tuple(sorted(int(i) for i in indices))
    assert all(type(i) is int for i in removed)


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        ([1, 2, 1], "neuron 1 is listed more than once"),
        ([-1], "neuron -1 is negative"),
        ([1.0], "neuron 1.0 is not an integer"),
        (["1"], "neuron '1' is not an integer"),
        ([True, False], "neuron True is not an integer"),
        (torch.tensor([True, False]), "nonzero"),
        (torch.tensor([0.0]), "neuron 0.0 is not an integer"),
        ("01", "not a list of indices"),
        (3, "not a list of indices"),
        (torch.tensor(3), "not a list of indices"),
        ({1: 2}, "not a list of indices"),
        (None, "not a list of indices"),
    ],
)
def test_bad_indices_are_refused_by_layer_and_value(indices, said):
    with pytest.raises(PlanError, match="conv1") as caught:
        PruningPlan({"conv1": indices})
    assert said in str(caught.value)


def test_a_layer_name_must_be_a_string_and_the_plan_a_mapping():
    with pytest.raises(PlanError, match="3, which is no string"):
        PruningPlan({3: [1]})
    with pytest.raises(PlanError, match="list, not a mapping"):
        PruningPlan([1, 2])


def test_a_plan_cannot_be_changed_not_even_through_what_it_was_made_from():
    source, provenance = {"conv1": [1]}, {"scores": [1, 2]}
    plan = PruningPlan(source, provenance=provenance)
    source["conv1"].append(2)
    provenance["scores"].append(3)
    assert plan.remove["conv1"] == (1,)
    assert plan.provenance["scores"] == [1, 2]
    with pytest.raises(TypeError):
        plan.remove["conv1"] = (3,)
    with pytest.raises(AttributeError):
        plan.remove = {}


def test_provenance_must_be_json():
    with pytest.raises(PlanError, match="cannot be written as JSON"):
        PruningPlan({}, provenance={"score": float("nan")})
    with pytest.raises(PlanError, match="cannot be written as JSON"):
        PruningPlan({}, provenance={"when": object()})


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, lambda plan: pickle.loads(pickle.dumps(plan))])  # noqa: S301
def test_plans_are_copied_and_sent_by_value(again):
    plan = PruningPlan({"conv1": [1, 2]}, "aaaa", {"strategy": "magnitude"})
    assert again(plan) == plan


def test_the_number_of_neurons_is_counted_over_all_layers():
    assert PruningPlan({"conv1": [1, 2], "fc1": [0]}).neurons == 3
    assert PruningPlan({}).neurons == 0


def test_resolve_gives_indices_by_the_groups_own_names():
    resolved = PruningPlan({"conv1": [7, 1], "fc1_again": [2]}).resolve(NEURONS)
    assert {name: indices.tolist() for name, indices in resolved.items()} == {"conv1": [1, 7], "fc1": [2]}
    assert all(indices.dtype == torch.int64 for indices in resolved.values())


def test_a_plan_that_removes_nothing_resolves_to_nothing_but_its_names_are_checked():
    assert PruningPlan({}).resolve(NEURONS) == {}
    assert PruningPlan({"conv1": []}).resolve(NEURONS) == {}
    with pytest.raises(UnknownLayerError):
        PruningPlan({"conv9": []}).resolve(NEURONS)


def test_an_unknown_layer_suggests_the_nearest():
    with pytest.raises(UnknownLayerError, match="Did you mean 'conv1'"):
        PruningPlan({"conv11": [0]}).resolve(NEURONS)


def test_a_frozen_layer_says_why():
    with pytest.raises(UnknownLayerError, match="is the model's output"):
        PruningPlan({"head": [0]}).resolve(NEURONS)


@pytest.mark.parametrize(
    ("remove", "said"),
    [
        ({"conv1": [8]}, "'conv1' has 8 neurons; index 8"),
        ({"fc1": [0, 1, 2, 3]}, "removes all 4 neurons of layer 'fc1'"),
        ({"fc1": [0], "fc1_again": [1]}, "'fc1' and 'fc1_again' are the same"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(remove, said):
    with pytest.raises(PlanError, match=said):
        PruningPlan(remove).resolve(NEURONS)


def test_the_fingerprint_must_be_the_models_and_the_error_says_what_differs():
    PruningPlan({"conv1": [1]}, "aaaa").resolve(NEURONS)
    with pytest.raises(PlanError, match=r"structure bbbb; this Net has structure aaaa .*no layer 'old'.*again"):
        PruningPlan({"old": [1]}, "bbbb").resolve(NEURONS)
    with pytest.raises(PlanError, match=r"'conv1' has 8 neurons and the plan removes number 9"):
        PruningPlan({"conv1": [9]}, "bbbb").resolve(NEURONS)
    with pytest.raises(PlanError, match=r"sizes elsewhere differ"):
        PruningPlan({"conv1": [1]}, "bbbb").resolve(NEURONS)


names = st.text(min_size=1, max_size=20)
plans = st.builds(
    PruningPlan,
    st.dictionaries(names, st.sets(st.integers(0, 10**9), max_size=20), max_size=5),
    st.none() | names,
    st.dictionaries(names, st.none() | st.booleans() | st.integers() | names, max_size=3),
)


@given(plans)
def test_json_round_trip(plan):
    assert PruningPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_file_round_trip(tmp_path):
    plan = PruningPlan({"conv1": [3]}, "aaaa", {"strategy": "magnitude"})
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(StorageError, match="absent"):
        PruningPlan.load(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(PlanError, match="broken"):
        PruningPlan.load(tmp_path / "broken.json")


GOOD = PruningPlan({"conv1": [1]}).to_json()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "Not a pruning plan"),
        (None, "Not a pruning plan"),
        ({}, "Not a pruning plan"),
        (GOOD | {"format": "x" * 1000}, "Not a pruning plan"),
        (GOOD | {"version": 2}, "version 2"),
        (GOOD | {"version": None}, "version None"),
        (GOOD | {"removed": {}}, "unknown key 'removed'"),
        (GOOD | {"remove": None}, "not a mapping"),
        (GOOD | {"remove": {"conv1": [0, 0]}}, "more than once"),
        (GOOD | {"remove": {"conv1": {"0": 1}}}, "not a list"),
        (GOOD | {"fingerprint": 3}, "must be a string"),
        (GOOD | {"provenance": []}, "an object"),
    ],
)
def test_malformed_plans_are_refused_in_one_short_sentence(data, said):
    with pytest.raises(PlanError, match=said) as caught:
        PruningPlan.from_json(data)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("needs", "gone", "words"), [({"multiple": 4}, 3, "only multiples of 4 run"), ({"minimum": 5}, 4, "needs 5")]
)
def test_what_a_layer_demands_of_what_is_left_is_refused_otherwise(needs, gone, words):
    neurons = NeuronMap((replace(group("fc", 8), **needs),))
    with pytest.raises(PlanError, match=words):
        PruningPlan({"fc": range(gone)}).resolve(neurons)
    assert len(PruningPlan({"fc": range(gone + 1 if "multiple" in needs else gone - 1)}).resolve(neurons)["fc"]) > 0
