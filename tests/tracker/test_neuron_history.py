from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tracker.activity import ActivityStats, GroupActivity
from tracker.errors import ConfigError, DataError, StorageError, UnknownLayerError
from tracker.neuron_history import NeuronEvent, NeuronHistory, State


def seen(**layers: list[float]) -> ActivityStats:
    """Statistics of layers whose neurons fire so often; those that never do are dead."""
    groups = {}
    for name, firing in layers.items():
        values = np.array(firing, float)
        zeros = np.zeros_like(values)
        groups[name] = GroupActivity(name, "mlp", True, 10, values, zeros, zeros, values, values, values)
    return ActivityStats("Net", "abc", 3, groups)


def test_a_neuron_keeps_its_column_when_others_are_removed() -> None:
    history = NeuronHistory()
    history.log(seen(fc=[0.1, 0.2, 0.3, 0.4]), 0)
    history.removed("fc", [0, 2])
    history.log(seen(fc=[0.5, 0.6]), 1)
    history.removed("fc", [0])
    history.log(seen(fc=[0.7]), 2)
    layer = history.layer("fc")
    assert history.identities("fc").tolist() == [3]
    np.testing.assert_allclose(layer.firing_frequency[:, 3], [0.4, 0.6, 0.7], rtol=1e-6)
    assert layer.state.tolist() == [[1, 1, 1, 1], [3, 1, 3, 1], [3, 3, 3, 1]]
    assert layer.present.tolist() == [False, False, False, True]


def test_deaths_date_from_the_epoch_since_which_a_neuron_was_dead_and_revivals_are_told() -> None:
    history = NeuronHistory()
    for epoch, firing in enumerate([[0.5, 0.0, 0.5], [0.0, 0.0, 0.5], [0.0, 0.4, 0.5], [0.0, 0.4, 0.0]]):
        history.log(seen(fc=firing), epoch)
    assert history.deaths() == [NeuronEvent("fc", 0, 1), NeuronEvent("fc", 2, 3)]
    assert history.revivals() == [NeuronEvent("fc", 1, 2)]
    history.removed("fc", [0])
    assert history.layer("fc").dead.tolist() == [False, False, True]
    assert history.deaths()[0] == NeuronEvent("fc", 0, 1)


def test_a_layer_that_was_not_seen_in_an_epoch() -> None:
    history = NeuronHistory()
    history.log(seen(a=[0.5], b=[0.0]), 0)
    history.log(seen(a=[0.5]), 1)
    history.log(seen(a=[0.5], b=[0.0], c=[0.1]), 2)
    assert history.layer("b").state[:, 0].tolist() == [State.DEAD, State.UNSEEN, State.DEAD]
    assert history.layer("c").state[:, 0].tolist() == [State.UNSEEN, State.UNSEEN, State.ALIVE]
    assert history.deaths() == [NeuronEvent("b", 0, 0)]


def test_an_epoch_logged_again_replaces_itself() -> None:
    history = NeuronHistory()
    history.log(seen(fc=[0.0]), 1)
    history.log(seen(fc=[0.5]), 0)
    history.log(seen(fc=[0.5]), 1)
    assert history.epochs == (0, 1)
    assert history.deaths() == []


def test_a_removal_that_was_not_told() -> None:
    history = NeuronHistory()
    history.log(seen(fc=[0.5, 0.5]), 0)
    with pytest.raises(DataError, match=r"Layer 'fc' has 1 neurons, and 2 were left"):
        history.log(seen(fc=[0.5]), 1)
    assert history.epochs == (0,)


def test_removals_that_cannot_be() -> None:
    history = NeuronHistory()
    history.log(seen(fc=[0.5, 0.5]), 0)
    with pytest.raises(DataError, match="Neuron 2 of layer 'fc'"):
        history.removed("fc", [0, 2])
    with pytest.raises(DataError, match="twice"):
        history.removed("fc", [1, 1])
    with pytest.raises(UnknownLayerError, match="'fd'"):
        history.removed("fd", [0])
    assert history.identities("fc").tolist() == [0, 1]


def test_nan_is_refused_and_what_is_beyond_float32_is_not() -> None:
    history = NeuronHistory()
    with pytest.raises(DataError, match="'fc' is NaN"):
        history.log(seen(fc=[float("nan")]), 0)
    history.log(seen(fc=[1e100]), 0)
    assert np.isfinite(history.layer("fc").mean_magnitude).all()


def test_memory_is_bounded_and_the_newest_epoch_stays() -> None:
    history = NeuronHistory(limit_bytes=13 * 10 * 8)
    for epoch in range(100):
        history.log(seen(fc=[0.5] * 10), epoch)
        assert history.bytes <= history.limit_bytes
        assert history.epochs[-1] == epoch
    with pytest.raises(ConfigError, match="One epoch of every neuron"):
        NeuronHistory(limit_bytes=13 * 10 - 1).log(seen(fc=[0.5] * 10), 0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0.0, 0.5]), min_size=3, max_size=3), min_size=1, max_size=6))
def test_a_file_brings_back_the_same(tmp_path_factory: pytest.TempPathFactory, epochs: list[list[float]]) -> None:
    history = NeuronHistory("Net")
    for epoch, firing in enumerate(epochs):
        history.log(seen(**{"fc": firing, "layers.0/größe": [0.25]}), epoch)
    history.removed("fc", [1])
    path = tmp_path_factory.mktemp("history") / "h.safetensors"
    history.save(path)
    loaded = NeuronHistory.load(path)
    assert (loaded.model, loaded.epochs, loaded.layers) == ("Net", history.epochs, history.layers)
    for name in history.layers:
        ours, theirs = history.layer(name), loaded.layer(name)
        for field in ("firing_frequency", "mean_magnitude", "variance", "state", "present"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
    loaded.log(seen(**{"fc": [0.5, 0.5], "layers.0/größe": [0.25]}), 99)
    assert loaded.epochs[-1] == 99


@pytest.fixture
def path(tmp_path: Path) -> Path:
    history = NeuronHistory("Net")
    history.log(seen(fc=[0.5, 0.0]), 0)
    history.save(tmp_path / "h.safetensors")
    return tmp_path / "h.safetensors"


def test_files_that_are_no_history(path: Path) -> None:
    arrays = load_file(path)
    whole = path.read_bytes()
    header = '{"format":"neuronscope/neuron-history","version":1,"model":"Net","epochs":[0],"layers":["fc"]}'
    state = np.array([[1, 7]], np.uint8)
    for metadata, members, why in [
        (None, arrays, "header"),
        ({"history": header.replace("[0]", "[1,0]")}, arrays, "order"),
        ({"history": header.replace("1,", "2,", 1)}, arrays, "version"),
        ({"history": header.replace('["fc"]', '["fc","fd"]')}, arrays, "arrays are not those"),
        ({"history": header}, {**arrays, "state_0": state}, "holds 7"),
        ({"history": header}, {**arrays, "state_0": state.astype(np.int64)}, "int64"),
        ({"history": header}, {**arrays, "values_0": arrays["values_0"] * np.nan}, "does not fit"),
        ({"history": header}, {**arrays, "present_0": np.ones(3, np.bool_)}, r"\(1, 3, 3\)"),
    ]:
        save_file(members, path, metadata=metadata)
        with pytest.raises(DataError, match=rf"no history of neurons: .*{why}"):
            NeuronHistory.load(path)
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"", b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="no history"):
            NeuronHistory.load(path)


def test_files_that_cannot_be_read(tmp_path: Path, path: Path) -> None:
    with pytest.raises(StorageError, match="There is no file"):
        NeuronHistory.load(tmp_path / "none")
    with pytest.raises(StorageError, match="Cannot read"):
        NeuronHistory.load(tmp_path)
    path.write_bytes(bytes(2**20 + 10))
    with pytest.raises(DataError, match="limit_bytes"):
        NeuronHistory.load(path, limit_bytes=5)
