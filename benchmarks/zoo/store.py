"""What was measured, one JSON object a line, so that a run that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "build" / "zoo" / "results.jsonl"

Record = dict[str, Any]


def version_of(tool: str) -> str:
    """A fingerprint of everything that a tool's result depends on: its code, ours around it, and the libraries."""
    zoo = Path(__file__).parent
    files = [zoo / f"{name}.py" for name in (tool, "forward", "limits", "randomise")]
    if tool == "ours":
        files += [zoo / "shares.py", *(ROOT / "src/tracker").rglob("*.py"), *(ROOT / "src/pruner").rglob("*.py")]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    for package in ("torch", *(() if tool == "ours" else ("torch-pruning",))):
        digest.update(f"{package}=={metadata.version(package)};".encode())
    return digest.hexdigest()[:12]


def append(record: Record) -> None:
    """Add a line, after the end of one that was cut off."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    whole = not RESULTS.exists() or RESULTS.read_bytes()[-1:] in (b"", b"\n")
    with RESULTS.open("a") as file:
        file.write(("" if whole else "\n") + json.dumps(record) + "\n")


def latest() -> dict[tuple[str, str], Record]:
    """The last record of every (entry, tool); a line that was cut off by a kill does not count."""
    found: dict[tuple[str, str], Record] = {}
    for line in RESULTS.read_text().splitlines() if RESULTS.exists() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[record["key"], record["tool"]] = record
    return found
