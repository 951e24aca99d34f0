"""What tracking costs a training: seconds a step, tracked over plain, beside wandb.watch and TorchLens.

Every arm trains a copy of its own, step by step in turn with a plain one, as it is written and compiled; "plain, again"
shows what such a ratio is worth. The tracker keeps the moments of all neurons in each step, or in one of 50;
`wandb.watch` keeps histograms of the gradients in each step, or in one of 50; TorchLens records every operator's
output, in a forward of its own. `make bench-training`; needs the extras "demo" and "transformers", wandb and torchlens.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import RESULTS, write

from neuronscope import reference
from tracker import NeuronTracker, discover

MODELS = {"digits-cnn": (256, {}), "stdlib-gpt": (8, {"length": 128})}
ARMS = (
    "plain, again",
    "tracked, each step",
    "tracked, 1 step of 50",
    "wandb.watch, each step",
    "wandb.watch, 1 step of 50",
    "TorchLens",
)
HOWS = ("eager", "compiled")
TARGETS = {"tracked, each step": 1.05, "tracked, 1 step of 50": 1.01}

Step = Callable[[], None]


def main() -> None:
    """Measure each arm in a process of its own, since some rivals change torch itself, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of 50 steps")
    parser.add_argument("--how", choices=HOWS, help="only these; the other results stay")
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "ARM", "HOW"), help="measure one, for the parent")
    chosen = parser.parse_args()
    if chosen.one:
        name, arm, how = chosen.one
        print("\n" + json.dumps(measure(name, arm, how == "compiled", chosen.rounds)))
        return
    written = RESULTS / "training.json"
    data = json.loads(written.read_text())["runs"] if chosen.how and written.exists() else []
    data = [run for run in data if run["how"] != chosen.how]
    for name in MODELS:
        for how in [chosen.how] if chosen.how else HOWS:
            for arm in ARMS:
                if (arm == "TorchLens" and how == "compiled") or (arm.startswith("wandb") and how == "compiled"):
                    continue  # neither sees into compiled code
                found = in_a_process(name, arm, how, 1 if arm == "TorchLens" else chosen.rounds)
                data.append({"model": name, "how": how, "arm": arm, **found})
                print(data[-1], flush=True)
    rows = []
    for run in sorted(data, key=lambda run: (list(MODELS).index(run["model"]), HOWS.index(run["how"]))):
        target = f"{TARGETS[run['arm']]:.2f}" if run["arm"] in TARGETS else ""
        shown = [f"{run['plain_ms']:.1f} ms", f"{run['ratio']:.3f}"] if "ratio" in run else ["", run["error"]]
        rows.append([run["model"], run["how"], run["arm"], *shown, target])
    columns = ["model", "how", "arm", "plain step", "ratio to plain", "target"]
    write("training", columns, rows, {"rounds": chosen.rounds, "runs": data})


def in_a_process(name: str, arm: str, how: str, rounds: int) -> dict[str, Any]:
    """What `measure` found, or the last line of what went wrong."""
    words = [sys.executable, __file__, "--rounds", str(rounds), "--one", name, arm, how]
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": folder, "WANDB_SILENT": "true"}
        done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)  # noqa: S603
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["failed"])[-1][:200]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(name: str, arm: str, compiled: bool, rounds: int) -> dict[str, float]:
    """Both arms step by step in turn: ratios of 50 steps together, and of the median steps."""
    torch.set_num_threads(2)
    size, options = MODELS[name]
    batch = reference.batches(name, count=1, batch_size=size, **options)[0]  # type: ignore[arg-type]
    with ExitStack() as stack:
        plain = stepper(name, batch, compiled, "plain", stack)
        other = stepper(name, batch, compiled, arm, stack)
        for step in (plain, other, plain, other):  # compiles, and warms up
            step()
        ratios, steps = [], ([], [])  # type: ignore[var-annotated]
        for _ in range(rounds):
            seconds: tuple[list[float], list[float]] = ([], [])
            for number in range(50):
                for one in (0, 1) if number % 2 else (1, 0):
                    start = time.perf_counter()
                    (plain, other)[one]()
                    seconds[one].append(time.perf_counter() - start)
            ratios.append(sum(seconds[1]) / sum(seconds[0]))
            for all_, own in zip(steps, seconds, strict=True):
                all_ += own
    return {
        "plain_ms": 1e3 * median(steps[0]),
        "ms": 1e3 * median(steps[1]),
        "ratio": median(ratios),
        "ratio_of_medians": median(steps[1]) / median(steps[0]),
    }


def stepper(name: str, batch: Any, compiled: bool, arm: str, stack: ExitStack) -> Step:
    """A function that takes one step of training, watched as the arm says."""
    torch.manual_seed(0)
    model = copy.deepcopy(reference.load(name).model).train()
    inputs = {"input_ids": batch["input_ids"]} if isinstance(batch, dict) else {}
    images = () if inputs else (batch[0],)
    labels = batch["input_ids"][:, 1:].flatten() if inputs else batch[1]
    if arm.startswith("tracked"):
        discover(model, images or None, inputs or None)
        model.train()
    call: Any = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    after: Callable[[], object] = lambda: None  # noqa: E731
    if arm.startswith("tracked"):
        tracker = NeuronTracker(call)
        stack.enter_context(tracker.tracking(every=50 if arm.endswith("50") else 1))
    elif arm.startswith("wandb"):
        import wandb

        run = stack.enter_context(wandb.init(project="training", mode="offline"))
        run.watch(model, log="gradients", log_freq=50 if arm.endswith("50") else 1)
        after = lambda: run.log({"step": 1})  # noqa: E731
    elif arm == "TorchLens":
        import torchlens

        # Its recorder for training refuses integers (token ids, counters), so the batch is looked at once more.
        after = lambda: torchlens.trace(model, images or None, inputs or None)  # noqa: E731

    def step() -> None:
        optimizer.zero_grad()
        output = call(*images, **inputs)
        logits = output.logits[:, :-1].flatten(0, 1) if inputs else output
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        after()

    return step


if __name__ == "__main__":
    main()
