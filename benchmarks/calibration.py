"""What an impact score means: how much the loss rises, and how often the first choice changes, at 0.1 and at 0.3.

Sets of neurons of one to all layers and of many sizes, drawn at random and by weight, are taken out of the trained
models that come with the package. `python benchmarks/calibration.py`, a few minutes. Needs the extra "transformers".
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import write

from neuronscope import reference
from neuronscope.impact import PruningImpactAnalyzer
from neuronscope.weights import WeightAnalyzer
from tracker.progress import progress

SETS = 60
BANDS = ((0.0, 0.1), (0.1, 0.3), (0.3, 1.0))


def main() -> None:
    """Measure, and write how loss and agreement go with the score."""
    data = {}
    for name in ("stdlib-gpt", "stdlib-llama"):
        loaded = reference.load(name)
        held_out = reference.batches(name, "held-out", count=1, batch_size=8, length=128)[0]
        analyzer = PruningImpactAnalyzer(loaded.model, loaded.tokenizer)
        data[name] = measure(analyzer, {"input_ids": held_out["input_ids"]})
    table(data)


def table(data: dict[str, list[dict[str, float]]]) -> None:
    """Write what was measured."""
    rows = []
    for name, found in data.items():
        for low, high in BANDS:
            own = [one for one in found if low <= one["score"] < high]
            if own:
                rises, changes = ([one[key] for one in own] for key in ("loss_change", "changed"))
                shown = f"{np.median(rises):.3f} ({min(rises):.3f} to {max(rises):.3f})"
                rows.append([name, f"{low} to {high}", str(len(own)), shown, f"{np.median(changes):.1%}"])
        for at in (0.1, 0.3):
            rows.append([name, f"at {at}", "", f"{interpolated(found, at):.3f}", ""])
    columns = ["model", "impact score", "sets", "rise of the loss in nats: median (range)", "first choices that change"]
    write("calibration", columns, rows, {"sets": SETS, "runs": data})


def measure(analyzer: PruningImpactAnalyzer, inputs: Any) -> list[dict[str, float]]:
    """Score, rise of the loss and share of changed first choices for each set."""
    random = np.random.default_rng(0)
    sizes = [layer.size for layer in analyzer.layers.all]
    everything = [(layer, neuron) for layer, size in enumerate(sizes) for neuron in range(size)]
    candidates = WeightAnalyzer(analyzer.model, analyzer.neurons).identify_pruning_candidates()
    lightest = [
        (c.layer_index, c.neuron_index) for c in sorted(candidates, key=lambda c: c.pruning_score, reverse=True)
    ]
    found = []
    for number in progress(range(SETS), "Taking out sets"):
        size = round(np.exp(random.uniform(0, np.log(0.8 * len(everything)))))
        if number % 3 == 0:
            chosen = lightest[:size]
        else:
            layers = range(len(sizes)) if number % 3 == 1 else [int(random.integers(len(sizes)))]
            pool = [pair for pair in everything if pair[0] in layers]
            chosen = [pool[i] for i in random.permutation(len(pool))[:size]]
        metrics = analyzer.simulate(chosen, inputs).metrics
        found.append(
            {
                "neurons": len(chosen),
                "score": metrics.score,
                "loss_change": float(metrics.loss_change or 0.0),
                "changed": 1 - float(metrics.top1_agreement or 0.0),
                "kl": float(metrics.kl or 0.0),
            }
        )
    return found


def interpolated(found: list[dict[str, float]], at: float) -> float:
    """The rise of the loss at a score, between neighbouring ones."""
    ordered = sorted(found, key=lambda one: one["score"])
    scores, rises = ([one[key] for one in ordered] for key in ("score", "loss_change"))
    return float(np.interp(at, scores, rises))


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
