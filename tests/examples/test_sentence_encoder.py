"""The sentence encoder example, with few and short texts."""

import io

import pytest
import torch
from rich.console import Console

from examples import sentence_encoder as example
from tracker import discover

TEXTS, TOKENS = 16, 24


@pytest.fixture(scope="module")
def outcomes() -> list[example.Outcome]:
    return example.run([0.1, 0.5], TEXTS, TOKENS)


def test_it_is_proven(outcomes: list[example.Outcome]) -> None:
    for outcome in outcomes:
        checks = {check.name: check for check in outcome.verification.checks}
        assert outcome.verification.summary["overall_success"]
        assert checks["sliced equals masked"].measured["error"] < 1e-4


def test_mlp_neurons_and_heads_are_gone(outcomes: list[example.Outcome]) -> None:
    tenth, half = outcomes
    assert tenth.removed == 6 * (153 + 1)  # of 1536 hidden units and 12 heads in each of 6 layers
    assert half.removed == 6 * (768 + 6)
    assert tenth.metrics["sparsity"]["original_neurons"] == 6 * (1536 + 12)


def test_removing_more_moves_the_embeddings_further(outcomes: list[example.Outcome]) -> None:
    tenth, half = outcomes
    assert tenth.cosine.shape == (TEXTS,)
    assert 0.85 < tenth.cosine.mean() < 1
    assert half.cosine.mean() < tenth.cosine.mean() - 0.1
    assert half.metrics["flops"]["pruned"] < tenth.metrics["flops"]["pruned"] < tenth.metrics["flops"]["original"]


def test_the_table_has_a_line_for_every_share(outcomes: list[example.Outcome]) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(example.table(outcomes))
    lines = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert [line[0] for line in lines if line[0].endswith("%")] == ["10%", "50%"]
    assert f"{outcomes[0].cosine.mean():.3f}" in next(line for line in lines if line[0] == "10%")


def test_it_finds_units_and_heads_and_nothing_else() -> None:
    encoder, tokenizer = example.load_encoder()
    neurons = discover(encoder, data_loader=example.encode(["A short text."], tokenizer, TOKENS))
    assert {(group.kind, group.size) for group in neurons} == {("mlp", 1536), ("attention", 12)}
    assert len(neurons) == 12


def test_texts_held_out_are_other_texts() -> None:
    one, other = (example.docstrings(64, held_out=wanted) for wanted in (False, True))
    assert len(set(one)) == len(set(other)) == 64
    assert not set(one) & set(other)
    assert one == example.docstrings(64, held_out=False)


def test_embeddings_do_not_depend_on_padding() -> None:
    encoder, tokenizer = example.load_encoder()
    short, long = "Return the answer.", "Return the answer to a question that is a good deal longer than the other one."
    alone = example.embed(encoder, example.encode([short], tokenizer, TOKENS))
    padded = example.embed(encoder, example.encode([short, long], tokenizer, TOKENS))
    assert torch.allclose(alone[0], padded[0], atol=1e-5)
    assert torch.allclose(padded.norm(dim=1), torch.ones(2))
