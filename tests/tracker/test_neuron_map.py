"""The map as data: looking layers up, choosing neurons, and JSON there and back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tracker import Frozen, Integer, NeuronGroup, NeuronMap, Read, Site, discover
from tracker.errors import DiscoveryError, PlanError, UnknownLayerError
from tracker.neuron_map import KINDS, Kind, _from_runs, _runs


class Tied(nn.Module):
    """Embedding tied to the output layer, one shared block used twice, one fused pair."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc1, self.fc2 = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight
        self.again = self.fc1

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.fc2(torch.relu(self.fc1(x)))
        result: Tensor = self.head(x + self.fc2(torch.relu(self.again(x))))
        return result


@pytest.fixture(scope="module")
def found() -> NeuronMap:
    return discover(Tied(), torch.zeros(2, 4, dtype=torch.long))


def test_layers_are_found_by_any_module_that_produces_them(found: NeuronMap) -> None:
    assert found["fc1"] is found["again"]
    assert found["embed"] is found["fc2"]
    assert "fc1" in found
    assert "nothing" not in found
    assert len(found) == len(list(found)) == 2
    assert found.neurons == 14
    assert found["fc1"].modules == ("fc1", "again")


def test_unknown_layers_get_the_nearest_name(found: NeuronMap) -> None:
    with pytest.raises(UnknownLayerError, match=r"no layer 'fc11'\. Did you mean 'fc1'") as caught:
        found["fc11"]
    assert isinstance(caught.value, KeyError)


def test_frozen_layers_say_why() -> None:
    found = discover(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)), torch.randn(1, 4))
    with pytest.raises(UnknownLayerError, match="'1' has no neurons that can be removed: is the model's output"):
        found["1"]


def test_slices_name_all_aliases_of_a_tied_weight(found: NeuronMap) -> None:
    slices = found["embed"].slices([5, 0])
    assert {site.parameter for site in slices} >= {"embed.weight", "head.weight", "fc1.weight", "again.weight"}
    assert all(positions.tolist() == [0, 5] for positions in slices.values())
    assert all(positions.dtype == torch.int64 for positions in slices.values())
    assert Site("again.weight", 1).module == "again"
    assert not any(len(none) for none in found["fc1"].slices([]).values())


@pytest.mark.parametrize(
    "given", [[2, 0], (0, 2), torch.tensor([0, 2]), np.array([2, 0]), {0, 2}, range(0, 3, 2), iter([0, 2])]
)
def test_neurons_are_given_in_any_collection(found: NeuronMap, given: Any) -> None:
    assert found["fc1"].indices(given).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([8], "'fc1' has 8 neurons; index 8 is out of range. Use indices from 0 to 7"),
        ([-1], "index -1 is out of range"),
        ([3, 1, 3], "neuron 3 is listed more than once"),
        ([1.0], "neuron 1.0 is not an integer index"),
        ([True], "neuron True is not an integer"),
        (["0"], "neuron '0' is not an integer"),
        (torch.tensor([0.5]), "is not an integer"),
    ],
)
def test_what_is_no_set_of_neurons_is_refused(found: NeuronMap, given: Any, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        found["fc1"].slices(given)


def test_a_map_survives_json_and_a_file(found: NeuronMap, tmp_path: Path) -> None:
    found.save(tmp_path / "map.json")
    again = NeuronMap.load(tmp_path / "map.json")
    assert again.to_json() == found.to_json() == json.loads(json.dumps(found.to_json()))
    assert str(again) == str(found)
    for mine, theirs in zip(found, again, strict=True):
        assert mine.slices(range(mine.size)).keys() == theirs.slices(range(theirs.size)).keys()
        assert all(np.array_equal(mine.members[site], theirs.members[site]) for site in mine.members)
        assert [read.positions.tolist() for read in mine.reads] == [read.positions.tolist() for read in theirs.reads]


names = st.text("abcxyz019_.", min_size=1, max_size=12)
positions = st.integers(1, 6).flatmap(
    lambda size: st.integers(1, 4).flatmap(
        lambda k: st.permutations(range(2 * size * k)).map(
            lambda order: np.array(order[: size * k], dtype=np.int64).reshape(size, k)
        )
    )
)


@st.composite
def groups(draw: st.DrawFn) -> NeuronGroup:
    where = draw(positions)
    sites = [
        Site(name, dim) for name, dim in draw(st.dictionaries(names, st.integers(0, 3), min_size=1, max_size=3)).items()
    ]
    kinds: list[Kind] = list(KINDS)
    reads = (Read(draw(names), sites[0].parameter, -1, where, "operator", "aten.mm"),)
    return NeuronGroup(
        draw(names), len(where), draw(st.sampled_from(kinds)), draw(st.booleans()), (sites[0],), (sites[-1],),
        dict.fromkeys(sites, where), reads, draw(st.text()),
    )  # fmt: skip


@given(st.lists(groups(), max_size=3), st.text(max_size=9))
def test_any_map_survives_json(made: list[NeuronGroup], text: str) -> None:
    before = NeuronMap(
        tuple(made),
        (Frozen("x", 3, text, (Site("x.weight", 0),)),),
        (Integer("", ("shape", 0, "x"), {"a": 2}),),
        "0" * 16,
        "Model",
        {"aten.fft": 2},
    )
    after = NeuronMap.from_json(json.loads(json.dumps(before.to_json())))
    assert after.to_json() == before.to_json()
    assert (after.frozen, after.integers) == (before.frozen, before.integers)
    for mine, theirs in zip(before, after, strict=True):
        assert mine.members.keys() == theirs.members.keys()
        assert all(np.array_equal(mine.members[site], theirs.members[site]) for site in mine.members)


@given(positions)
def test_positions_survive_as_runs(where: Any) -> None:
    assert np.array_equal(_from_runs(_runs(where), len(where)), where)


def test_a_plain_layer_is_one_run() -> None:
    assert _runs(np.arange(4096)[:, None]) == [[0, 4096]]
    assert _runs(np.arange(12).reshape(4, 3)) == [[0, 12]]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: [], "Not a neuron map"),
        (lambda d: None, "Not a neuron map"),
        (lambda d: {**d, "version": 99}, "version 99"),
        (lambda d: {**d, "format": "other"}, "format 'other'"),
        (lambda d: {key: value for key, value in d.items() if key != "groups"}, "malformed: KeyError"),
        (lambda d: {**d, "groups": [{**d["groups"][0], "kind": "nonsense"}]}, "unknown kind 'nonsense'"),
        (lambda d: {**d, "groups": [{**d["groups"][0], "size": 7}]}, "malformed"),
        (lambda d: {**d, "groups": [{**d["groups"][0], "size": 0}]}, "malformed"),
        (lambda d: {**d, "groups": [{**d["groups"][0], "members": [["a", 0, [[0, 10**15]]]]}]}, "malformed"),
        (lambda d: {**d, "groups": [{**d["groups"][0], "members": [["a", 0, [[-5, 6]]]]}]}, "malformed"),
        (lambda d: {**d, "groups": [{**d["groups"][0], "members": [["a", 0, []]]}]}, "malformed"),
        (lambda d: {**d, "groups": [{**d["groups"][0], "members": [["a", 0, [["0", 6]]]]}]}, "malformed"),
        (lambda d: {**d, "groups": 5}, "malformed"),
        (lambda d: {**d, "frozen": ["x"]}, "malformed"),
        (lambda d: {**d, "integers": [{"module": "a"}]}, "malformed"),
    ],
)  # fmt: skip
def test_what_is_no_map_is_refused(found: NeuronMap, damage: Any, said: str) -> None:
    with pytest.raises(DiscoveryError, match=said):
        NeuronMap.from_json(damage(found.to_json()))


def test_files_that_are_no_maps(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text("{")
    with pytest.raises(DiscoveryError):
        NeuronMap.load(tmp_path / "map.json")
