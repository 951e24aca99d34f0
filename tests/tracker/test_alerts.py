import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tracker import NeuronEngine
from tracker.activity import ActivityStats, GroupActivity
from tracker.alerts import Alert, alerts
from tracker.errors import DataError
from tracker.history import History
from tracker.neuron_history import NeuronHistory


def seen(magnitudes: list[float], covariance: np.ndarray | None = None) -> ActivityStats:
    """One layer whose neurons have such magnitudes; those with 0 are dead."""
    values = np.array(magnitudes, float)
    zeros = np.zeros_like(values)
    variance = zeros if covariance is None else np.diag(covariance).copy()
    group = GroupActivity("fc", "mlp", True, 10, values, variance, zeros, values, values, (values > 0).astype(float))
    return ActivityStats("Net", "abc", 3, {"fc": group}, covariance={} if covariance is None else {"fc": covariance})


def found(*epochs: list[float], removed: tuple[int, ...] = (), per_neuron: bool = True) -> tuple[Alert, ...]:
    """The alerts after the last epoch; neurons go before it."""
    history, neurons = History(), NeuronHistory()
    for epoch, magnitudes in enumerate(epochs):
        if removed and epoch == len(epochs) - 1:
            neurons.removed("fc", removed)
        history.log(seen(magnitudes), epoch, None, None)
        neurons.log(seen(magnitudes), epoch)
    return alerts(history, neurons if per_neuron else None)


def kinds(*epochs: list[float], removed: tuple[int, ...] = (), per_neuron: bool = True) -> list[str]:
    return [alert.kind for alert in found(*epochs, removed=removed, per_neuron=per_neuron)]


def test_nothing_asks_for_a_look() -> None:
    assert alerts(History()) == ()
    assert kinds([1.0, 0.0, 1.0]) == []
    assert kinds([1.0] * 10, [1.0] * 8 + [0.0] * 2) == []  # a fifth in one epoch, and not more
    assert kinds([1.0] * 4, [9.0] * 4) == []


def test_a_dying_layer() -> None:
    [alert] = found([1.0, 1.0, 1.0], [0.0, 1.0, 0.0])
    assert (alert.kind, alert.layer, alert.epoch, alert.neurons) == ("dying layer", "fc", 1, (0, 2))
    assert (alert.value, alert.threshold) == (pytest.approx(2 / 3), 0.5)
    assert "2 of 3 neurons" in alert.message
    [rising] = found([1.0] * 10, [1.0] * 9 + [0.0], [1.0] * 8 + [0.0] * 2, [1.0] * 7 + [0.0] * 3)
    assert (rising.kind, rising.value) == ("dying layer", pytest.approx(0.3))
    assert "in epoch 0 it was 0 of 10" in rising.message


def test_exploding_and_vanishing() -> None:
    [exploding] = found([1.0, 1.0, 1.0], [11.0, 11.0, 11.0])
    assert (exploding.kind, exploding.value) == ("exploding", pytest.approx(11))
    [one_loud] = found([1.0, 1.0, 1.0], [1.0, 1.0, 30.0])
    assert "largest mean magnitude" in one_loud.message
    [vanishing] = found([11.0, 11.0, 11.0], [1.0, 1.0, 1.0])
    assert (vanishing.kind, vanishing.value) == ("vanishing", pytest.approx(1 / 11))
    assert kinds([11.0] * 3, [1.0] * 3, per_neuron=False) == ["vanishing"]


def test_removing_weak_neurons_is_no_explosion() -> None:
    weak = [0.01, 0.01, 0.01, 1.0]
    assert kinds(weak, [1.0], removed=(0, 1, 2)) == []
    assert kinds(weak, [1.0], removed=(0, 1, 2), per_neuron=False) == ["exploding"]


def test_duplicates() -> None:
    covariance = np.array([[1.0, 0.99, 0.0], [0.99, 1.0, 0.0], [0.0, 0.0, 1.0]])
    stats, history = seen([1.0, 1.0, 1.0], covariance), History()
    history.log(stats, 0, None, None)
    [alert] = alerts(history, latest_stats=stats)
    assert (alert.kind, alert.neurons, alert.value) == ("duplicate neurons", (0, 1), pytest.approx(0.99))
    assert alerts(history, latest_stats=stats, correlation_threshold=0.995) == ()
    assert alert.to_json()["neurons"] == [0, 1]


def test_a_network_that_is_trained_to_death_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Biases far below zero kill every neuron; then a healthy epoch, then death again."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    data = torch.randn(32, 4)
    engine = NeuronEngine(tmp_path)
    tracker = engine.track_model(model, "Net")
    with caplog.at_level(logging.WARNING):
        for epoch, bias in enumerate([0.0, -50.0, -50.0, 0.0, -50.0]):
            nn.init.constant_(model[0].bias, bias)
            with engine.tracking(model, data_loader=[data]):
                model(data)
            engine.log_epoch(epoch)
    dying = [alert for alert in engine.alerts() if alert.kind == "dying layer"]
    assert [alert.epoch for alert in dying] == [1, 4]
    assert caplog.text.count("dying layer") == 2
    assert len(engine.neuron_history().deaths()) == 16
    assert engine.get_summary()["alerts"][0]["layer"] == tracker.history.epochs[0].layers.keys().__iter__().__next__()
    engine.save_neuron_history(tmp_path / "h.safetensors")
    assert engine.load_neuron_history(tmp_path / "h.safetensors").epochs == (0, 1, 2, 3, 4)


def test_a_layer_that_shrank_untold_is_missing_and_said_to_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from pruner import PruningEngine

    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    data = [torch.randn(32, 4)]
    engine = NeuronEngine(tmp_path)
    engine.observe(model, data)
    engine.log_epoch(0)
    results = PruningEngine().prune_by_strategy(model, "magnitude", 0.5, data_loader=data)
    engine.observe(model, data)
    engine.log_epoch(1)
    assert "missing in the history of every neuron" in caplog.text
    engine.removed({name: layer["removed"] for name, layer in results["layers"].items()})
    engine.log_epoch(1)
    assert engine.neuron_history().epochs == (0, 1)
    assert engine.neuron_history().layer("0").present.sum() == 8


def test_neurons_need_not_be_followed(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    engine = NeuronEngine(tmp_path, per_neuron=False)
    engine.observe(model, [torch.randn(32, 4)])
    engine.log_epoch(0)
    with pytest.raises(DataError, match="per_neuron=True"):
        engine.neuron_history()
    engine.removed({"0": [0]})
