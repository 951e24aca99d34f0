"""What tracking costs: the time of a tracked forward over a plain one, every batch tracked, and memory per neuron.

`python benchmarks/tracking.py` (make bench). Needs the extras "demo" and "encoder".
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import in_turn, median_ratio, write
from examples.sentence_encoder import load_encoder

from neuronscope.digits import DigitsCNN
from tracker import discover
from tracker.activity import tracked_groups
from tracker.watch import Watch, watching

ROUNDS = 25
TARGET = 1.05


def main() -> None:
    """Measure both models and write the results."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    images = torch.rand(256, 1, 8, 8)
    encoder, _ = load_encoder()
    tokens = torch.randint(1000, 20000, (32, 128))
    mask = torch.ones_like(tokens)
    cases: dict[str, tuple[nn.Module, Callable[[nn.Module], Any], tuple[Any, Any]]] = {
        "residual CNN, 256 images": (DigitsCNN(), lambda model: model(images), (images, None)),
        "sentence encoder, 32 × 128 tokens": (
            encoder,
            lambda model: model(input_ids=tokens, attention_mask=mask),
            ((), {"input_ids": tokens, "attention_mask": mask}),
        ),
    }
    rows, data = [], {}
    for name, (model, forward, example) in cases.items():
        found = measure(model.eval(), forward, example)
        data[name] = found
        rows.append(
            [
                name,
                f"{found['neurons']:,}",
                f"{found['plain_ms']:.1f} ms",
                f"{found['tracked_ms']:.1f} ms",
                f"{found['ratio']:.3f}",
                f"{found['bytes_per_neuron']:.0f}",
            ]
        )
    columns = ["model", "neurons", "plain forward", "tracked", f"ratio (target {TARGET})", "bytes held per neuron"]
    write("tracking", columns, rows, {"rounds": ROUNDS, "target": TARGET, "cases": data})


def measure(model: nn.Module, forward: Callable[[nn.Module], Any], example: tuple[Any, Any]) -> dict[str, float]:
    """Medians of plain and tracked forwards in turn, and the bytes that the statistics hold."""
    neurons = discover(model, *example)
    groups = tracked_groups(neurons)
    watch = Watch(groups)

    def run() -> None:
        with torch.no_grad():
            forward(model)

    before, after = in_turn(run, run, ROUNDS, lambda: watching(model, watch))
    watch.results()
    held: Tensor = watch.moments.block
    count = sum(group.size for group in groups)
    return {
        "neurons": count,
        "plain_ms": median(before) * 1e3,
        "tracked_ms": median(after) * 1e3,
        "ratio": median_ratio(after, before),
        "bytes_per_neuron": held.numel() * held.element_size() / count,
    }


if __name__ == "__main__":
    main()
