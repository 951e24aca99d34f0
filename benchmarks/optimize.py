"""`optimize` against an exhaustive sweep: how small, and after how many evaluations.

The sweep tries every share of the MLP's neurons and of the heads on a grid, by both rules by which layers share the
loss; `optimize` is given the same model, data, metric and tolerance. `python benchmarks/optimize.py`, about half an
hour on a core; it goes on where it was stopped. Needs the extras "demo", "transformers" and "search".
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import write

from neuronscope import reference
from pruner import create_default_config, optimize
from pruner.tries import Tries, pareto
from tracker.progress import progress

TOLERANCE = 0.02
MLP = [number / 20 for number in range(20)]
HEADS = [number / 10 for number in range(10)]
RULES = ("measured", "uniform")
TRIALS = 6


def main() -> None:
    """Sweep, search, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("build/optimize"), help="where tries are written down")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    data = [images for images, _ in reference.batches("digits-vit", batch_size=32, count=4)]
    held_out = reference.batches("digits-vit", "held-out", batch_size=360)

    def metric(model: nn.Module) -> float:
        return -reference.measured(model, held_out)["loss"]

    config = create_default_config().update(
        thresholds={"max_sparsity_per_layer": 0.95},
        validation={"max_pruning_ratio": 0.95},
        logging={"log_to_console": False},
    )
    how: dict[str, Any] = {"kinds": (), "effort": "low", "config": config, "seed": 0}
    start = time.perf_counter()
    sweep = Tries(reference.load("digits-vit").model, data, metric, how, chosen.folder / "sweep")
    grid = [(rule, mlp, heads) for rule, mlp, heads in itertools.product(RULES, MLP, HEADS) if mlp or heads]
    for rule, mlp, heads in progress(grid, "Sweeping"):
        sweep.at(rule, {"ratio": {"mlp": mlp, "attention": heads}})
    swept = time.perf_counter() - start
    good = [point for point in sweep.points if point.metric >= sweep.dense - TOLERANCE]
    best = min(good, key=lambda point: point.parameters)
    start = time.perf_counter()
    search = optimize(
        reference.load("digits-vit").model,
        data,
        metric,
        tolerance=TOLERANCE,
        rules=RULES,
        resolution=0.02,
        trials=TRIALS,
        config=config,
        dry_run=True,
        seed=0,
    )["search"]
    searched = time.perf_counter() - start
    found = search["chosen"]
    evaluations = len(sweep.points)
    rows = [
        ["sweep", str(evaluations), f"{best.parameters:.1%}", f"{best.metric:.4f}", f"{swept:.0f} s"],
        [
            "optimize",
            str(search["evaluations"]),
            f"{found['parameters']:.1%}",
            f"{found['metric']:.4f}",
            f"{searched:.0f} s",
        ],
    ]
    columns = ["", "evaluations", "parameters left", "metric (dense " + f"{sweep.dense:.4f})", "time"]
    write(
        "optimize",
        columns,
        rows,
        {
            "tolerance": TOLERANCE,
            "sweep": {"evaluations": evaluations, "best": vars(best), "front": [vars(p) for p in pareto(sweep.points)]},
            "optimize": {key: search[key] for key in ("evaluations", "chosen", "dense", "points")},
            "parameters_over_sweep": found["parameters"] / best.parameters,
            "evaluations_over_sweep": search["evaluations"] / evaluations,
        },
    )


if __name__ == "__main__":
    main()
