"""`python -m benchmarks.zoo`: measure what is not measured yet, then write the table and the picture."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from benchmarks.zoo.vision_operators import declare

declare()  # before anything that imports torchvision where it finds it, as torchmetrics and transformers do

from benchmarks.zoo import child, store  # noqa: E402
from benchmarks.zoo.entries import LIBRARIES, Entry, entries_of  # noqa: E402


def main() -> None:
    """Parse the command line and do what it says."""
    options = _options()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tools = ["ours"] * options.ours + ["rival"] * options.rival
    wanted = []
    for library in options.library or LIBRARIES:
        found = [entry for entry in entries_of(library) if re.search(options.only, entry.key)]
        wanted += found
        if options.list:
            print(*(f"{entry.key}  {entry.given}" for entry in found), sep="\n")
        elif not options.table:
            _measure(found, tools, options)
    if not options.list:
        from benchmarks.zoo.table import write

        print(write(store.latest()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--only", default="", metavar="REGEX", help="entries whose name (library:name) matches")
    parser.add_argument("--library", action="append", choices=LIBRARIES, help="this library; may be given again")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time (1: the times are then comparable)")
    parser.add_argument("--ours", action=argparse.BooleanOptionalAction, default=True, help="measure NeuronScope")
    parser.add_argument("--rival", action=argparse.BooleanOptionalAction, default=True, help="measure Torch-Pruning")
    parser.add_argument("--again", action="store_true", help="measure also what is measured already")
    parser.add_argument("--list", action="store_true", help="list the entries and stop")
    parser.add_argument("--table", action="store_true", help="write the table of what is measured and stop")
    return parser.parse_args()


def _measure(entries: list[Entry], tools: list[str], options: argparse.Namespace) -> None:
    modules = {tool: importlib.import_module(f"benchmarks.zoo.{tool}") for tool in tools}
    versions = {tool: store.version_of(tool) for tool in tools}
    for module in modules.values():
        module.warm_up()
    tasks = [(entry, tool) for entry in entries for tool in tools]

    def waiting() -> Iterator[tuple[Entry, str]]:
        for entry, tool in tasks:  # looked up now, for another run may have measured it meanwhile
            if options.again or store.latest().get((entry.key, tool), {}).get("version") != versions[tool]:
                yield entry, tool

    def measure(task: tuple[Entry, str], report: Any) -> None:
        modules[task[1]].measure(task[0], report)

    for number, ((entry, tool), facts) in enumerate(child.run_each(waiting(), measure, options.jobs), 1):
        head = {"key": entry.key, "library": entry.library, "name": entry.name, "module": entry.module}
        store.append({**head, "given": entry.given, "tool": tool, "version": versions[tool], **facts})
        print(f"[{number} of at most {len(tasks)}] {tool:5} {entry.key}: {_short(facts)}", file=sys.stderr, flush=True)


def _short(facts: dict[str, Any]) -> str:
    shown = ("failure", "why", "result", "error", "cast", "share_beside_residual", "exact", "difference", "seconds")
    return ", ".join(f"{name} {facts[name]}" for name in shown if facts.get(name) is not None)


if __name__ == "__main__":
    main()
