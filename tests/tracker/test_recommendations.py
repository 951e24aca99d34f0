import json
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tracker.errors import RecommendationError, StorageError
from tracker.recommendations import Merge, Prune, Recommendations, load_recommendations

GOOD: dict[str, Any] = {
    "format": "neuronscope/recommendations",
    "version": 1,
    "model": "CNN",
    "fingerprint": "0123456789abcdef",
    "epoch": 5,
    "layers": {
        "conv1": {
            "size": 3,
            "kind": "channel",
            "exact": True,
            "activity": {
                "firing_frequency": [0.5, 0.0, 1.0],
                "mean_magnitude": [0.1, 0.0, 2.0],
                "variance": [0.1, 0.0, 0.2],
            },
        },
        "fc1": {"size": 8, "kind": "mlp", "exact": True, "activity": None},
    },
    "prune": [
        {"layer": "conv1", "neuron": 1, "reason": "dead", "evidence": {"firing_frequency": 0.0}},
        {"layer": "fc1", "neuron": 7, "reason": "redundant", "evidence": {}},
    ],
    "merge": [{"layer": "fc1", "neurons": [3, 7], "correlation": 0.98}],
    "expand": [{"layer": "fc1", "reason": "saturated", "evidence": {"median_saturation": 0.95}, "suggested": 10}],
}


def changed(*path: Any, to: Any) -> dict[str, Any]:
    """The good file with one place changed."""
    data = deepcopy(GOOD)
    place: Any = data
    for step in path[:-1]:
        place = place[step]
    if isinstance(place, list) and path[-1] == "+":
        place.append(to)
    else:
        place[path[-1]] = to
    return data


def test_round_trip(tmp_path: Path) -> None:
    found = load_recommendations(GOOD)
    found.save(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text()) == GOOD
    assert load_recommendations(tmp_path / "r.json") == found
    assert load_recommendations(str(tmp_path / "r.json")) == found
    assert load_recommendations(found) is found


def test_by_hand_only_the_neurons_are_needed() -> None:
    found = load_recommendations({"prune": [{"layer": "fc1", "neuron": 3, "reason": "dead"}]})
    assert found.prune[0].neuron == 3
    assert found.layers == {}
    assert not found.fingerprint


BAD = [
    (changed("version", to=2), r"version"),
    (changed("format", to="other"), r"format"),
    (changed("prunes", to=[]), r"unknown key 'prunes'.*Did you mean 'prune'\?"),
    (changed("prune", 0, "layr", to="x"), r"unknown key 'prune.0.layr'.*Did you mean 'layer'\?"),
    (changed("prune", 0, "neuron", to=3), r"neuron 3 of layer 'conv1', which has 3.*from 0 to 2"),
    (changed("prune", 0, "neuron", to=-1), r"prune.0.neuron.*-1"),
    (changed("prune", 0, "neuron", to="1"), r"prune.0.neuron.*'1'"),
    (changed("prune", 0, "neuron", to=1.5), r"prune.0.neuron.*1.5"),
    (changed("prune", 0, "neuron", to=True), r"prune.0.neuron.*True"),
    (changed("prune", 0, "reason", to="ugly"), r"prune.0.reason.*ugly"),
    (changed("prune", 0, "evidence", to={"x": float("nan")}), r"prune.0.evidence"),
    (changed("prune", "+", to=GOOD["prune"][0]), r"neuron 1 of layer 'conv1' 2 times"),
    (changed("prune", "+", to={**GOOD["prune"][0], "reason": "inactive"}), r"neuron 1 of layer 'conv1' 2 times"),
    (changed("prune", 0, "layer", to="conv2"), r"'conv2', which is not among.*Did you mean 'conv1'\?"),
    (changed("merge", 0, "neurons", to=[3, 8]), r"neuron 8 of layer 'fc1', which has 8"),
    (changed("merge", 0, "neurons", to=[3, 3]), r"neuron 3 of layer 'fc1' as both of a pair"),
    (changed("merge", 0, "neurons", to=[1, 2, 3]), r"merge.0.neurons"),
    (changed("merge", 0, "correlation", to=1.5), r"merge.0.correlation.*1.5"),
    (changed("expand", 0, "layer", to="fc9"), r"'fc9', which is not among"),
    (changed("layers", "fc1", "size", to=0), r"layers.fc1.size.*0"),
    (changed("layers", "conv1", "activity", "variance", to=[0.1]), r"'conv1' has 3 neurons, and 1 values of variance"),
    (changed("layers", "conv1", "activity", "variance", to="low"), r"layers.conv1.activity.variance"),
    ([], r"list"),
    (3, r"int"),
]


@pytest.mark.parametrize(("data", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_every_mistake_is_named(tmp_path: Path, data: Any, message: str) -> None:
    (tmp_path / "r.json").write_text(json.dumps(data))
    with pytest.raises(RecommendationError, match=message if "evidence" not in message else "NaN"):
        load_recommendations(tmp_path / "r.json")
    if isinstance(data, dict):
        with pytest.raises(RecommendationError, match=message):
            load_recommendations(data)


@pytest.mark.parametrize("text", ["", "{", '{"version": 1,}', "nothing", '{"version": 1, "version": 1}'])
def test_malformed_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(RecommendationError, match=r"r\.json does not hold recommendations as JSON"):
        load_recommendations(tmp_path / "r.json")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="There is no file"):
        load_recommendations(tmp_path / "none.json")


def test_objects_are_checked_too() -> None:
    twice = Recommendations(prune=(Prune(layer="a", neuron=1, reason="dead"),) * 2)
    with pytest.raises(RecommendationError, match="2 times"):
        load_recommendations(twice)


def test_recommendations_do_not_change() -> None:
    found = load_recommendations(GOOD)
    with pytest.raises(ValidationError):
        found.model = "other"  # type: ignore[misc]


names = st.text(min_size=1, max_size=8)


@settings(deadline=None, max_examples=50)
@given(
    st.builds(
        Recommendations,
        model=names,
        fingerprint=names,
        epoch=st.none() | st.integers(0, 99),
        prune=st.lists(
            st.builds(
                Prune,
                layer=names,
                neuron=st.integers(0, 99),
                reason=st.sampled_from(["dead", "constant", "inactive", "redundant"]),
                evidence=st.dictionaries(names, st.floats(allow_nan=False, allow_infinity=False), max_size=2),
            ),
            unique_by=lambda entry: (entry.layer, entry.neuron),
            max_size=4,
        ).map(tuple),
        merge=st.lists(
            st.builds(Merge, layer=names, neurons=st.just((0, 1)), correlation=st.floats(-1, 1)), max_size=3
        ).map(tuple),
    )
)
def test_any_recommendations_survive_json(recommendations: Recommendations) -> None:
    assert load_recommendations(json.loads(json.dumps(recommendations.model_dump(mode="json")))) == recommendations


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
keys = st.sampled_from(["version", "prune", "merge", "layers", "layer", "neuron", "size", "x"])


@settings(deadline=None, max_examples=100)
@given(
    st.dictionaries(
        keys,
        st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(keys, v, max_size=3), max_leaves=8),
        max_size=4,
    )
)
def test_whatever_is_in_it_the_file_is_read_or_refused(data: dict[str, Any]) -> None:
    with suppress(RecommendationError):
        load_recommendations(data)
