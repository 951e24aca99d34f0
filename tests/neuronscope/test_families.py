"""Architectures of many families: an impact is what the model says when hooks of another kind silence the neurons."""

from typing import Any

import pytest
import torch
from tests.neuronscope.test_impact import Letters
from torch import nn

from neuronscope.impact import PruningImpactAnalyzer
from neuronscope.inputs import batches_of
from neuronscope.movement import Scale
from neuronscope.weights import WeightAnalyzer
from pruner import PruningPlan, masked
from pruner.compensation.distance import answer
from tracker import discover
from tracker.batches import evaluating, forward

transformers = pytest.importorskip("transformers")

WIDE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED = WIDE | {"num_key_value_heads": 1, "vocab_size": 50} | SPECIAL
MIXED = GROUPED | {"num_local_experts": 2, "num_experts_per_tok": 1}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
BART = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "vocab_size": 50,
} | SPECIAL
HALVES = {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", WIDE | {"vocab_size": 50}),
    "OPTForCausalLM": (
        "OPTConfig",
        {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
        | {"word_embed_proj_dim": 16}
        | SPECIAL,
    ),
    "MistralForCausalLM": ("MistralConfig", GROUPED),
    "Qwen2ForCausalLM": ("Qwen2Config", GROUPED),
    "Gemma2ForCausalLM": ("Gemma2Config", GROUPED | {"head_dim": 8}),
    "PhiForCausalLM": ("PhiConfig", WIDE | {"vocab_size": 50} | SPECIAL),
    "MixtralForCausalLM": ("MixtralConfig", MIXED),
    "BertForMaskedLM": ("BertConfig", WIDE | {"vocab_size": 50}),
    "T5ForConditionalGeneration": ("T5Config", T5 | {"decoder_start_token_id": 0}),
    "BartForConditionalGeneration": ("BartConfig", BART | HALVES),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_impact_is_that_of_silenced_neurons(name: str) -> None:
    config, sizes = FAMILIES[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**sizes)).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in parameter_name:
                parameter.mul_(8)
    check(model, ["hello world", "a test"])


def test_images() -> None:
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(**WIDE, image_size=8, patch_size=4, num_channels=1, num_labels=5)
    ).eval()
    check(model, torch.randn(3, 1, 8, 8))


def check(model: nn.Module, inputs: Any) -> None:
    neurons = discover(model)
    analyzer = PruningImpactAnalyzer(model, Letters(), neurons)
    assert len(WeightAnalyzer(model, neurons).identify_pruning_candidates()) == sum(
        layer.size for layer in analyzer.layers.all
    )
    last = len(analyzer.layers) - 1
    chosen = [(layer, neuron) for layer in (0, last) for neuron in range(1, 9)]  # grouped products go by eights
    with evaluating(model):
        batches = batches_of(model, Letters(), inputs)
        dense = [answer(forward(model, batch), batch) for batch in batches]
        with masked(model, PruningPlan(analyzer.layers.split(chosen)), neurons):
            found = [answer(forward(model, batch), batch) for batch in batches]
    expected = Scale(dense, [None] * len(dense)).movement(found).score
    assert analyzer.simulate(chosen, inputs).impact_score == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert expected > 0
    exact = analyzer.analyze_neuron_importance(inputs, last, method="exact")
    alone = analyzer.simulate([(last, 2)], inputs).impact_score
    assert exact[2].impact_score == pytest.approx(alone, rel=1e-3, abs=1e-6)
    assert len(analyzer.analyze_neuron_importance(inputs, last, probes=2, sample=2)) == analyzer.layers[last].size
    batch = analyzer.batch_pruning_analysis(inputs, [{"layer_index": last, "neuron_index": n} for n in range(8)])
    assert batch["individual_impacts"][2]["impact_score"] == pytest.approx(alone, rel=1e-3, abs=1e-6)
    assert all(0 <= analyzer.simulate(chosen, inputs, ablation=how).impact_score < 1 for how in ("mean", "repaired"))  # type: ignore[arg-type]
