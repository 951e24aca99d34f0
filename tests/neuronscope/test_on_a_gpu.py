"""What is looked at, pruned and proved on a CUDA device is what it is on the CPU."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import pruner
from neuronscope import reference
from neuronscope.impact import PruningImpactAnalyzer
from neuronscope.loader import MultiModelLoader
from neuronscope.quantized import dequantized
from neuronscope.weights import WeightAnalyzer
from pruner.equivalence import reordered
from tracker import discover
from tracker.discover import example_call

pytestmark = pytest.mark.gpu
TEXTS = ["import os\nimport sys\n\ndef main():\n    return", "class Reader:\n    def __init__(self, path):\n"]
CHOSEN = [(layer, neuron) for layer in range(6) for neuron in range(0, 60, 7)]


def both() -> tuple[PruningImpactAnalyzer, PruningImpactAnalyzer]:
    loaded = reference.load("stdlib-gpt")
    on_gpu = copy.deepcopy(loaded.model).to("cuda")
    return PruningImpactAnalyzer(loaded.model, loaded.tokenizer), PruningImpactAnalyzer(on_gpu, loaded.tokenizer)


@pytest.mark.parametrize("ablation", ["zero", "mean", "repaired"])
def test_impact(ablation: str) -> None:
    cpu, gpu = both()
    expected = cpu.simulate(CHOSEN, TEXTS, ablation=ablation)  # type: ignore[arg-type]
    found = gpu.simulate(CHOSEN, TEXTS, ablation=ablation)  # type: ignore[arg-type]
    assert found.impact_score == pytest.approx(expected.impact_score, rel=1e-2)
    assert found.metrics.kl == pytest.approx(expected.metrics.kl, rel=2e-2)


def test_importance_batches_and_continuations() -> None:
    cpu, gpu = both()
    exact = cpu.analyze_neuron_importance(TEXTS, 2, method="exact")
    found = gpu.analyze_neuron_importance(TEXTS, 2, method="exact")
    ours, theirs = ([one.impact_score for one in entries] for entries in (found, exact))
    np.testing.assert_allclose(ours, theirs, rtol=2e-2, atol=1e-4)
    estimate = [one.impact_score for one in gpu.analyze_neuron_importance(TEXTS, 2)]
    assert spearmanr(estimate, theirs).statistic > 0.9
    given = [{"layer_index": layer, "neuron_index": neuron} for layer, neuron in CHOSEN[:8]]
    for one, other in zip(
        *(analyzer.batch_pruning_analysis(TEXTS, given)["individual_impacts"] for analyzer in (cpu, gpu)), strict=True
    ):
        assert one["impact_score"] == pytest.approx(other["impact_score"], rel=2e-2, abs=1e-5)
    (said,) = gpu.continuations(CHOSEN, TEXTS[:1], tokens=5)
    assert said["before"] == cpu.continuations(CHOSEN, TEXTS[:1], tokens=5)[0]["before"]


def test_weights() -> None:
    loaded = reference.load("stdlib-gpt")
    expected = WeightAnalyzer(loaded.model).get_sparsity_analysis()
    found = WeightAnalyzer(copy.deepcopy(loaded.model).to("cuda")).get_sparsity_analysis()
    assert found["neurons"] == pytest.approx(expected["neurons"], rel=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's own compiler, in some versions
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compress_and_its_proof(dtype: torch.dtype) -> None:
    data = reference.batches("stdlib-gpt", "train", count=6, batch_size=8, length=64)
    held = reference.batches("stdlib-gpt", "held-out", count=4, batch_size=8, length=64)

    def loss(model: torch.nn.Module) -> float:
        with torch.no_grad():
            return float(
                torch.stack(
                    [
                        model(
                            input_ids=(ids := batch["input_ids"].to(next(model.parameters()).device)), labels=ids
                        ).loss
                        for batch in held
                    ]
                ).mean()
            )

    model = reference.load("stdlib-gpt").model.to("cuda", dtype)
    before = loss(model)
    results = pruner.compress(model, data, ratio=0.3, kinds={"mlp"}, effort="low")
    assert results["verification"]["summary"]["overall_success"]
    assert next(model.parameters()).is_cuda
    assert loss(model) < before + 0.35
    assert model.transformer.h[0].mlp.c_fc.weight.shape[1] < 4 * model.config.n_embd


@pytest.mark.filterwarnings("ignore")
def test_bitsandbytes_weights_are_judged_by_the_numbers_they_stand_for() -> None:
    pytest.importorskip("bitsandbytes")
    model, tokenizer = MultiModelLoader(use_quantization=True).load_model("stdlib-llama")
    linear = model.model.layers[2].mlp.up_proj
    assert type(linear.weight).__name__ == "Int8Params"
    assert linear.weight.is_cuda
    plain = dequantized(model)
    weight = plain.model.layers[2].mlp.up_proj.weight
    dense, _ = MultiModelLoader().load_model("stdlib-llama")
    original = dense.model.layers[2].mlp.up_proj.weight.to(weight)
    assert float((weight - original).abs().max()) <= float(original.abs().max()) / 127
    ids = tokenizer("import os", return_tensors="pt")["input_ids"].to("cuda")
    with torch.no_grad():
        model(ids)  # moves the scales to where the products need them
        again = dequantized(model).model.layers[2].mlp.up_proj.weight
        torch.testing.assert_close(again, weight)
        torch.testing.assert_close(plain(ids).logits, model(ids).logits.to(weight), rtol=0.2, atol=0.5)
    score = PruningImpactAnalyzer(model, tokenizer).simulate(CHOSEN, TEXTS).impact_score
    expected = PruningImpactAnalyzer(dense, tokenizer).simulate(CHOSEN, TEXTS).impact_score
    assert score == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("name", ["stdlib-llama", "digits-vit", "digits-cnn"])
def test_discovery_needs_no_inputs_and_takes_those_of_the_cpu(name: str) -> None:
    model = reference.load(name).model
    on_cpu = discover(model)
    given = example_call(model)
    assert given is not None
    on_gpu = copy.deepcopy(model).to("cuda")
    assert [group.name for group in discover(on_gpu)] == [group.name for group in on_cpu]
    assert [group.name for group in discover(on_gpu, given.args, given.kwargs)] == [group.name for group in on_cpu]
    again = discover(model.to("cuda"))  # what is remembered was on the CPU
    assert [group.name for group in again] == [group.name for group in on_cpu]


def test_sums_in_another_order_differ_more_than_the_terms_are_rounded() -> None:
    ratio = reordered(torch.device("cuda"), torch.float32, 4096)
    assert 1 < ratio < 200
