"""What was measured stays measured."""

from pathlib import Path

import pytest
from benchmarks.zoo import store


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(store, "RESULTS", tmp_path / "zoo" / "results.jsonl")
    return store.RESULTS


def test_the_last_record_of_an_entry_and_a_tool_counts(results: Path) -> None:
    assert store.latest() == {}
    for tool, error in (("ours", 1.0), ("rival", 2.0), ("ours", 3.0)):
        store.append({"key": "plain:mlp", "tool": tool, "error": error})
    found = store.latest()
    assert {tool: record["error"] for (_, tool), record in found.items()} == {"ours": 3.0, "rival": 2.0}


def test_a_line_cut_off_by_a_kill_is_measured_again(results: Path) -> None:
    store.append({"key": "plain:mlp", "tool": "ours"})
    with results.open("a") as file:
        file.write('{"key": "plain:unet", "to')
    assert list(store.latest()) == [("plain:mlp", "ours")]
    store.append({"key": "plain:vae", "tool": "ours"})
    assert ("plain:vae", "ours") in store.latest()


def test_a_version_belongs_to_the_code() -> None:
    assert store.version_of("ours") == store.version_of("ours")
    assert len(store.version_of("ours")) == 12
