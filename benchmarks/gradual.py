"""Neurons that go while a model trains, against the same share at once and the same number of steps.

Both arms start from the same trained model, choose by the same rule, take the same steps on the same batches with the
same learning rates, and lose 70 % of their neurons. `python benchmarks/gradual.py` (make bench-training), about half an
hour on two cores. Needs the extras "demo" and "transformers".
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import write

from neuronscope import reference
from pruner import GradualPruning, create_default_config
from pruner.current_map import current_map
from tracker.batches import evaluating

SHARE = 0.7
ARMS = ("one-shot", "gradual")
CONFIG = create_default_config().update(
    thresholds={"max_sparsity_per_layer": 0.9},
    validation={"max_pruning_ratio": 0.9, "dry_run_first": False},
    logging={"log_to_console": False},
)


def main() -> None:
    """Run both arms on both models and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="of the order of the batches")
    parser.add_argument("--steps", type=int, default=600, help="of the digits; the language model takes half of it")
    chosen = parser.parse_args()
    seeds = range(chosen.seeds)
    data: dict[str, Any] = {
        "digits-cnn": [run("digits-cnn", arm, chosen.steps, 64, 1e-3, seed) for seed in seeds for arm in ARMS],
        "stdlib-gpt": [run("stdlib-gpt", arm, chosen.steps // 2, 16, 1e-3, seed) for seed in seeds[:1] for arm in ARMS],
    }
    rows = []
    for name, found in data.items():
        for arm in ("dense", *ARMS):
            own = [one for one in found if one["arm"] == arm] or [found[0] | found[0]["dense"]]
            rows.append(
                [
                    name,
                    arm if arm in ARMS else "dense, not trained on",
                    str(len(own)) if arm in ARMS else "",
                    f"{mean(one['neurons'] for one in own) / own[0]['dense']['neurons']:.0%}",
                    f"{mean(one['accuracy'] for one in own):.2%}",
                    f"{mean(one['loss'] for one in own):.4f}",
                ]
            )
    columns = ["model", "arm", "seeds", "neurons left", "accuracy, held out", "loss in nats, held out"]
    write("gradual", columns, rows, {"share": SHARE, "steps": chosen.steps, "runs": data})


def run(name: str, arm: str, steps: int, batch_size: int, rate: float, seed: int) -> dict[str, Any]:
    """One arm: what is left, and how good it is on data held out."""
    print(f"{name}, {arm}, seed {seed}", flush=True)
    torch.manual_seed(seed)
    model = copy.deepcopy(reference.load(name).model)
    options = {"length": 128} if name == "stdlib-gpt" else {}
    train = reference.batches(name, batch_size=batch_size, seed=seed, **options)  # type: ignore[arg-type]
    held_out = reference.batches(name, "held-out", batch_size=64, count=8, **options)  # type: ignore[arg-type]
    dense = judged(model, held_out)
    begin, end = (1, 1) if arm == "one-shot" else (steps // 20, steps * 2 // 5)
    every = max(1, (end - begin) // 12) if end > begin else 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 20, 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-2)
    )
    pruning = GradualPruning(
        model, SHARE, begin=begin, every=every, end=end, optimizer=optimizer, watch=5, config=CONFIG, example=train[0]
    )
    neurons = pruning.engine.see(model, train[:1]).neurons
    pruning.start()
    model.train()
    order: list[Any] = []
    random = torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        order = order or [train[i] for i in torch.randperm(len(train), generator=random).tolist()]
        optimizer.zero_grad()
        loss_of(model, order.pop()).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        pruning.step(step)
    pruning.close()
    left = current_map(model).neurons
    return {
        "arm": arm,
        "seed": seed,
        "neurons": left,
        **judged(model, held_out),
        "dense": {"neurons": neurons, **dense},
    }


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    """The loss of each token or image."""
    if isinstance(batch, dict):
        ids = batch["input_ids"]
        logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
        return nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
    images, labels = batch
    output = model(images)
    return nn.functional.cross_entropy(getattr(output, "logits", output), labels, reduction="none")


def judged(model: nn.Module, held_out: Sequence[Any]) -> dict[str, float]:
    """Loss and accuracy on data held out."""
    with evaluating(model):
        return reference.measured(model, held_out)


if __name__ == "__main__":
    main()
