"""What an impact score means: how often a set of neurons called safe, or risky, changes the loss by 1 %, or more.

Sets of 1 to 1000 neurons of one or all layers, drawn at random and by weight, are taken out of the trained language
models that come with the package. The score is found out on some held-out text, the loss on other held-out text.
`python benchmarks/calibration.py`, ten minutes. Needs the extras "transformers" and "plot".
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import RESULTS, write

from neuronscope import reference
from neuronscope.impact import PruningImpactAnalyzer
from neuronscope.movement import RISKY, SAFE
from neuronscope.weights import WeightAnalyzer
from tracker.extras import require
from tracker.progress import progress

SETS = 100
MOST = 1000
CHANGED = 0.01
BANDS = ((0.0, SAFE, "safe"), (SAFE, RISKY, "caution"), (RISKY, 1.01, "risky"))


def main() -> None:
    """Measure, and write how the loss goes with the score."""
    data = {}
    for name in ("stdlib-gpt", "stdlib-llama"):
        loaded = reference.load(name)
        judged, tried = reference.batches(name, "held-out", count=2, batch_size=8, length=128)
        analyzer = PruningImpactAnalyzer(loaded.model, loaded.tokenizer)
        data[name] = measure(analyzer, {"input_ids": tried["input_ids"]}, judged)
    table(data)
    draw(data)


def table(data: dict[str, list[dict[str, float]]]) -> None:
    """Write what was measured."""
    rows = []
    for name, found in data.items():
        for low, high, called in BANDS:
            own = [one for one in found if low <= one["score"] < high]
            if own:
                changes = [one["loss_share"] for one in own]
                more = sum(abs(change) > CHANGED for change in changes)
                shown = f"{np.median(changes):+.2%} ({min(changes):+.2%} to {max(changes):+.2%})"
                rows.append(
                    [name, f"{called}: {low} to {min(high, 1.0)}", str(len(own)), shown, f"{more} of {len(own)}"]
                )
    columns = ["model", "impact score", "sets", "change of the loss: median (range)", "by more than 1 %"]
    write("calibration", columns, rows, {"sets": SETS, "runs": data})


def measure(analyzer: PruningImpactAnalyzer, tried: Any, judged: Any) -> list[dict[str, float]]:
    """Score, change of the loss and share of changed first choices for each set."""
    random = np.random.default_rng(0)
    sizes = [layer.size for layer in analyzer.layers.all]
    everything = [(layer, neuron) for layer, size in enumerate(sizes) for neuron in range(size)]
    candidates = WeightAnalyzer(analyzer.model, analyzer.neurons).identify_pruning_candidates()
    lightest = [
        (c.layer_index, c.neuron_index) for c in sorted(candidates, key=lambda c: c.pruning_score, reverse=True)
    ]
    with torch.no_grad():
        dense = float(analyzer.model(**judged).loss)
    found = []
    for number in progress(range(SETS), "Taking out sets"):
        size = round(np.exp(random.uniform(0, np.log(MOST))))
        if number % 3 == 0:
            chosen = lightest[:size]
        else:
            layers = range(len(sizes)) if number % 3 == 1 else [int(random.integers(len(sizes)))]
            pool = [pair for pair in everything if pair[0] in layers]
            chosen = [pool[i] for i in random.permutation(len(pool))[:size]]
        metrics = analyzer.simulate(chosen, tried).metrics
        elsewhere = analyzer.simulate(chosen, {"input_ids": judged["input_ids"]}).metrics
        found.append(
            {
                "neurons": len(chosen),
                "score": metrics.score,
                "loss_share": float(elsewhere.loss_change or 0.0) / dense,
                "changed": 1 - float(metrics.top1_agreement or 0.0),
                "kl": float(metrics.kl or 0.0),
            }
        )
    return found


def draw(data: dict[str, list[dict[str, float]]]) -> None:
    """The loss over the score, `calibration.png`."""
    require("matplotlib", "plot").use("Agg")
    pyplot = require("matplotlib.pyplot", "plot")
    figure, axis = pyplot.subplots(figsize=(7.2, 4.2))
    axis.axvspan(0, SAFE, color="#0072b2", alpha=0.08)
    axis.axvspan(RISKY, 1, color="#d55e00", alpha=0.08)
    for (name, found), marker in zip(data.items(), "o^", strict=True):
        points = [(one["score"], max(abs(100 * one["loss_share"]), 1e-3)) for one in found]
        axis.scatter(*zip(*points, strict=True), s=18, marker=marker, label=name, alpha=0.8)
    axis.axhline(100 * CHANGED, color="gray", linestyle=":", linewidth=1)
    axis.text(0.99, 1.1 * 100 * CHANGED, "1 %", ha="right", color="gray")
    axis.set(xscale="linear", yscale="log", xlim=(0, 1), xlabel="impact score", ylabel="change of the held-out loss, %")
    for at, called in ((SAFE / 2, "safe"), ((SAFE + RISKY) / 2, "caution"), ((RISKY + 1) / 2, "risky")):
        axis.text(at, axis.get_ylim()[1] * 0.6, called, ha="center", fontsize=9)
    axis.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(RESULTS / "calibration.png", dpi=130)


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
