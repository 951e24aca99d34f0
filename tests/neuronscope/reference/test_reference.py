"""The reference models that come with the package: loaded with no network, and as good as their cards say."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from neuronscope import reference
from neuronscope.data_names import load_data
from neuronscope.model_names import build_model, load_model
from neuronscope.reference import corpus, data, training
from neuronscope.reference.__main__ import make
from neuronscope.reference.architectures import LANGUAGE_MODELS
from neuronscope.reference.measure import unigram_loss
from pruner.metrics import count_parameters
from tracker.discover import discover
from tracker.errors import DataError, ModelNameError

MEGABYTE = 2**20


JUDGED = [pytest.param(name, marks=pytest.mark.slow if name in LANGUAGE_MODELS else ()) for name in reference.names()]


@pytest.mark.parametrize("name", JUDGED)
def test_it_is_as_good_as_its_card_says(name: str) -> None:
    found = reference.load(name)
    card = json.loads((found.directory / "measured.json").read_text())
    said, margin = card["numbers"], 1e-3
    if name not in LANGUAGE_MODELS:
        held = reference.batches(name, "held-out")
    elif corpus.fingerprint() in card["facts"]["Data"]:
        held = data.windows(data.tokens(name, "held-out"))
    else:  # another Python's library, which some of the windows tell enough about
        held, margin = reference.batches(name, "held-out", count=4), 0.5
    now = reference.measured(found.model, held)
    assert now["loss"] == pytest.approx(said["loss"], abs=margin)
    assert now["loss"] < said["unigram"] - 2
    assert not found.model.training
    assert next(found.model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("name", reference.names())
def test_it_is_read_with_no_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert reference.load(name).model is not None


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_language_model_knows_more_than_frequencies(name: str) -> None:
    found = reference.load(name)
    text = "def __init__(self, name):\n    self."
    ids = found.tokenizer(text, return_tensors="pt")["input_ids"]
    assert found.tokenizer.decode(ids[0]) == text
    with torch.no_grad():
        likeliest = found.model(input_ids=ids).logits[0, -1].topk(5).indices
    assert any("name" in found.tokenizer.decode([token]) for token in likeliest)


@pytest.mark.parametrize("name", reference.names())
def test_files_are_small_and_have_a_card(name: str) -> None:
    directory = reference.load(name).directory
    assert max(path.stat().st_size for path in directory.iterdir()) <= 10 * MEGABYTE
    card = (directory / "README.md").read_text()
    for fact in ("Parameters", "SHA-256", "seed 0", "steps" if name != "digits-cnn" else "epochs", "frequencies alone"):
        assert fact in card
    assert "Held-out loss" in card
    assert f"python -m neuronscope.reference {name}" in card
    model = reference.load(name).model
    assert f"{count_parameters(model):,}" in card


@pytest.mark.parametrize("name", reference.names())
def test_its_neurons_are_found(name: str) -> None:
    model = load_model(name)
    neurons = discover(model, data_loader=reference.batches(name, count=1, batch_size=2))
    assert neurons.neurons > 500
    assert type(build_model(name)) is type(model)


def test_the_corpus_is_split_by_modules() -> None:
    train, held = ({d.name for d in corpus.documents(split)} for split in ("train", "held-out"))
    assert not train & held
    assert 0.02 < len(held) / len(train) < 0.2
    assert corpus.fingerprint() == corpus.fingerprint()


def test_batches_are_drawn_by_their_seed() -> None:
    one, same, other = (reference.batches("stdlib-gpt", count=1, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one["input_ids"], same["input_ids"])
    assert not torch.equal(one["input_ids"], other["input_ids"])
    assert one["input_ids"].shape == (16, 256)


def test_data_by_name() -> None:
    assert len(list(load_data("stdlib"))) == 8
    assert not torch.equal(load_data("stdlib")[0]["input_ids"], load_data("stdlib-test")[0]["input_ids"])  # type: ignore[index]


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(ModelNameError, match=r"no reference model 'stdlib-gtp'.*stdlib-gpt"):
        reference.load("stdlib-gtp")
    with pytest.raises(DataError, match="no part 'test'"):
        reference.texts("test")  # type: ignore[arg-type]


def test_unigrams() -> None:
    train = torch.tensor([0, 0, 0, 1])
    expected = -torch.tensor([4 / 7, 2 / 7]).log()  # add one to the counts of three pieces
    assert unigram_loss(train, torch.tensor([0, 1]), 3) == pytest.approx(float(expected.mean()))


@pytest.mark.slow
def test_two_steps_of_training_follow_their_seed() -> None:
    stream = torch.randint(0, 6144, (2000,), generator=torch.Generator().manual_seed(0))
    device = torch.device("cpu")

    def trained(seed: int) -> torch.nn.Module:
        return training.train_language_model("stdlib-gpt", stream, size="small", steps=2, seed=seed, device=device)[0]

    one, same, other = (trained(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_command_makes_a_model_and_its_card(tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(make)
    result = CliRunner().invoke(app, ["digits-vit", "--steps", "3", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "model.safetensors").is_file()
    assert "--steps 3" in (tmp_path / "README.md").read_text()


def test_the_large_size_is_large() -> None:
    from neuronscope.reference.architectures import build

    with torch.device("meta"):
        for name in LANGUAGE_MODELS:
            assert count_parameters(build(name, "large")) > 25e6
