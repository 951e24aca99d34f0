"""How the benchmarks measure and write: two things in turn, medians, and the machine's kind beside every number."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def in_turn(
    one: Callable[[], object],
    other: Callable[[], object],
    rounds: int,
    around_other: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[list[float], list[float]]:
    """Seconds of both, in turn, so that a machine of drifting speed treats them alike; the first turn is warm-up.

    What `around_other` sets up is there while `other` runs, and its own time does not count.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for run, taken, around in zip((one, other), seconds, (nullcontext, around_other), strict=True):
            with around():
                start = time.perf_counter()
                run()
                if turn:
                    taken.append(time.perf_counter() - start)
    return seconds


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios of neighbouring turns."""
    return median(a / b for a, b in zip(above, below, strict=True))


def machine() -> dict[str, Any]:
    """What kind of machine this is; nothing that tells which one."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": len(models) or None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def write(name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], data: dict[str, Any]) -> None:
    """`results/<name>.json` with everything, `results/<name>.md` with the table, and the table on the screen."""
    RESULTS.mkdir(exist_ok=True)
    where = machine()
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": where, **data}, indent=2) + "\n")
    table = [columns, ["---"] * len(columns), *rows]
    kind = f"{where['processor']}, {where['cores']} cores, {where['threads']} threads, torch {where['torch']}"
    text = "\n".join(f"| {' | '.join(row)} |" for row in table) + f"\n\nMachine: {kind}.\n"
    (RESULTS / f"{name}.md").write_text(text)
    print(text)
