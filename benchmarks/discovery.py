"""What it takes to find, plan and slice, beside Torch-Pruning; how that grows with depth; a model without weights; and
slicing beside a plain copy.

`.venv-zoo/bin/python -m benchmarks.discovery` (make zoo builds that environment). Every measurement is a fresh process
that loads both libraries first and runs one of them once; both take half of every group by the size of its weights.
Neither proves anything numerically here: Torch-Pruning cannot, and ours tries the smaller shapes only. Seconds are
processor time of one thread, so that a busy machine changes little about them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from benchmarks.measuring import write
from torch import Tensor, nn

ROUNDS = 3
DEPTHS = (4, 8, 16, 32, 64, 128)
BESIDE = (*(f"llama-{blocks}" for blocks in DEPTHS), "llama-1.3b", "densenet201", "resnet18", "resnet50", "vgg16",
          "mobilenet_v3_small", "efficientnet_b0", "vit_b_16")  # fmt: skip
LIMIT_SECONDS = 900
TARGETS = {
    "times faster than Torch-Pruning (64 blocks and more, 1.3B, DenseNet-201)": 10,
    "Llama-405B shape: seconds": 10,
    "Llama-405B shape: GB": 4,
    "slicing over a plain copy": 2,
}

Model = tuple[nn.Module, tuple[Tensor, ...], nn.Module]  # with its inputs and its output layer
Record = dict[str, Any]


def main() -> None:
    """Measure what the options leave in, and write the results."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=ROUNDS, help="measurements of each model")
    options.add_argument("--models", nargs="*", default=BESIDE, help="models to measure beside Torch-Pruning")
    options.add_argument("--measure", nargs=2, metavar=("WHAT", "MODEL"), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.measure:
        what, name = chosen.measure
        torch.set_num_threads(1)
        load()
        print(json.dumps(MEASUREMENTS[what](name)))
        return
    beside = {name: compared(name, chosen.rounds) for name in chosen.models}
    found = {
        "beside": beside,
        "depth": line({int(name[6:]): one["ours"] for name, one in beside.items() if name[6:].isdigit()}),
        "llama-405b": measured("discover", "llama-405b"),
        "slicing": measured("slice", "llama-1.3b"),
    }
    columns = ["model", "NeuronScope", "Torch-Pruning", "times faster", "parameters left", "its parameters left"]
    rows = [row(name, one) for name, one in beside.items()]
    write("discovery", columns, rows, {"rounds": chosen.rounds, "targets": TARGETS, **found})
    said = "\n".join(sentences(found))
    path = Path(__file__).parent / "results" / "discovery.md"
    path.write_text(f"{path.read_text()}\n{said}\n")
    print(said)


def compared(name: str, rounds: int) -> Record:
    """Both libraries on one model, in turn, each in processes of its own."""
    turns = [(measured("ours", name), measured("rival", name)) for _ in range(rounds)]
    ours, rival = ([turn[side] for turn in turns if "seconds" in turn[side]] for side in (0, 1))
    both = [one["seconds"] / other["seconds"] for other, one in turns if "seconds" in one and "seconds" in other]
    return {
        "ours": median(one["seconds"] for one in ours) if ours else None,
        "rival": median(one["seconds"] for one in rival) if rival else None,
        "times": median(both) if both else None,
        "turns": turns,
    }


def measured(what: str, name: str) -> Record:
    """One measurement in a fresh process; where that fails, the last line it said."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.discovery", "--measure", what, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return {"failure": f"more than {LIMIT_SECONDS} s"}
    if done.returncode:
        return {"failure": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    record: Record = json.loads(done.stdout.strip().splitlines()[-1])
    print(what, name, record, file=sys.stderr)
    return record


def load() -> None:
    """Import both libraries, and the one that both need."""
    from benchmarks.zoo.vision_operators import declare

    declare()
    for module in ("torch_pruning", "pruner", "tracker"):
        import_module(module)


def built(name: str) -> Model:
    """A model of random weights by its name here."""
    if name.startswith("llama"):
        return llama(name)
    import torchvision

    model = getattr(torchvision.models, name)(weights=None).eval()
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    return model, (torch.randn(1, 3, 224, 224),), last


def llama(name: str) -> Model:
    """`llama-<blocks>` (small), `llama-1.3b` (in bfloat16) or `llama-405b` (without weights)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shapes = {"1.3b": (24, 2048, 5504, 16, 16, 32000), "405b": (126, 16384, 53248, 128, 8, 128256)}
    size = name.partition("-")[2]
    blocks, hidden, intermediate, heads, shared, words = shapes.get(size) or (int(size), 64, 128, 4, 4, 128)
    config = LlamaConfig(
        num_hidden_layers=blocks,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        vocab_size=words,
        use_cache=False,
    )
    with torch.device("meta" if size == "405b" else "cpu"):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16 if size in shapes else before)
        try:
            model = LlamaForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(before)
    return model, (torch.randint(0, 100, (1, 16)),), model.lm_head


def ours(name: str) -> Record:
    """NeuronScope: discover, plan by magnitude, slice."""
    from pruner.apply import prune_
    from pruner.plan import PruningPlan
    from pruner.scores import magnitude
    from tracker import discover

    model, inputs, _ = built(name)
    before, start = count(model), time.process_time()
    neurons = discover(model, inputs)
    found = time.process_time()
    scores = magnitude(model, neurons)
    half = {group.name: scores[group.name].argsort()[: group.size // 2] for group in neurons if group.exact}
    planned = time.process_time()
    prune_(model, PruningPlan(half), proof=False)
    end = time.process_time()
    return {
        "seconds": end - start,
        "discover": found - start,
        "plan": planned - found,
        "slice": end - planned,
        "left": count(model) / before,
    }


def rival(name: str) -> Record:
    """Torch-Pruning, as its README has it."""
    import torch_pruning

    model, inputs, last = built(name)
    before, start = count(model), time.process_time()
    pruner = torch_pruning.pruner.BasePruner(
        model,
        inputs if len(inputs) > 1 else inputs[0],
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=[last],
    )
    pruner.step()
    return {"seconds": time.process_time() - start, "left": count(model) / before}


def discovered(name: str) -> Record:
    """Discovery alone, with the most memory the process held."""
    from tracker import discover

    model, inputs, _ = built(name)
    with Watched() as watched:
        start = time.process_time()
        neurons = discover(model, inputs)
        seconds = time.process_time() - start
    return {"seconds": seconds, "groups": len(neurons), "neurons": neurons.neurons, "gigabytes": watched.peak / 1e9}


def sliced(name: str) -> Record:
    """Slicing half of every exact group: seconds beside a plain copy of what is kept, and the most memory beside it."""
    import pruner.apply as module
    from pruner.plan import PruningPlan
    from tracker import discover

    model, inputs, _ = built(name)
    neurons = discover(model, inputs)
    plan = PruningPlan({group.name: range(0, group.size, 2) for group in neurons if group.exact})
    taken: list[float] = []  # without the thread that watches: it runs on this clock too, for a little
    slice_ = module._slice

    def timed(*arguments: Any) -> None:
        start = time.process_time()
        slice_(*arguments)
        taken.append(time.process_time() - start)

    module._slice = timed
    shapes = {name: tensor.shape for name, tensor in model.named_parameters()}
    with Watched() as watched:
        module.prune_(model, plan, proof=False)
    cut = [tensor for name, tensor in model.named_parameters() if tensor.shape != shapes[name]]
    start = time.process_time()
    copies = [tensor.detach().clone() for tensor in cut]
    copied = time.process_time() - start
    kept = sum(copy.numel() * copy.element_size() for copy in copies)
    return {
        "seconds": taken[0],
        "copy_seconds": copied,
        "times": taken[0] / copied,
        "kept_bytes": kept,
        "peak_beyond_model_bytes": watched.peak - watched.before,
        "peak_over_kept": (watched.peak - watched.before) / kept,
    }


class Watched:
    """The most memory that the process holds within the block, looked at every few milliseconds, in bytes."""

    def __enter__(self) -> Watched:
        self.before = self.peak = resident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.002):
            self.peak = max(self.peak, resident())


def resident() -> int:
    """Bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def count(model: nn.Module) -> int:
    """Parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def line(seconds: dict[int, float | None]) -> Record:
    """The straight line through seconds over blocks, fitted relative to their size, and how well it fits.

    `exponent` is the slope in doubly logarithmic axes from 16 blocks on: 1 is linear.
    """
    known = {blocks: taken for blocks, taken in seconds.items() if taken is not None}
    if len(known) < 3:
        return {"seconds": known}
    x, y = np.array(list(known), dtype=float), np.array(list(known.values()))
    slope, start = np.polyfit(x, y, 1)
    rest = ((y - slope * x - start) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    deep = x >= 16
    exponent = float(np.polyfit(np.log(x[deep]), np.log(y[deep]), 1)[0]) if deep.sum() > 1 else None
    return {
        "seconds": known,
        "seconds_per_block": float(slope),
        "seconds_at_0": float(start),
        "r2": float(1 - rest),
        "exponent": exponent,
    }


def row(name: str, one: Record) -> list[str]:
    """A line of the table."""

    def said(side: int, value: str) -> str:
        known = [turn[side] for turn in one["turns"] if value in turn[side]]
        failure = next((turn[side]["failure"] for turn in one["turns"] if "failure" in turn[side]), "")
        if not known:
            return f"fails: {failure}"
        middle = median(record[value] for record in known)
        return f"{middle:.2f} s" if value == "seconds" else f"{middle:.0%}"

    times = "" if one["times"] is None else f"{one['times']:.1f}×"
    return [name, said(0, "seconds"), said(1, "seconds"), times, said(0, "left"), said(1, "left")]


def sentences(found: Record) -> list[str]:
    """What the table does not say."""
    depth, whole, cut = found["depth"], found["llama-405b"], found["slicing"]
    said = []
    if "r2" in depth:
        said.append(
            f"Depth: {depth['seconds_per_block'] * 1e3:.1f} ms a block of the small Llama, R² of the straight line "
            f"{depth['r2']:.4f}, exponent from 16 blocks on {depth['exponent']:.2f}."
        )
    if "seconds" in whole:
        said.append(
            f"Llama-405B shape, without weights: {whole['seconds']:.1f} s (target 10), {whole['gigabytes']:.2f} GB "
            f"(target 4), {whole['neurons']:,} neurons in {whole['groups']} groups."
        )
    if "times" in cut:
        said.append(
            f"Slicing half of a 1.3B Llama: {cut['times']:.2f} times a plain copy of the kept bytes (target 2); memory "
            f"beyond the model peaks at {cut['peak_over_kept']:.2f} times the kept bytes (target 1)."
        )
    return [sentence + "\n" for sentence in said]


MEASUREMENTS: dict[str, Callable[[str], Record]] = {
    "ours": ours,
    "rival": rival,
    "discover": discovered,
    "slice": sliced,
}

if __name__ == "__main__":
    main()
