"""`python -m benchmarks.quality`: measure the cells that are not measured yet, then write the table and the picture."""

from __future__ import annotations

import argparse
import gc
import os
import platform
import re
import resource
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from benchmarks.quality import store
from benchmarks.quality.methods import Task, methods
from benchmarks.quality.store import Cell
from benchmarks.quality.subjects import Subject, made, subjects
from torch import nn

from pruner.metrics import count_parameters
from tracker.progress import set_enabled

CORE = (0.5, 0.3, 0.7, 0.2)
SLOW = ("ours default", "ours high")
ELSEWHERE = ", calibrated elsewhere"
TRANSFERRED = ("wanda + least squares", "flap", "obs + least squares", "osscar", "ours low", "ours default")


def main() -> None:
    """Parse the command line and do what it says."""
    options = _options()
    warnings.simplefilter("ignore")
    set_enabled(False)
    torch.set_num_threads(options.threads)
    if not options.table:
        _measure(options)
    from benchmarks.quality.table import write

    print(write())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="cells whose name (subject/kind/ratio/method) matches"
    )
    parser.add_argument("--not", dest="without", default="$^", metavar="REGEX", help="cells to leave out")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the core cells (MLP neurons)")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no cell after so many minutes")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a language model made here instead of those shipped")
    parser.add_argument("--table", action="store_true", help="write the table of what is measured and stop")
    return parser.parse_args()


def _cells(found: dict[str, Subject], options: argparse.Namespace) -> Iterator[Cell]:
    """The core with its first seed, then other kinds, then other seeds; what takes long comes last in each."""
    names = sorted(methods(), key=lambda name: name in SLOW)
    core = {name: "channel" if name == "digits-cnn" else "mlp" for name in found}
    for seed in range(options.seeds):
        for ratio in CORE:
            for method in names:
                yield from (Cell(name, core[name], ratio, method, seed) for name in found)
        if not seed:
            for method in names:
                yield from (
                    Cell(name, kind, 0.5, method, 0)
                    for name, subject in found.items()
                    for kind in subject.kinds
                    if kind != core[name]
                )
            for method in TRANSFERRED:
                yield from (Cell(name, core[name], 0.5, f"{method}{ELSEWHERE}", 0) for name in found)


def _measure(options: argparse.Namespace) -> None:
    known, start = store.known(), time.monotonic()
    found = subjects() if options.model is None else {options.model.name: made(options.model)}
    ways = methods()
    dense: dict[str, dict[str, float]] = {}
    for cell in _cells(found, options):
        name = f"{cell.subject}/{cell.kind}/{cell.ratio}/{cell.method}"
        if cell in known or not re.search(options.only, name) or re.search(options.without, name):
            continue
        if time.monotonic() - start > 60 * options.minutes:
            return
        subject = found[cell.subject]
        if cell.subject not in dense:
            dense[cell.subject] = subject.quality(subject.load())
        store.add(
            cell, _run(cell, subject, ways[cell.method.removesuffix(ELSEWHERE)], dense[cell.subject], options.threads)
        )
        print(name, cell.seed, flush=True)


def _run(cell: Cell, subject: Subject, method: object, dense: dict[str, float], threads: int) -> dict[str, object]:
    model = subject.load()
    data = (subject.elsewhere if cell.method.endswith(ELSEWHERE) else subject.calibration)(cell.seed)
    before = count_parameters(model)
    start = time.perf_counter()
    try:
        method(Task(model, data, cell.kind, cell.ratio, cell.seed))  # type: ignore[operator]
    except Exception as error:  # noqa: BLE001 (one method's failure is a row, not the end of the run)
        return {"error": f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"}
    seconds = time.perf_counter() - start
    quality = subject.quality(model)
    gc.collect()
    return {
        "excess": quality["loss"] - dense["loss"],
        "loss": quality["loss"],
        "accuracy": quality["accuracy"],
        "dense": dense,
        "parameters": count_parameters(model) / before,
        "seconds": seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "machine": _machine(model, threads),
    }


def _machine(model: nn.Module, threads: int) -> str:
    device = next(model.parameters()).device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()}, {threads} threads"


if __name__ == "__main__":
    main()
