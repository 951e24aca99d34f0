"""The commands that look at neurons: a table for people, one JSON document for programs, and errors of one line."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from neuronscope.cli import app
from neuronscope.impact import PruningImpactAnalyzer
from neuronscope.loader import MultiModelLoader
from neuronscope.weights import WeightAnalyzer

pytest.importorskip("transformers")

TEXT = ["--text", "import os\nimport sys"]


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output + str(result.exception)
    return str(result.stdout if code == 0 else result.stderr)


def told(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


@pytest.fixture(scope="module")
def analyzer() -> PruningImpactAnalyzer:
    return PruningImpactAnalyzer(*MultiModelLoader().load_model("stdlib-gpt"))


def test_weights_and_candidates(analyzer: PruningImpactAnalyzer, tmp_path: Path) -> None:
    weights = WeightAnalyzer(analyzer.model)
    found = told("weights", "stdlib-gpt")
    assert {key: found[key] for key in found if key != "patterns"} == weights.get_sparsity_analysis()
    assert found["patterns"].keys() == weights.get_sparsity_patterns().keys()
    picture = tmp_path / "weights.png"
    shown = run("weights", "digits-vit", "--plot", str(picture))
    assert "parameters, 0.00% of them zero" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = told("candidates", "stdlib-gpt", "--threshold", "5")
    assert found["flagged"] == 6 * 38
    assert len(found["candidates"]) == 6 * 768
    assert "228 of 4,608 neurons are flagged." in run("candidates", "stdlib-gpt", "--threshold", "5", "--limit", "3")


def test_impact_importance_and_batch(analyzer: PruningImpactAnalyzer) -> None:
    chosen = [(0, 3), (2, 10), (2, 11)]
    expected = analyzer.simulate(chosen, TEXT[1])
    found = told("impact", "stdlib-gpt", "0:3, 2:10-11", *TEXT, "--continuations", "3")
    assert found["impact_score"] == pytest.approx(expected.impact_score, rel=1e-4)
    assert found["neurons"] == 3
    assert found["continuations"][0]["text"] == TEXT[1]
    shown = run("impact", "stdlib-gpt", "0:3,2:10-11", *TEXT, "--ablation", "repaired", "--continuations", "3")
    assert "(safe)" in shown
    assert "without:" in shown
    found = told("importance", "stdlib-gpt", "--layer", "1", *TEXT)
    assert len(found["importance_scores"]) == 768
    assert "Method: first-order." in run("importance", "digits-vit", "--method", "first-order")
    assert "critical" not in run("importance", "stdlib-gpt", "--layer", "1", "--limit", "3", *TEXT)
    for flags in ([], ["--approximate"]):
        found = told("batch", "stdlib-gpt", "0:3,2:10-11", *TEXT, *flags)
        assert found["cumulative_impact"]["impact_score"] == pytest.approx(expected.impact_score, rel=1e-4)
    assert "3 can go at once" in run("batch", "stdlib-gpt", "0:3,2:10-11", *TEXT)


def test_compare_and_export(tmp_path: Path) -> None:
    found = told("compare", "stdlib-gpt", "stdlib-llama", *TEXT)
    assert found["models"]["stdlib-llama"]["metrics"]["score"] > 0.3
    assert "stdlib-llama" in run("compare", "stdlib-gpt", "stdlib-llama", *TEXT)
    path = tmp_path / "neurons.csv"
    run("export", "digits-vit", str(path))
    assert len(path.read_text().splitlines()) == 1 + 4 * 256
    run("export", "digits-vit", str(path), "--type", "impact")
    assert "impact_score" in path.read_text().splitlines()[0]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["impact", "stdlib-gpt", "6:0"], "6 is none of them"),
        (["impact", "stdlib-gpt", "0-3"], "names no neurons"),
        (["impact", "stdlib-gpt", "0:9-3"], "names no neurons"),
        (["candidates", "stdlib-gpt", "--threshold", "101"], "no percentage"),
        (["impact", "stdlib-gpt", "0:0", "--ablation", "half"], "'half' is unknown"),
        (["importance", "digits-vit", "--method", "guess"], "'guess' is unknown"),
        (["export", "digits-vit", "x.csv", "--type", "guess"], "'guess' is unknown"),
        (["serve", "--host", "0.0.0.0", "--port", "0", "--no-browser"], "Set a token"),  # noqa: S104 (it is refused)
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = run(*arguments, code=2)
    assert says in said
    assert said.strip().splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in said


def test_serve_says_where_and_ends_with_an_interrupt(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "neuronscope", "serve", "digits-vit", "--port", "0", "--no-browser"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([*command, "--out", str(tmp_path)], **pipes) as process:  # type: ignore[call-overload]
        try:
            line = process.stdout.readline()
            assert line.startswith("NeuronScope shows digits-vit at http://127.0.0.1:")
            address = line.split(" at ")[1].split()[0]
            assert served(address)["family"] == "vit"
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", 0))
                taken.listen()
                refused = run("serve", "--port", str(taken.getsockname()[1]), "--no-browser", code=2)
            assert "Stop what listens there" in refused
        finally:
            process.send_signal(2)
            process.wait(timeout=60)
    assert process.returncode in (0, 130, -2)
    assert (tmp_path / "neuronscope.sqlite").is_file()


def served(address: str) -> Any:
    """The model's card, as soon as the server answers."""
    for _ in range(600):
        try:
            return httpx.get(f"{address}api/models/current", timeout=120).json()
        except httpx.ConnectError:
            time.sleep(0.1)
    return pytest.fail("The server never answered.")
