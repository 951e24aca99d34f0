import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tracker.watched_models import CNN, Encoder, images, sentences
from torch import nn

from tracker.engine import NeuronEngine
from tracker.errors import DataError, StorageError
from tracker.recommendations import load_recommendations


@pytest.fixture
def engine(tmp_path: Path) -> NeuronEngine:
    return NeuronEngine(tmp_path / "outputs")


def test_track_observe_log_recommend_save(engine: NeuronEngine, tmp_path: Path) -> None:
    model, data = CNN(), images()
    tracker = engine.track_model(model, "MyModel")
    stats = engine.observe(model, data)
    assert tracker.stats is stats
    record = engine.log_epoch(5, loss=0.25, accuracy=0.9)
    assert (record.epoch, record.loss, record.accuracy) == (5, 0.25, 0.9)
    written = load_recommendations(tmp_path / "outputs" / "logs" / "epoch_5_recommendations.json")
    assert written.epoch == 5
    assert written.model_copy(update={"epoch": None}) == engine.recommend()
    assert engine.save_recommendations(tmp_path / "r.json") == load_recommendations(tmp_path / "r.json")
    assert engine.get_summary()["model"] == "MyModel"
    assert engine.get_summary()["history"][0]["epoch"] == 5


def test_outputs_go_to_the_folder_outputs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    engine = NeuronEngine()
    engine.observe(CNN(), images())
    engine.log_epoch(0)
    assert (tmp_path / "outputs" / "logs" / "epoch_0_recommendations.json").is_file()


def test_training_in_a_loop(engine: NeuronEngine) -> None:
    model, data = CNN(), images()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for epoch in range(2):
        with engine.tracking(model) as tracker:
            for x, y in data:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
        engine.log_epoch(epoch, float(loss.detach()), 0.5)
    assert [record.epoch for record in tracker.history.epochs] == [0, 1]
    assert len(list((engine.output_dir / "logs").iterdir())) == 2
    with engine.tracking():
        model(data[0][0])
    assert engine.get_summary()["batches"] == 1


def test_several_models_by_name(engine: NeuronEngine) -> None:
    cnn, encoder = CNN(), Encoder()
    engine.observe(cnn, images())
    engine.track_model(encoder, "sentence encoder")
    engine.observe(encoder, sentences())
    assert engine.get_summary()["class"] == "Encoder"
    assert engine.get_summary("CNN")["class"] == "CNN"
    engine.log_epoch(1)
    engine.log_epoch(1, name="CNN")
    written = {path.name for path in (engine.output_dir / "logs").iterdir()}
    assert written == {"CNN_epoch_1_recommendations.json", "sentence_encoder_epoch_1_recommendations.json"}
    with pytest.raises(DataError, match=r"No model is tracked as 'CNM'. Did you mean 'CNN'\?.*CNN, sentence encoder"):
        engine.recommend(name="CNM")


def test_another_model_of_one_name_takes_its_place(engine: NeuronEngine) -> None:
    one, other = CNN(), CNN()
    engine.observe(one, images())
    assert engine.track_model(one) is engine.track_model(one)
    engine.track_model(other)
    assert engine.tracker("CNN").model is other


def test_before_anything_was_seen(engine: NeuronEngine, tmp_path: Path) -> None:
    for call in (engine.get_summary, engine.recommend, lambda: engine.log_epoch(0)):
        with pytest.raises(DataError, match=r"No model is tracked yet.*observe"):
            call()
    engine.track_model(CNN())
    assert engine.get_summary()["batches"] == 0
    with pytest.raises(DataError, match="Nothing is known of the activity of 'CNN' yet"):
        engine.save_recommendations(tmp_path / "r.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["model", None, CNN])
def test_a_model_is_a_module(engine: NeuronEngine, wrong: Any) -> None:
    with pytest.raises(DataError, match=r"A model is a torch.nn.Module, not"):
        engine.observe(wrong, images())


def test_thresholds(engine: NeuronEngine) -> None:
    engine.observe(CNN(), images())
    few, many = engine.recommend(), engine.recommend(firing_frequency_threshold=0.9)
    assert len(many.prune) > len(few.prune)
    assert {entry.reason for entry in many.prune} >= {"inactive"}


def test_options_reach_the_trackers(tmp_path: Path) -> None:
    engine = NeuronEngine(tmp_path, groups=["fc1"], covariance=True)
    stats = engine.observe(CNN(), images())
    assert set(stats) == set(stats.covariance) == {"fc1"}
    assert any(not g.exact for g in NeuronEngine(include_inexact=True).observe(Encoder(), sentences()).values())


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file in the way")
    engine = NeuronEngine(tmp_path / "outputs")
    engine.observe(CNN(), images())
    with pytest.raises(StorageError, match="outputs"):
        engine.log_epoch(0)


def test_history_is_saved_and_continued(engine: NeuronEngine, tmp_path: Path) -> None:
    model, data = CNN(), images()
    engine.observe(model, data)
    engine.log_epoch(0, 0.5)
    engine.save_history(tmp_path / "history.json")
    other = NeuronEngine(tmp_path / "other")
    other.track_model(model)
    assert other.load_history(tmp_path / "history.json").epochs[0].loss == 0.5
    other.observe(model, data)
    other.log_epoch(1, 0.4)
    assert [record.epoch for record in other.tracker().history.epochs] == [0, 1]


def test_only_summary_statistics_are_kept(engine: NeuronEngine) -> None:
    """What the engine holds does not grow with the data."""

    def held(batches: int) -> int:
        tracker = engine.track_model(CNN())
        tracker.observe(images(batches, 50))
        stats = tracker.stats.to_json()
        return len(json.dumps(stats))

    assert abs(held(1) - held(20)) < 2000


def test_the_public_methods_are_those_promised() -> None:
    promised = {"track_model", "observe", "get_summary", "log_epoch", "recommend", "save_recommendations", "tracking"}
    assert promised <= {name for name, _ in inspect.getmembers(NeuronEngine, inspect.isfunction)}
    assert list(inspect.signature(NeuronEngine.log_epoch).parameters)[1:4] == ["epoch", "loss", "accuracy"]
    assert list(inspect.signature(NeuronEngine.observe).parameters)[1:3] == ["model", "data_loader"]
    assert list(inspect.signature(NeuronEngine.track_model).parameters)[1:3] == ["model", "name"]


def test_the_engine_is_a_block_for_a_training_loop(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    with NeuronEngine(output_dir=tmp_path) as engine:
        tracker = engine.track_model(model, "net")
        for epoch in range(2):
            for _ in range(3):
                model(torch.randn(5, 4)).sum().backward()
            record = engine.log_epoch(epoch, loss=1.0)
            assert record.batches == 3
        assert model[2]._forward_pre_hooks
    assert not model[2]._forward_pre_hooks
    assert [entry.epoch for entry in tracker.history.epochs] == [0, 1]
    with pytest.raises(RuntimeError, match="as it happens"), engine:
        raise RuntimeError("as it happens")
    assert not model[2]._forward_pre_hooks
