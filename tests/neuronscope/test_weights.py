"""Every number about weights, against the arithmetic written out."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from neuronscope.layers import Layers
from neuronscope.patterns import patterns_of
from neuronscope.weights import WeightAnalyzer
from tracker import discover
from tracker.errors import DataError, UnknownLayerError

transformers = pytest.importorskip("transformers")


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=32)
    return transformers.GPT2LMHeadModel(config).eval()


def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(num_hidden_layers=3, vocab_size=50, **sizes)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def analyzer() -> WeightAnalyzer:
    model = gpt2()
    discover(model)
    return WeightAnalyzer(model)


def test_neurons_are_those_of_the_mlps_in_any_architecture(analyzer: WeightAnalyzer) -> None:
    assert [(layer.name, layer.size) for layer in analyzer.layers.all] == [
        ("transformer.h.0", 64),
        ("transformer.h.1", 64),
    ]
    model = llama()
    layers = Layers.of(discover(model))
    assert [(layer.name, layer.size) for layer in layers.all] == [(f"model.layers.{i}", 24) for i in range(3)]
    assert layers.index_of("model.layers.1.mlp.up_proj") == 1
    assert layers.index_of("lm_head") == -1
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    assert [(layer.name, layer.size) for layer in Layers.of(discover(plain, torch.randn(2, 4))).all] == [
        ("0", 8),
        ("2", 6),
    ]


def test_indices_that_are_none(analyzer: WeightAnalyzer) -> None:
    layers = analyzer.layers
    for index in (2, -1, True, "0"):
        with pytest.raises(UnknownLayerError, match="The model has 2 layers"):
            layers[index]  # type: ignore[index]
    for neuron in (64, -1, True, 1.0):
        with pytest.raises(DataError, match="Layer 0 has 64 neurons"):
            layers[0].split([neuron])  # type: ignore[list-item]


def test_parameters_are_counted_once_and_biases_with_them(analyzer: WeightAnalyzer) -> None:
    stats = analyzer.extract_weight_stats()
    total = sum(p.numel() for p in analyzer.model.parameters())  # GPT-2's head is its embedding
    assert sum(entry.total_parameters for entry in stats) == total
    assert "lm_head" not in {entry.layer_name for entry in stats}
    entry = next(entry for entry in stats if entry.layer_name == "transformer.h.1.mlp.c_fc")
    module = analyzer.model.get_submodule(entry.layer_name)
    values = torch.cat([module.weight.flatten(), module.bias.flatten()]).detach().abs().double()
    assert entry.layer_index == 1
    assert entry.mean_magnitude == pytest.approx(float(values.mean()))
    assert entry.std_magnitude == pytest.approx(float(values.std(correction=0)))
    assert (entry.min_magnitude, entry.max_magnitude) == (float(values.min()), float(values.max()))
    assert entry.l1_norm == pytest.approx(float(values.sum()))
    assert entry.l2_norm == pytest.approx(float(values.square().sum().sqrt()))
    assert entry.non_zero_parameters == int((values != 0).sum())


@pytest.mark.parametrize(("threshold", "flagged"), [(0, 0), (10.0, 6), (50, 32), (100, 64)])
def test_exactly_the_threshold_of_each_layer_is_flagged(
    analyzer: WeightAnalyzer, threshold: float, flagged: int
) -> None:
    candidates = analyzer.identify_pruning_candidates(threshold)
    assert [(c.layer_index, c.neuron_index) for c in candidates] == [(i, n) for i in range(2) for n in range(64)]
    for layer in range(2):
        own = [c for c in candidates if c.layer_index == layer]
        # GPT-2 keeps the weights of a layer as (inputs, neurons): a neuron is a column.
        weight = analyzer.model.transformer.h[layer].mlp.c_fc.weight.detach()
        expected = weight.abs().mean(0)
        np.testing.assert_allclose([c.weight_magnitude for c in own], expected, rtol=1e-5)
        assert sorted(c.weight_rank for c in own) == list(range(1, 65))
        largest = max(own, key=lambda c: c.weight_magnitude)
        smallest = min(own, key=lambda c: c.weight_magnitude)
        assert (largest.weight_rank, largest.pruning_score) == (1, 0.0)
        assert (smallest.weight_rank, smallest.pruning_score) == (64, 1.0)
        assert sum(c.is_pruning_candidate for c in own) == flagged
        lowest = {c.neuron_index for c in sorted(own, key=lambda c: c.weight_magnitude)[:flagged]}
        assert {c.neuron_index for c in own if c.is_pruning_candidate} == lowest
        norms = analyzer.model.transformer.h[layer].mlp.c_proj.weight.detach().norm(dim=1)
        np.testing.assert_allclose([c.consumer_norm for c in own], norms, rtol=1e-5)


@pytest.mark.parametrize("threshold", [-1, 101, float("nan"), True])
def test_thresholds_that_are_no_percentage(analyzer: WeightAnalyzer, threshold: float) -> None:
    with pytest.raises(DataError, match="no percentage"):
        analyzer.identify_pruning_candidates(threshold)


def test_zeros_and_bands() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        model[0].weight[0] = 0.005
        model[0].weight[1] = 0.03
        model[0].bias.zero_()
    discover(model, torch.randn(2, 4))
    found = WeightAnalyzer(model).get_sparsity_analysis()
    assert found["total_parameters"] == 30
    assert found["overall_sparsity"] == pytest.approx(4 / 30)
    assert found["sparsity_band"] == "moderate"
    assert found["layer_sparsity"]["0"] == {"sparsity": pytest.approx(0.2), "total_params": 20, "non_zero_params": 16}
    assert found["neurons"] == {"total": 4, "very low": 1, "low": 1, "normal": 2}


def test_the_export_is_json_with_everything(analyzer: WeightAnalyzer, tmp_path: Path) -> None:
    path = analyzer.export_weight_analysis(tmp_path / "sub" / "w.json")
    data = json.loads(path.read_text())
    assert data["type"] == "weight"
    assert len(data["candidates"]) == 128
    assert next(iter(data["patterns"].values()))["gini"] > 0


def test_weights_that_are_not_there_or_no_numbers() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    neurons = discover(model, torch.randn(2, 4))
    with pytest.raises(DataError, match="meta device"):
        WeightAnalyzer(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).to("meta"), neurons)
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    with pytest.raises(DataError, match="'2' hold NaN"):
        WeightAnalyzer(model).extract_weight_stats()


def test_patterns() -> None:
    dense = patterns_of(torch.ones(8, 8))
    assert (dense.zero, dense.gini, dense.outliers) == (0, 0, ())
    assert dense.effective_rank == pytest.approx(1)
    assert patterns_of(torch.eye(8)).effective_rank == pytest.approx(8)
    weight = torch.ones(8, 8)
    weight[0] = 0
    weight[:, 1] = 0
    weight[4:, 4:] = 0
    found = patterns_of(weight)
    assert (found.zero_rows, found.zero_columns, found.zero_blocks) == (1 / 8, 1 / 8, 1 / 4)
    assert found.zero == pytest.approx((8 + 7 + 16) / 64)
    assert found.two_of_four == pytest.approx((2 + 4) / 16)
    two_four = torch.tensor([[1.0, 0, 0, 1], [0, 1, 1, 0]]).repeat(4, 2)
    assert patterns_of(two_four).two_of_four == 1
    alone = torch.zeros(4, 4)
    alone[0, 0] = 1
    assert patterns_of(alone).gini == pytest.approx(15 / 16)
    wide = torch.ones(4, 10)
    wide[:, 3] = 6
    assert patterns_of(wide).outliers == (3,)
    near = torch.ones(4, 4)
    near[0, 0] = 1e-4
    assert patterns_of(near).near_zero == 1 / 16
    random = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(random.double())
    shares = values / values.sum()
    assert patterns_of(random).effective_rank == pytest.approx(
        math.exp(-float((shares * shares.log()).sum())), rel=1e-4
    )
