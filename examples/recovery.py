"""Prune a language model by half of its neurons and heads, and fine-tune it in four ways with the same number of steps.

The model is stdlib-gpt, which comes with the package; it learns from sources of the standard library and is judged on
modules it never saw. `magnitude` removes what is smallest and leaves the rest as it is; `compress` repairs first.

    pip install 'neuronscope[transformers,lora]'
    python examples/recovery.py --steps 200
"""

import argparse
import copy
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

import pruner
from neuronscope import reference

STARTS = ("magnitude", "compress")
WAYS: dict[str, dict[str, Any]] = {
    "labels": {},
    "answers of the dense model": {"distill": True},
    "answers and hidden states": {"distill": True, "hidden": 1.0},
    "answers, adapters of rank 16": {"distill": True, "lora": 16},
}


def main() -> None:
    """Print one line for every start and way."""
    parser = argparse.ArgumentParser(description="Fine-tune a pruned language model in four ways.")
    parser.add_argument("--steps", type=int, default=200, help="of 16 windows of 128 tokens each")
    parser.add_argument("--share", type=float, default=0.5, help="of the neurons and heads, from 0 to 1")
    chosen = parser.parse_args()
    Console().print(table(run(chosen.steps, chosen.share)))


def run(
    steps: int, share: float, *, starts: Sequence[str] = STARTS, judged: int = 8, length: int = 128
) -> list[tuple[str, str, float, int]]:
    """(start, way, loss in nats a token, the step it was reached at) for each; at most `steps` steps are taken."""
    dense = reference.load("stdlib-gpt").model
    train = reference.batches("stdlib-gpt", batch_size=16, length=length)
    held_out = reference.batches("stdlib-gpt", "held-out", count=judged, batch_size=16, length=length)

    def metric(model: nn.Module) -> float:
        return -reference.measured(model, held_out)["loss"]

    rows = [("dense", "", -metric(dense), 0)]
    for start in starts:
        pruned = copy.deepcopy(dense)
        if start == "magnitude":
            pruner.PruningEngine().prune_by_strategy(pruned, "magnitude", share)
        else:
            calibration = reference.batches("stdlib-gpt", count=4, batch_size=16, length=length, seed=1)
            pruner.compress(pruned, calibration, ratio=share, effort="low")
        rows.append((start, "not trained", -metric(pruned), 0))
        for way, options in WAYS.items():
            model, given = copy.deepcopy(pruned), dict(options)
            teacher = dense if given.pop("distill", False) else None
            if start == "magnitude" and "lora" not in given:
                given["learning_rate"] = 1e-3  # far from the dense model; what was repaired needs small steps
            result = pruner.recover(model, train, steps=steps, teacher=teacher, metric=metric, **given)
            rows.append((start, way, -float(result.after or 0.0), result.best_step))
    return rows


def table(rows: list[tuple[str, str, float, int]]) -> Table:
    """One line for each."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("pruned by", "learned from", "nats a token", "best step"):
        shown.add_column(heading, justify="right" if heading in ("nats a token", "best step") else "left")
    for start, way, loss, step in rows:
        shown.add_row(start, way, f"{loss:.3f}", str(step) if step else "")
    return shown


if __name__ == "__main__":
    main()
