"""What the closed form costs on a model of GPT-2 small's size: 12 blocks of 3,072 MLP neurons, half of them removed.

The rival is the model itself: one forward pass over the same data in the same process. Times of the solves (choosing
neurons, and solving for the weights that stay) are told apart from everything else.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pruner.compensation import closed_form
from pruner.compensation.bench import Bench
from pruner.compensation.closed_form import Wanted, prune_in_order
from tracker.batches import evaluating, forward, iter_batches
from tracker.caches import decoding_off
from tracker.discover import discover

RESULTS = Path(__file__).parent / "results" / "closed_form.json"


def main() -> None:
    """Measure, write the JSON, print the line."""
    import transformers

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--batches", type=int, default=16, help="of 8 × 256 tokens")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = transformers.GPT2Model(transformers.GPT2Config(n_layer=options.blocks)).eval()
    data = [{"input_ids": torch.randint(0, 50257, (8, 256))} for _ in range(options.batches)]
    neurons = discover(model, data_loader=data)
    mlp = [group.name for group in neurons if group.kind == "mlp"]
    solving: dict[str, float] = {}
    for name in ("eliminate", "swapped", "solve"):
        setattr(closed_form, name, _timed(getattr(closed_form, name), name, solving))
    with evaluating(model), decoding_off(model):
        batches = list(iter_batches(data, model))
        bench = Bench.of(model, neurons, mlp, batches)
        start = time.perf_counter()
        for batch in bench.data.batches:
            forward(model, batch)
        once = time.perf_counter() - start
        pruned = bench.copy()
        start = time.perf_counter()
        wanted = Wanted({}, {name: neurons[name].size // 2 for name in mlp})
        prune_in_order(bench.stages(), bench.stages(pruned), neurons, bench.consumers, wanted)
        whole = time.perf_counter() - start
    solves = sum(solving.values())
    found = {
        "blocks": options.blocks,
        "tokens": options.batches * 8 * 256,
        "forward_seconds": once,
        "closed_form_seconds": whole,
        "solve_seconds": solving,
        "seconds_a_layer": solves / len(mlp),
        "rest_over_forward": (whole - solves) / once,
        "machine": f"{platform.machine()}, {options.threads} threads",
    }
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


def _timed(function: Callable[..., Any], name: str, into: dict[str, float]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        into[name] = into.get(name, 0.0) + time.perf_counter() - start
        return result

    return timed


if __name__ == "__main__":
    main()
