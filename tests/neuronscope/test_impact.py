"""Every impact against a brute-force reference: a copy in which the weights that read the neuron are zero."""

import copy
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tests.neuronscope.test_weights import gpt2, llama
from torch import Tensor, nn

from neuronscope import reference
from neuronscope.impact import PruningImpactAnalyzer
from neuronscope.movement import Scale
from pruner.compensation.distance import Answer
from tracker import discover
from tracker.errors import ConfigError, DataError, UnknownLayerError

transformers = pytest.importorskip("transformers")


class Letters:
    """A tokenizer that knows letters; it pads on the right."""

    pad_token = "_"  # noqa: S105

    def __call__(self, texts: list[str], **_: Any) -> dict[str, Tensor]:
        rows = [[ord(letter) % 49 + 1 for letter in text] for text in texts]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}


TEXTS = ["hello world", "a test", "the quick brown fox"]


def louder(model: nn.Module) -> nn.Module:
    """Random weights of a size at which neurons matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mlp" in name:
                parameter.mul_(20)
    return model


@pytest.fixture(params=["gpt2", "llama"])
def analyzer(request: pytest.FixtureRequest) -> PruningImpactAnalyzer:
    model = louder({"gpt2": gpt2, "llama": llama}[request.param]())
    discover(model)
    return PruningImpactAnalyzer(model, Letters())


def without(model: nn.Module, chosen: list[tuple[int, int]]) -> nn.Module:
    """A copy that does not read these neurons."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for layer, neuron in chosen:
            if hasattr(twin, "transformer"):
                twin.transformer.h[layer].mlp.c_proj.weight[neuron] = 0
            else:
                twin.model.layers[layer].mlp.down_proj.weight[:, neuron] = 0
    return twin


def logits(model: nn.Module, text: str) -> Tensor:
    with torch.no_grad():
        return model(input_ids=Letters()([text])["input_ids"]).logits[0].float()


def expected(model: nn.Module, chosen: list[tuple[int, int]], texts: list[str]) -> dict[str, float]:
    """Score, divergence, agreement, relative L2 and rise of the loss, text by text and by hand."""
    twin = without(model, chosen)
    score, kl, same, moved, norm, rise = [], [], [], 0.0, 0.0, []
    for text in texts:
        before, after = logits(model, text), logits(twin, text)
        p, q = before.softmax(-1), after.softmax(-1)
        score += (1 - (1 - 0.5 * (p - q).abs().sum(-1)) ** 2).tolist()
        kl += (p * (p.log() - q.log())).sum(-1).tolist()
        same += (before.argmax(-1) == after.argmax(-1)).float().tolist()
        moved += float((before - after).square().sum())
        norm += float(before.square().sum())
        ids = Letters()([text])["input_ids"][0]
        rise += (p.log() - q.log())[:-1].gather(1, ids[1:, None]).flatten().tolist()
    return {
        "score": float(np.mean(score)),
        "kl": float(np.mean(kl)),
        "top1_agreement": float(np.mean(same)),
        "relative_l2": (moved / norm) ** 0.5,
        "loss_change": float(np.mean(rise)),
    }


@pytest.mark.parametrize("chosen", [[(0, 3)], [(0, 3), (0, 7), (1, 0)]])
@pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS])
def test_impact_is_that_of_a_model_without_the_neurons(
    analyzer: PruningImpactAnalyzer, chosen: list[tuple[int, int]], texts: list[str]
) -> None:
    impact = analyzer.simulate(chosen, texts, batch_size=2)
    for name, value in expected(analyzer.model, chosen, texts).items():
        assert getattr(impact.metrics, name) == pytest.approx(value, rel=1e-3, abs=1e-6), name
    assert impact.impact_score == impact.metrics.score > 0
    assert impact.safe_to_prune == (impact.impact_score < 0.1)
    assert impact.metrics.places == sum(map(len, texts))


def test_labels_of_a_language_model_are_shifted_and_a_masked_one_has_no_next_token() -> None:
    model = louder(gpt2())
    discover(model)
    ids = Letters()(TEXTS[:1])["input_ids"]
    found = PruningImpactAnalyzer(model).simulate([(0, 3)], {"input_ids": ids, "labels": ids})
    assert found.metrics.loss_change == pytest.approx(expected(model, [(0, 3)], TEXTS[:1])["loss_change"], rel=1e-3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    bert = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=50, **sizes)).eval()
    discover(bert)
    moved = PruningImpactAnalyzer(bert, Letters()).simulate([(0, 3)], TEXTS).metrics
    assert moved.loss_change is None
    assert moved.kl is not None


def test_further_on_is_the_next_layer_and_after_the_last_the_answer(analyzer: PruningImpactAnalyzer) -> None:
    layers = len(analyzer.layers)
    first = analyzer.simulate_neuron_pruning(0, [0, 1], TEXTS[0])
    assert first.original_activations.shape == (len(TEXTS[0]), analyzer.layers[1].size)
    change = np.abs(first.pruned_activations - first.original_activations)
    assert first.mean_change == pytest.approx(change.mean())
    assert first.max_change == pytest.approx(change.max())
    np.testing.assert_array_equal(first.activation_change, change)
    scale = np.sqrt((first.original_activations**2).mean())
    assert first.affected_neurons == np.flatnonzero(change.mean(0) > 0.1 * scale).tolist()
    last = analyzer.simulate_neuron_pruning(layers - 1, [0], TEXTS[0])
    np.testing.assert_allclose(last.original_activations, logits(analyzer.model, TEXTS[0]).numpy(), atol=1e-4)


def test_the_mean_is_taken_over_real_tokens(analyzer: PruningImpactAnalyzer) -> None:
    """A neuron that always has one value is its mean: taking it out by that changes nothing."""
    zero = analyzer.simulate([(0, 5)], TEXTS)
    mean = analyzer.simulate([(0, 5)], TEXTS, ablation="mean")
    assert mean.ablation == "mean"
    assert mean.impact_score != pytest.approx(zero.impact_score)
    model = analyzer.model
    with torch.no_grad():
        mlp = model.transformer.h[0].mlp if hasattr(model, "transformer") else model.model.layers[0].mlp
        if hasattr(mlp, "c_fc"):
            mlp.c_fc.weight[:, 5] = 0
            mlp.c_fc.bias[5] = 2.0
            assert analyzer.simulate([(0, 5)], TEXTS, ablation="mean").impact_score < 1e-6
            assert analyzer.simulate([(0, 5)], TEXTS).impact_score > 1e-3


def test_the_model_is_not_changed_and_threads_take_turns(analyzer: PruningImpactAnalyzer) -> None:
    model = analyzer.model.train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    wanted = [analyzer.simulate([(0, neuron)], TEXTS).impact_score for neuron in range(6)]
    found: dict[int, float] = {}

    def run(neuron: int) -> None:
        found[neuron] = PruningImpactAnalyzer(model, Letters()).simulate([(0, neuron)], TEXTS).impact_score

    threads = [threading.Thread(target=run, args=(neuron,)) for neuron in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[neuron] for neuron in range(6)] == pytest.approx(wanted)
    assert model.training
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_batch_is_each_alone_and_all_together(analyzer: PruningImpactAnalyzer, tmp_path: Path) -> None:
    chosen = [(0, 0), (0, 1), (1, 2)]
    given = [{"layer_index": layer, "neuron_index": neuron} for layer, neuron in chosen]
    results = analyzer.batch_pruning_analysis(TEXTS, given, batch_size=2)
    for entry, pair in zip(results["individual_impacts"], chosen, strict=True):
        assert (entry["layer_index"], entry["neuron_index"]) == pair
        assert entry["impact_score"] == pytest.approx(expected(analyzer.model, [pair], TEXTS)["score"], rel=1e-3)
    together = results["cumulative_impact"]["impact_score"]
    assert together == pytest.approx(expected(analyzer.model, chosen, TEXTS)["score"], rel=1e-3)
    advice = results["recommendations"]
    scores = [entry["impact_score"] for entry in results["individual_impacts"]]
    assert advice["safe_to_prune"] == sum(score < 0.1 for score in scores)
    assert advice["risky_to_prune"] == sum(score > 0.3 for score in scores) == len(advice["high_impact_neurons"])
    largest = advice["suggested_batch_size"]
    order = sorted(range(3), key=lambda number: scores[number])
    if largest < 3:
        assert expected(analyzer.model, [chosen[n] for n in order[: largest + 1]], TEXTS)["score"] >= 0.1
    if largest:
        assert expected(analyzer.model, [chosen[n] for n in order[:largest]], TEXTS)["score"] < 0.1
    path = analyzer.export_pruning_analysis(tmp_path / "impact.json")
    assert json.loads(path.read_text())["results"][0]["recommendations"] == advice


def test_a_batch_over_layers_shares_runs_and_is_each_alone(analyzer: PruningImpactAnalyzer) -> None:
    chosen = [(1, 2), (0, 3), (0, 5), (1, 9), (0, 1), (1, 23), (1, 0)]
    runs: list[int] = []
    analyzer.model.register_forward_hook(lambda *_: runs.append(0))
    given = [{"layer_index": layer, "neuron_index": neuron} for layer, neuron in chosen]
    found = analyzer.batch_pruning_analysis(TEXTS, given)["individual_impacts"]
    assert len(runs) < 12 + len(TEXTS) * len(chosen)
    for entry, pair in zip(found, chosen, strict=True):
        one = analyzer.simulate([pair], TEXTS)
        assert (entry["layer_index"], entry["neuron_index"]) == pair
        assert entry["impact_score"] == pytest.approx(one.impact_score, rel=1e-4)
        assert entry["mean_change"] == pytest.approx(one.mean_change, rel=1e-3)
        assert entry["max_change"] == pytest.approx(one.max_change, rel=1e-3)


def test_what_does_not_fit_is_refused_with_the_numbers(
    analyzer: PruningImpactAnalyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuronscope.trials.free_bytes", lambda _: 1000)
    with pytest.raises(DataError, match=r"The answers to 11 tokens take .* GB are free on cpu"):
        analyzer.simulate([(0, 1)], TEXTS[0])


def test_nothing_to_take_out() -> None:
    model = gpt2()
    discover(model)
    results = PruningImpactAnalyzer(model, Letters()).batch_pruning_analysis(TEXTS, [])
    assert results["cumulative_impact"] is None
    assert results["individual_impacts"] == []


def test_importance_is_exact_or_ranks_as_the_exact_one(analyzer: PruningImpactAnalyzer) -> None:
    exact = analyzer.analyze_neuron_importance(TEXTS, 1, method="exact")
    assert [entry.neuron_index for entry in exact] == list(range(analyzer.layers[1].size))
    for neuron in (0, 7, 20):
        assert exact[neuron].impact_score == pytest.approx(
            expected(analyzer.model, [(1, neuron)], TEXTS)["score"], rel=1e-3
        )
    scores = np.array([entry.impact_score for entry in exact])
    assert exact.rank_correlation == 1
    estimate = analyzer.analyze_neuron_importance(TEXTS, 1, probes=32)
    assert estimate.method == "second-order"
    assert 0 < len(estimate.checked) <= 16
    guessed = [entry.impact_score for entry in estimate]
    assert spearmanr(scores, guessed).statistic > 0.85
    known = scores[list(estimate.checked)]
    assert estimate.rank_correlation == pytest.approx(
        spearmanr(known, np.array(guessed)[list(estimate.checked)]).statistic, abs=0.05
    )


@pytest.mark.parametrize(("strong", "both"), [(32, False), (8, True)])
def test_critical_is_what_is_among_the_highest_and_not_safe(strong: int, both: bool) -> None:
    """So many neurons of 64 speak loudly: half of them, of which a quarter is critical; or an eighth, all of it."""
    model = gpt2()
    with torch.no_grad():
        model.lm_head.weight.mul_(50)
        model.transformer.h[1].mlp.c_proj.weight[:strong].mul_(2000)
    discover(model)
    found = PruningImpactAnalyzer(model, Letters()).analyze_neuron_importance(TEXTS, 1, method="exact")
    scores = np.array([entry.impact_score for entry in found])
    loud = scores >= 0.1
    high = scores > np.percentile(scores, 75)
    assert (loud & ~high).any() != both
    assert (high & ~loud).any() == both
    assert [entry.is_critical for entry in found] == (loud & high).tolist()


def test_activity_counts_real_tokens_only(analyzer: PruningImpactAnalyzer) -> None:
    found = analyzer.analyze_neuron_importance(TEXTS, 0, probes=1, sample=1)
    seen: list[Tensor] = []
    model = analyzer.model
    mlp = model.transformer.h[0].mlp.c_proj if hasattr(model, "transformer") else model.model.layers[0].mlp.down_proj
    handle = mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    for text in TEXTS:
        logits(model, text)
    handle.remove()
    values = torch.cat(seen)
    np.testing.assert_allclose([e.activation_magnitude for e in found], values.abs().mean(0), rtol=1e-4)
    np.testing.assert_allclose([e.activation_variance for e in found], values.var(0, correction=0), rtol=1e-3)


def test_images_instead_of_texts() -> None:
    model = reference.load("digits-vit").model
    images = torch.cat([batch[0] for batch in reference.batches("digits-vit", "held-out", batch_size=8, count=1)])
    discover(model, images[:1])
    analyzer = PruningImpactAnalyzer(model)
    impact = analyzer.simulate([(0, neuron) for neuron in range(40)], images)
    assert 0 < impact.impact_score < 1
    found = analyzer.analyze_neuron_importance(images, 1, probes=16)
    assert found.rank_correlation > 0.5


def test_vectors_are_bounded_and_symmetric() -> None:
    one, other = torch.randn(2, 20, 5)
    scale = Scale([Answer(one, False)], [None])
    found = scale.movement([Answer(other, False)])
    assert 0 < found.score < 1
    assert found.kl is None
    assert found.top1_agreement is None
    mean = one.mean(0)
    by_hand = (one - other).norm(dim=1) / ((one - mean).norm(dim=1) + (other - mean).norm(dim=1))
    assert found.score == pytest.approx(float(by_hand.mean()), rel=1e-5)
    assert scale.movement([Answer(one, False)]).score == 0


@pytest.mark.parametrize(
    ("call", "error", "why"),
    [
        (lambda a: a.simulate_neuron_pruning(9, [0], "x"), UnknownLayerError, "layers; 9 is none"),
        (lambda a: a.simulate_neuron_pruning(0, [999], "x"), DataError, "999 is none"),
        (lambda a: a.simulate_neuron_pruning(0, [], "x"), DataError, "No neurons"),
        (lambda a: a.simulate_neuron_pruning(0, [0], ""), DataError, "is empty"),
        (lambda a: a.simulate_neuron_pruning(0, [0], []), DataError, "No inputs"),
        (lambda a: a.simulate_neuron_pruning(0, [0], [3]), DataError, "is a int"),
        (lambda a: a.simulate_neuron_pruning(0, [0], "x", ablation="half"), ConfigError, "half"),
        (lambda a: a.batch_pruning_analysis(["x"], [{"layer": 0}]), DataError, "A candidate is"),
        (
            lambda a: a.batch_pruning_analysis(["x"], [{"layer_index": 0, "neuron_index": 0}], 0),
            DataError,
            "batch_size",
        ),
        (lambda a: a.analyze_neuron_importance(["x"], 0, method="guess"), ConfigError, "guess"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], why: str) -> None:
    model = gpt2()
    discover(model)
    with pytest.raises(error, match=why):
        call(PruningImpactAnalyzer(model, Letters()))


def test_texts_need_a_tokenizer() -> None:
    model = gpt2()
    discover(model)
    with pytest.raises(DataError, match="no tokenizer"):
        PruningImpactAnalyzer(model).simulate([(0, 0)], "x")
