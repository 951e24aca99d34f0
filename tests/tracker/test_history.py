from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracker.activity import ActivityStats, GroupActivity
from tracker.errors import DataError, StorageError
from tracker.history import History


def stats(*firing: float) -> ActivityStats:
    """Statistics of one layer, of which the neurons that never fire are dead."""
    values = np.array(firing)
    zeros = np.zeros_like(values)
    group = GroupActivity("fc1", "mlp", True, 10, values, zeros, zeros, values, values, values)
    return ActivityStats("CNN", "abc", 3, {"fc1": group})


def test_epochs_are_kept_in_order_and_an_epoch_logged_again_replaces_itself() -> None:
    history = History(model="CNN")
    history.log(stats(0.5, 0.4), 2, 0.3, None)
    history.log(stats(0.5, 0.4), 1, 0.5, 0.7)
    history.log(stats(0.5, 0.0), 2, 0.2, 0.9)
    assert [(r.epoch, r.loss, r.accuracy, r.dead) for r in history.epochs] == [(1, 0.5, 0.7, 0), (2, 0.2, 0.9, 1)]
    layer = history.epochs[1].layers["fc1"]
    assert (layer.size, layer.dead, layer.firing_frequency) == (2, [1], 0.25)


def test_deaths_by_epoch() -> None:
    history = History()
    for epoch, firing in enumerate([(0.5, 0.4, 0.3), (0.5, 0.0, 0.3), (0.5, 0.0, 0.0), (0.5, 0.1, 0.0)]):
        history.log(stats(*firing), epoch, None, None)
    assert list(history.deaths()) == [(1, "fc1", [1]), (2, "fc1", [2])]


def test_round_trip(tmp_path: Path) -> None:
    history = History(model="CNN")
    history.log(stats(0.5, 0.0), 1, 0.5, 0.7)
    history.save(tmp_path / "history.json")
    assert History.load(tmp_path / "history.json") == history


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "low"])
def test_a_loss_that_is_no_number(value: Any) -> None:
    history = History()
    with pytest.raises(DataError, match=r"Epoch 4: the loss is"):
        history.log(stats(0.5), 4, value, None)
    with pytest.raises(DataError, match=r"Epoch 4: the accuracy is"):
        history.log(stats(0.5), 4, None, value)
    assert history.epochs == []


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2}', '{"epochs": [{"epoch": "x"}]}', '{"extra": 1}'])
def test_files_that_are_no_history(tmp_path: Path, text: str) -> None:
    (tmp_path / "history.json").write_text(text)
    with pytest.raises(DataError, match=r"history"):
        History.load(tmp_path / "history.json")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="There is no file"):
        History.load(tmp_path / "none.json")
