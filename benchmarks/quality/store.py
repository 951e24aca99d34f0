"""One JSON line for each cell that was measured, so that a run can go on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parents[1] / "results" / "quality.jsonl"


class Cell(NamedTuple):
    """What is measured at a time."""

    subject: str
    kind: str
    ratio: float
    method: str
    seed: int


def known() -> dict[Cell, dict[str, Any]]:
    """What was measured, the latest of each cell."""
    found = {}
    for row in rows():
        cell = Cell(row["subject"], row["kind"], row["ratio"], row["method"], row["seed"])
        found[cell] = row
    return found


def rows() -> Iterator[dict[str, Any]]:
    """All lines."""
    if RESULTS.is_file():
        for line in RESULTS.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def add(cell: Cell, measured: dict[str, Any]) -> None:
    """Write a line."""
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**cell._asdict(), **measured}) + "\n")
