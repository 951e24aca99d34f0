"""What pruning gains: measured latency gain over FLOP gain, for the demo's network.

`python benchmarks/pruning.py` (make bench). Needs the extra "demo".
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import in_turn, median_ratio, write

from neuronscope.digits import DigitsCNN
from pruner import PruningEngine, create_aggressive_config
from tracker import discover

ROUNDS = 25
TARGET = 0.9
OVERALL, ROUNDED = "overall, by score", "overall, by score, round_to 16"
EVERY_LAYER = "of every layer, to multiples of 16"
HOW = ((OVERALL, 0.3), (OVERALL, 0.5), (ROUNDED, 0.3), (ROUNDED, 0.5), (EVERY_LAYER, 0.25), (EVERY_LAYER, 0.5))


def main() -> None:
    """Prune the network at some shares and time it against the dense one."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    images = torch.rand(256, 1, 8, 8)
    dense = DigitsCNN().eval()
    rows, data = [], {}
    layers = [group.name for group in discover(dense, images)]
    for how, share in HOW:
        pruned = copy.deepcopy(dense)
        discover(pruned, images)
        config = create_aggressive_config().update(logging={"log_to_console": False})
        engine = PruningEngine(config=config.update(strategy={"round_to": 16 if how == ROUNDED else 1}))
        if how == EVERY_LAYER:
            engine.prune_structured(pruned, dict.fromkeys(layers, share))
        else:
            engine.prune_by_magnitude(pruned, sparsity_ratio=share)
        before, after = in_turn(lambda: forward(dense, images), lambda model=pruned: forward(model, images), ROUNDS)
        latency, flops = median_ratio(before, after), count(dense, images) / count(pruned, images)
        widths = {group.name: group.size for group in discover(pruned, images)}
        data[f"{share} {how}"] = {
            "widths": widths,
            "dense_ms": median(before) * 1e3,
            "pruned_ms": median(after) * 1e3,
            "latency_gain": latency,
            "flop_gain": flops,
            "latency_over_flops": latency / flops,
        }
        rows.append(
            [
                f"{share:.0%} {how}",
                " ".join(str(width) for width in widths.values()),
                f"{median(before) * 1e3:.1f} ms",
                f"{median(after) * 1e3:.1f} ms",
                f"{latency:.2f}×",
                f"{flops:.2f}×",
                f"{latency / flops:.2f}",
            ]
        )
    columns = [
        "neurons removed",
        "widths left",
        "dense",
        "pruned",
        "latency gain",
        "FLOP gain",
        f"ratio (target {TARGET})",
    ]
    write("pruning", columns, rows, {"rounds": ROUNDS, "target": TARGET, "batch": 256, "cases": data})


def forward(model: torch.nn.Module, images: torch.Tensor) -> None:
    """One forward without gradients."""
    with torch.no_grad():
        model(images)


def count(model: torch.nn.Module, images: torch.Tensor) -> int:
    """FLOPs of one forward."""
    with FlopCounterMode(display=False) as counter:
        forward(model, images)
    return int(counter.get_total_flops())


if __name__ == "__main__":
    main()
