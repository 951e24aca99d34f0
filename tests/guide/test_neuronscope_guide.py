"""The Python of the NeuronScope guide, block by block as it stands, run at a checkout's root without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]

BLOCKS = """
from src.backend.models.gpt2_loader import MultiModelLoader
from src.backend.pruning import WeightAnalyzer, PruningImpactAnalyzer

# Load model
model_loader = MultiModelLoader()
model, tokenizer = model_loader.load_model('gpt2')

# Initialize analyzers
weight_analyzer = WeightAnalyzer(model)
pruning_analyzer = PruningImpactAnalyzer(model, tokenizer)

# Get weight analysis
sparsity_analysis = weight_analyzer.get_sparsity_analysis()
print(f"Overall sparsity: {sparsity_analysis['overall_sparsity']:.3f}")

# Identify pruning candidates
candidates = weight_analyzer.identify_pruning_candidates(threshold_percentile=10.0)
print(f"Found {len(candidates)} pruning candidates")

# Analyze impact of pruning
impact = pruning_analyzer.simulate_neuron_pruning(
    layer_index=0,
    neuron_indices=[0, 1, 2],
    input_text="Hello world"
)
print(f"Impact score: {impact.impact_score:.3f}")
print(f"Safe to prune: {impact.impact_score < 0.1}")

# Get overall model statistics
sparsity_analysis = weight_analyzer.get_sparsity_analysis()
print(f"Model has {sparsity_analysis['total_parameters']:,} parameters")
print(f"Current sparsity: {sparsity_analysis['overall_sparsity']:.3f}")

# Find neurons with low weight magnitudes
candidates = weight_analyzer.identify_pruning_candidates(threshold_percentile=10.0)
safe_candidates = [c for c in candidates if c.is_pruning_candidate]
print(f"Identified {len(safe_candidates)} safe pruning candidates")

# Test impact of pruning individual neurons
for candidate in safe_candidates[:5]:  # Test first 5
    impact = pruning_analyzer.simulate_neuron_pruning(
        candidate.layer_index,
        [candidate.neuron_index],
        "Hello world"
    )
    print(f"Neuron {candidate.neuron_index}: impact={impact.impact_score:.3f}")

# Test cumulative impact of pruning multiple neurons
batch_candidates = [
    {"layer_index": c.layer_index, "neuron_index": c.neuron_index}
    for c in safe_candidates[:10]
]

batch_results = pruning_analyzer.batch_pruning_analysis(
    ["Hello world", "Test input"],
    batch_candidates
)

print(f"Safe to prune: {batch_results['recommendations']['safe_to_prune']}")
print(f"Risky to prune: {batch_results['recommendations']['risky_to_prune']}")

# Save analysis for later reference
weight_analyzer.export_weight_analysis("pruning_analysis.json")
"""


def run(words: list[str], folder: Path) -> str:
    """Standard output of Python with the checkout's root on its path, as if started there."""
    env = {**os.environ, "NEURONSCOPE_MODEL_ALIASES": "gpt2=stdlib-gpt", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_guides_python_as_it_stands(tmp_path: Path) -> None:
    lines = run(["-c", BLOCKS], tmp_path).splitlines()
    assert "Found 4608 pruning candidates" in lines  # all neurons of six blocks of 768
    assert "Identified 456 safe pruning candidates" in lines  # a tenth of each block
    assert "Model has 3,898,368 parameters" in lines
    assert json.loads((tmp_path / "pruning_analysis.json").read_text())["total_parameters"] == 3_898_368


def test_the_support_line(tmp_path: Path) -> None:
    said = run([str(ROOT / "test_pruning_analysis.py")], tmp_path)
    assert "4608 neurons" in said
    assert json.loads((tmp_path / "data" / "weight_analysis.json").read_text())["type"] == "weight"
    assert json.loads((tmp_path / "data" / "impact_analysis.json").read_text())["type"] == "impact"
