import json
import logging

import numpy as np
import pytest
import torch
from tests.tracker.watched_models import CNN, Encoder, images, sentences
from torch import Tensor, nn

from tracker.activity import observe
from tracker.errors import ConfigError, DataError
from tracker.neuron_tracker import NeuronTracker


def train(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """One epoch; the gradients of every step."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    gradients = []
    for x, y in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        optimizer.step()
    return gradients


def test_tracking_does_not_change_training() -> None:
    data = images(4)
    torch.manual_seed(1)
    plain = CNN()
    expected = train(plain, data)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    model = CNN()
    with NeuronTracker(model).tracking():
        found = train(model, data)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(one, other)
        for one, other in zip(model.state_dict().values(), plain.state_dict().values(), strict=True)
    )
    assert model.training


def test_tracking_sees_what_training_reads() -> None:
    model, data = CNN(), images()
    model.dropout.p = 0.0
    model.norm.momentum = 0.0
    tracker = NeuronTracker(model)
    seen: list[Tensor] = []
    with tracker.tracking():
        model.fc2.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        train(model, data)
    np.testing.assert_allclose(tracker.stats["fc1"].mean, torch.cat(seen).double().mean(0).numpy(), atol=1e-6)
    assert tracker.stats["fc1"].count == 15


def test_a_validation_inside_the_block_does_not_count() -> None:
    model, data = CNN(), images()
    tracker = NeuronTracker(model)
    with tracker.tracking():
        train(model, data)
        model.eval()
        with torch.no_grad():
            model(data[0][0])
        model.train()
    assert tracker.stats.batches == 3


def test_epochs_start_with_no_data() -> None:
    model, data = CNN(), images()
    tracker = NeuronTracker(model)
    for epoch, size in ((0, 3), (1, 2)):
        with tracker.tracking():
            train(model, data[:size])
        tracker.log_epoch(epoch, loss=1.0 / (epoch + 1), accuracy=0.5)
    assert [record.batches for record in tracker.history.epochs] == [3, 2]
    assert tracker.stats.batches == 2
    assert [record.loss for record in tracker.history.epochs] == [1.0, 0.5]


def test_an_epoch_may_be_logged_inside_the_block() -> None:
    model, data = CNN(), images()
    tracker = NeuronTracker(model)
    with tracker.tracking():
        for epoch in range(2):
            train(model, data)
            tracker.log_epoch(epoch)
    assert [record.batches for record in tracker.history.epochs] == [3, 3]


def test_an_epoch_without_new_data_says_so(caplog: pytest.LogCaptureFixture) -> None:
    tracker = NeuronTracker(CNN())
    tracker.observe(images())
    with caplog.at_level(logging.WARNING):
        tracker.log_epoch(0)
        assert not caplog.records
        tracker.log_epoch(1)
    assert "Epoch 1 of 'CNN' shows the same activity as the one before" in caplog.text


def test_a_block_without_training_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = CNN().eval()
    tracker = NeuronTracker(model)
    with tracker.tracking():
        model(images(1)[0][0])
    assert "No forward of 'CNN' in training mode was seen" in caplog.text
    with pytest.raises(DataError, match=r"Nothing is known of the activity of 'CNN' yet.*tracking"):
        tracker.log_epoch(0)


@pytest.mark.parametrize("epoch", [-1, 1.5, "1", True, None])
def test_an_epoch_is_a_whole_number(epoch: int) -> None:
    tracker = NeuronTracker(CNN())
    tracker.observe(images())
    with pytest.raises(DataError, match="The epoch is"):
        tracker.log_epoch(epoch)


def test_a_loss_that_diverged_logs_nothing() -> None:
    tracker = NeuronTracker(CNN())
    tracker.observe(images())
    with pytest.raises(DataError, match="The training has diverged"):
        tracker.log_epoch(0, float("nan"))
    assert tracker.history.epochs == []


def test_hooks_come_off_when_training_is_interrupted() -> None:
    model, data = CNN(), images()
    tracker = NeuronTracker(model)
    with pytest.raises(KeyboardInterrupt), tracker.tracking():
        interrupted(model, data)
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in model.modules())
    assert tracker.stats.batches == 3


def interrupted(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> None:
    train(model, data)
    raise KeyboardInterrupt


def test_observing_takes_the_place_of_what_was_seen_in_training() -> None:
    model, data = CNN(), images()
    tracker = NeuronTracker(model)
    with tracker.tracking():
        train(model, data)
    found = tracker.observe(data[:1])
    assert tracker.stats is found
    np.testing.assert_array_equal(found["fc1"].mean, observe(model, data[:1])["fc1"].mean)


def test_a_pruned_model_is_tracked_anew() -> None:
    model, data = CNN(), images()
    tracker = NeuronTracker(model)
    with tracker.tracking():
        train(model, data)
    model.fc1, model.fc2 = nn.Linear(64, 7), nn.Linear(7, 3)
    with tracker.tracking():
        train(model, data[:2])
    assert tracker.stats["fc1"].size == 7
    assert tracker.stats.batches == 2


def test_options_reach_both_ways_of_looking() -> None:
    model, data = CNN(), images()
    tracker = NeuronTracker(model, groups=["fc1"], covariance=True)
    assert set(tracker.observe(data)) == set(tracker.stats.covariance) == {"fc1"}
    with tracker.tracking():
        train(model, data)
    assert set(tracker.stats) == set(tracker.stats.covariance) == {"fc1"}
    inexact = NeuronTracker(Encoder(), include_inexact=True)
    assert not all(group.exact for group in inexact.observe(sentences()).values())


def test_covariances_that_are_too_large_are_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracker.covariance.LIMIT_BYTES", 1)
    tracker = NeuronTracker(Huge(), covariance=True)
    with pytest.raises(ConfigError, match="GB"), tracker.tracking():
        pass


class Huge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 17_000), nn.Linear(17_000, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))


def test_the_summary_is_for_people_and_json() -> None:
    tracker = NeuronTracker(Encoder(), "sentences")
    assert tracker.summary()["layers"] == {}
    tracker.observe(sentences())
    tracker.log_epoch(2, 0.5, 0.75)
    summary = tracker.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert (summary["model"], summary["class"], summary["batches"]) == ("sentences", "Encoder", 2)
    assert summary["neurons"] == sum(layer["size"] for layer in summary["layers"].values()) == 23
    assert summary["layers"]["up"]["size"] == 20
    assert "not exact" in summary["untracked"]["embed"]
    assert summary["history"] == [{"epoch": 2, "loss": 0.5, "accuracy": 0.75, "dead_neurons": summary["dead_neurons"]}]


def test_a_compiled_model_is_refused_or_seen() -> None:
    model, data = CNN(), images()
    tracker = NeuronTracker(torch.compile(model, backend="eager"))
    assert tracker.name == "CNN"
    assert tracker.observe(data).batches == 3
