"""What a training run tells over HTTP is what its history says, and nothing else can be read through it."""

from pathlib import Path

import numpy as np
import pytest
from tests.neuronscope.server.training_run import trained

from neuronscope.server.histories import Histories
from tracker.neuron_history import NeuronHistory, State

pytest.importorskip("fastapi")
from neuronscope.server.problems import Problem


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs"))


def test_a_run_tells_what_its_history_says(folder: Path) -> None:
    run, history = Histories(folder).run("digits-mlp"), NeuronHistory.load(folder / "digits-mlp.safetensors")
    told = run.told()
    assert told["epochs"] == list(history.epochs)
    assert all(loss is not None for loss in told["loss"])
    assert told["deaths"] == [list(event) for event in history.deaths()]
    assert told["deaths"], "the run is there because neurons die in it"
    layers = [history.layer(name) for name in history.layers]
    for epoch in range(len(history.epochs)):
        values = run.values("firing_frequency", epoch)
        np.testing.assert_array_equal(values, np.concatenate([layer.firing_frequency[epoch] for layer in layers]))
        assert told["dead"][epoch] == [int((layer.state[epoch] == State.DEAD).sum()) for layer in layers]
    assert run.neuron(1, 3)["mean_magnitude"] == pytest.approx(layers[1].mean_magnitude[:, 3].tolist())


def test_removed_neurons_are_gone_and_have_no_number(tmp_path: Path, folder: Path) -> None:
    history = NeuronHistory.load(folder / "digits-mlp.safetensors")
    name = history.layers[0]
    history.removed(name, [0, 2])
    history.save(tmp_path / "cut.safetensors")
    run = Histories(tmp_path / "cut.safetensors").run("cut")  # a file instead of a folder
    assert run.told()["loss"] == [None] * len(history.epochs)
    assert run.told()["layer_sizes"] == [128, 64]


def test_only_names_of_histories_are_answered(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no history")
    (tmp_path / "secret.txt").write_text("x")
    for name in ("../digits-mlp", "secret", "/etc/passwd", "..", ""):
        with pytest.raises(Problem) as caught:
            Histories(tmp_path).run(name)
        assert caught.value.status == 404
    with pytest.raises(Problem) as caught:
        Histories(tmp_path).run("broken")
    assert caught.value.status == 422
    assert Histories(None).names() == []
    assert Histories(tmp_path / "not-there").names() == []
    assert Histories(folder).names() == ["digits-mlp"]
