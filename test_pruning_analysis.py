"""A short self-check of the analysis, as the guide's support line names it: `python test_pruning_analysis.py`.

Runs offline with the language model that comes with the package; its example outputs lie in `data/` afterwards.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("NEURONSCOPE_MODEL_ALIASES", "gpt2=stdlib-gpt")
sys.path.insert(0, str(Path(__file__).parent))

from src.backend.models.gpt2_loader import MultiModelLoader
from src.backend.pruning import PruningImpactAnalyzer, WeightAnalyzer

DATA = Path("data")
TEXTS = ["def add(a, b):\n    return a + b\n", "import os\nfor name in os.listdir('.'):\n    print(name)\n"]


def main() -> None:
    """Go once through everything, and say what was found."""
    model, tokenizer = MultiModelLoader().load_model("gpt2")
    weights = WeightAnalyzer(model)
    analyzer = PruningImpactAnalyzer(model, tokenizer)
    sparsity = weights.get_sparsity_analysis()
    print(f"{sparsity['total_parameters']:,} parameters, {sparsity['overall_sparsity']:.2%} of them zero")
    candidates = weights.identify_pruning_candidates(threshold_percentile=10.0)
    flagged = [candidate for candidate in candidates if candidate.is_pruning_candidate]
    print(f"{len(candidates)} neurons, {len(flagged)} with the lowest weights of their layers")
    importance = analyzer.analyze_neuron_importance(TEXTS, 0)
    critical = sum(entry.is_critical for entry in importance)
    print(f"Layer 0: {critical} critical neurons; estimate and exact impact: ρ = {importance.rank_correlation:.2f}")
    chosen = [{"layer_index": c.layer_index, "neuron_index": c.neuron_index} for c in flagged[:5]]
    results = analyzer.batch_pruning_analysis(TEXTS, chosen)
    print(f"Five of them: {results['recommendations']}")
    for path in (
        weights.export_weight_analysis(DATA / "weight_analysis.json"),
        analyzer.export_pruning_analysis(DATA / "impact_analysis.json"),
    ):
        print(f"Written: {path}")


if __name__ == "__main__":
    main()
