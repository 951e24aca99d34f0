"""Training that is stopped: it goes on as if nothing had been, and the best weights are kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neuronscope.reference import training
from neuronscope.reference.unfinished import Keeper
from tracker.errors import CheckpointError

STREAM = torch.randint(0, 6144, (3000,), generator=torch.Generator().manual_seed(0))


def train(path: Path | None, **changes: Any) -> tuple[dict[str, Tensor], training.Trained]:
    given: dict[str, Any] = {"size": "small", "steps": 4, "seed": 0, "device": torch.device("cpu")}
    model, taken = training.train_language_model("stdlib-gpt", STREAM, unfinished=path, **given | changes)
    return model.state_dict(), taken


@pytest.fixture(autouse=True)
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "BATCH", 1)
    monkeypatch.setattr(training, "EVERY", 2)


def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "unfinished.safetensors"
    whole, _ = train(None)

    def stopped(items: Iterator[int], *_: Any, **__: Any) -> Iterator[int]:
        for step in items:
            if step == 3:
                raise KeyboardInterrupt
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(training, "progress", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(path)
    assert path.is_file()
    resumed, taken = train(path)
    assert taken.steps == 4
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_another_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "unfinished.safetensors"
    train(path, steps=2)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"other settings.*delete"):
        train(path, steps=2, seed=1)
    assert path.read_bytes() == before


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "unfinished.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="does not hold an unfinished run"):
        train(path)


def test_time_ends_a_run_without_a_number_of_steps() -> None:
    _, taken = train(None, steps=None, minutes=1e-6)
    assert taken.steps <= 1


def test_the_best_weights_are_kept() -> None:
    model = nn.Linear(1, 1)
    losses = iter([3.0, 1.0, 2.0])
    optimizer = torch.optim.SGD(model.parameters())
    keeper = Keeper(model, optimizer, torch.Generator(), lambda: next(losses), settings={})
    for step in (10, 20, 25):
        nn.init.constant_(model.weight, step)
        if step < 25:
            keeper.keep(step, 0.0)
    assert keeper.finish(25) == 20
    assert model.weight.item() == 20
