"""The table, the data and the picture."""

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.zoo import table


def records() -> dict[tuple[str, str], dict[str, Any]]:
    head = {"key": "plain:net", "library": "plain", "name": "net", "module": "plain", "given": "4×16", "version": "a"}
    ours = {
        **head,
        "tool": "ours",
        "stage": "done",
        "parameters": 5829,
        "parameters_after": 1893,
        "peak_mib": 2.0,
        "exact": {"mlp": 2},
        "inexact": {},
        "frozen": {"is a | b": 1},
        "notes": {},
        "attention": True,
        "error": 1.7e-16,
        "tolerance": 1e-10,
        "moved": 1.0,
        "share": 0.9991,
        "share_beside_residual": 1.0,
        "discover_seconds": 0.1,
        "plan_seconds": 0.0,
        "slice_seconds": 0.1,
    }
    rival = {**head, "tool": "rival", "stage": "prune", "result": "crash", "failure": "hang", "parameters": 5829}
    return {("plain:net", "ours"): ours, ("plain:net", "rival"): rival}


def test_everything_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    text = table.write(records())
    assert "| plain | 1 | 1/1 = 100 % |" in text
    written = (tmp_path / "zoo.md").read_text()
    row = next(line for line in written.splitlines() if line.startswith("| net "))
    assert "2 mlp" in row
    assert "5.83k → 1.89k" in row
    assert "**no**" in row
    assert "hangs" in row
    assert row.count("|") - row.count("\\|") == len(table._COLUMNS) + 1
    data = json.loads((tmp_path / "zoo.json").read_text())
    assert data["summary"]["plain"]["exact"] == 1
    assert data["models"][0]["ours"]["error"] == 1.7e-16
    assert data["models"][0]["rival"]["outcome"] == "hangs"
    assert (tmp_path / "zoo.png").read_bytes().startswith(b"\x89PNG")
