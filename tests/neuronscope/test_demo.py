"""The demo, run once as `neuronscope demo` runs it."""

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from neuronscope import demo
from neuronscope.data_names import digits
from neuronscope.digits import DigitsCNN
from neuronscope.model_names import load_model
from pruner.results import WorkflowResults
from tracker.batches import accuracy
from tracker.errors import MissingExtraError, StorageError


@pytest.fixture(scope="module")
def shown_and_results(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, WorkflowResults, Path]:
    out, screen = tmp_path_factory.mktemp("demo"), io.StringIO()
    results = demo.run(Console(file=screen, width=100), out)
    return screen.getvalue(), results, out


def test_the_network_is_good_and_stays_good(shown_and_results: tuple[str, WorkflowResults, Path]) -> None:
    _, results, _ = shown_and_results
    before, after = results["metrics"]["before"], results["metrics"]["after"]
    assert after is not None
    assert before["accuracy"] is not None
    assert after["accuracy"] is not None
    assert before["accuracy"] >= 0.97
    assert after["accuracy"] >= before["accuracy"] - 0.02


def test_it_gets_smaller_in_every_way(shown_and_results: tuple[str, WorkflowResults, Path]) -> None:
    _, results, _ = shown_and_results
    before, after = results["metrics"]["before"], results["metrics"]["after"]
    assert after is not None
    assert before["neurons"] == 1024
    assert after["neurons"] == 1024 - 307  # the default target, 30 %, rounded down
    for name in ("parameters", "bytes", "flops"):
        assert after[name] < 0.7 * before[name]


def test_it_is_proven(shown_and_results: tuple[str, WorkflowResults, Path]) -> None:
    shown, results, _ = shown_and_results
    checks = {check["name"]: check["passed"] for check in results["verification_results"]["checks"]}
    assert checks["sliced equals masked"]
    assert all(checks.values())
    assert f"Verification: {len(checks)}/{len(checks)} tests passed" in shown


def test_idle_neurons_go_first(shown_and_results: tuple[str, WorkflowResults, Path]) -> None:
    _, results, _ = shown_and_results
    reasons = [entry["reason"] for entry in results["pruning_results"]["candidates"]]
    dead = [entry for entry in results["recommendations"]["prune"] if entry["reason"] == "dead"]
    assert 100 < len(dead) < 307
    assert reasons.count("dead") == len(dead)


def test_the_table_shows_what_was_measured(shown_and_results: tuple[str, WorkflowResults, Path]) -> None:
    shown, results, _ = shown_and_results
    after = results["metrics"]["after"]
    assert after is not None
    lines = {line.split("  ")[0].strip(): line for line in shown.splitlines()}
    assert "1,024" in lines["neurons"]
    assert "717" in lines["neurons"]
    assert f"{after['parameters']:,}" in lines["parameters"]
    assert f"{after['bytes']:,}" in lines["bytes"]
    assert "faster" in lines["latency"] or "slower" in lines["latency"] or "as fast" in lines["latency"]
    assert f"{100 * (after['accuracy'] or 0):.1f} %" in lines["accuracy on 360 unseen images"]


def test_the_report_is_where_it_says(shown_and_results: tuple[str, WorkflowResults, Path]) -> None:
    shown, _, out = shown_and_results
    path = Path(next(line for line in shown.splitlines() if line.startswith("Report: ")).removeprefix("Report: "))
    assert path.parent == out / "reports"
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["run"] in path.name


def test_what_it_stored_is_the_pruned_network(shown_and_results: tuple[str, WorkflowResults, Path]) -> None:
    _, results, _ = shown_and_results
    stored = load_model(results["outputs"]["pruned_model"], original=demo.BASE)
    assert isinstance(stored, DigitsCNN)
    after = results["metrics"]["after"]
    assert after is not None
    assert sum(parameter.numel() for parameter in stored.parameters()) == after["parameters"]
    assert accuracy(stored, digits()[1]) == pytest.approx(after["accuracy"], abs=1 / 360)


def test_it_needs_scikit_learn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"neuronscope\[demo\]"):
        demo.run(Console(file=io.StringIO()), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_output_directory_that_is_a_file_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "trained_cnn", lambda: DigitsCNN().eval())
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(StorageError, match="out"):
        demo.run(Console(file=io.StringIO()), tmp_path / "out")
