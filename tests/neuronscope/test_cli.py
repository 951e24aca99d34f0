"""The command line from outside: what it prints, what it writes, how it exits."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from typer.testing import CliRunner

from neuronscope.cli import app
from pruner.apply import prune_
from pruner.checkpoint import save_pruned
from pruner.plan import PruningPlan
from tracker.errors import ModelNameError

PROJECT = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))

def batches():
    torch.manual_seed(1)
    return [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(3)]
"""
MODEL, DATA = "my_project:build", "my_project:batches"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory to work in that holds a model and data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "my_project.py").write_text(PROJECT)
    yield tmp_path
    sys.modules.pop("my_project", None)


def run(*words: str) -> Any:
    return CliRunner().invoke(app, words)


def call(name: str) -> nn.Module:
    """What the project's callable gives."""
    namespace: dict[str, object] = {}
    exec(PROJECT, namespace)
    model = namespace[name]()  # type: ignore[operator]
    assert isinstance(model, nn.Module)
    return model


def test_help_lists_the_commands() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in ("demo", "map", "track", "prune", "verify", "export", "report"):
        assert f" {command} " in result.output


def test_map_shows_layers_and_why_the_rest_is_frozen(project: Path) -> None:
    result = run("map", MODEL, "--json", "maps/map.json")
    assert result.exit_code == 0, result.output
    assert "18 neurons in 2 layers" in result.stdout
    assert "output" in result.stdout.partition("because")[2]
    written = json.loads((project / "maps" / "map.json").read_text())
    assert [group["name"] for group in written["groups"]] == ["0", "2"]


def test_map_takes_inputs_from_data(project: Path) -> None:
    assert run("map", MODEL, "--data", DATA).stdout == run("map", MODEL).stdout


def test_our_errors_are_one_red_line_and_status_2(project: Path) -> None:
    result = run("map", "my_project:biuld")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: The module 'my_project' has no 'biuld'.")
    assert "Did you mean 'build'?" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_error_is_red_on_a_terminal(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert run("map", "my_project:biuld").stderr.startswith("\x1b[31mError: ")


def test_debug_shows_where_an_error_came_from(project: Path) -> None:
    result = run("--debug", "map", "my_project:biuld")
    assert isinstance(result.exception, ModelNameError)


def test_errors_that_are_not_ours_keep_their_traceback(project: Path) -> None:
    (project / "my_project.py").write_text("1 / 0")
    assert isinstance(run("map", MODEL).exception, ZeroDivisionError)


def test_track_shows_layers_and_writes_recommendations(project: Path) -> None:
    result = run("track", MODEL, "--data", DATA, "--out", "elsewhere")
    assert result.exit_code == 0, result.output
    path = project / "elsewhere" / "logs" / "my_project-build_recommendations.json"
    assert str(path.relative_to(project)) in result.stdout
    written = json.loads(path.read_text())
    assert {name: layer["size"] for name, layer in written["layers"].items()} == {"0": 10, "2": 8}
    assert written["merge"] == []


def test_track_finds_redundant_neurons_when_asked(project: Path) -> None:
    twins = "model[0].weight.data[1] = model[0].weight.data[0]; model[0].bias.data[1] = model[0].bias.data[0]"
    (project / "twins.py").write_text(
        f"import my_project\ndef build():\n    model = my_project.build(); {twins}\n    return model"
    )
    assert run("track", "twins:build", "--data", DATA, "--covariance").exit_code == 0
    sys.modules.pop("twins")
    written = json.loads((project / "outputs" / "logs" / "twins-build_recommendations.json").read_text())
    assert ("0", [0, 1]) in [(pair["layer"], pair["neurons"]) for pair in written["merge"]]


def outputs_of(project: Path, folder: str) -> list[Path]:
    return sorted((project / "outputs" / folder).iterdir())


def test_prune_stores_a_smaller_model_that_verify_proves_and_report_opens(project: Path) -> None:
    result = run("prune", MODEL, "--data", DATA, "--sparsity", "0.5", "--strategy", "structured")
    assert result.exit_code == 0, result.output
    assert "9 of 18 neurons are gone." in result.stdout
    (checkpoint,) = outputs_of(project, "pruned_models")
    assert json.loads((checkpoint / "pruning.json").read_text())["base"] == MODEL
    assert run("verify", str(checkpoint), "--original", MODEL, "--data", DATA).exit_code == 0
    page = Path(run("report").stdout.strip())
    assert page.suffix == ".html"
    assert page.is_file()
    assert f"The report (html): {page}" in result.stdout


def test_a_dry_run_says_the_same_and_stores_no_model(project: Path) -> None:
    result = run("prune", MODEL, "--data", DATA, "--sparsity", "0.5", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "9 of 18 neurons would go." in result.stdout
    assert outputs_of(project, "pruned_models") == []


def test_prune_follows_recommendations_and_a_configuration(project: Path) -> None:
    (project / "mine.json").write_text('{"prune": [{"layer": "0", "neuron": 4, "reason": "dead"}]}')
    (project / "mine.yaml").write_text("logging:\n  log_to_console: false\n")
    result = run("prune", MODEL, "--data", DATA, "--recommendations", "mine.json", "--config", "mine.yaml")
    assert result.exit_code == 0, result.output
    assert "1 of 18 neurons are gone." in result.stdout
    assert "INFO" not in result.stderr
    (plan,) = [path for path in outputs_of(project, "logs") if path.name.endswith("_plan.json")]
    assert json.loads(plan.read_text())["remove"] == {"0": [4]}


def test_prune_takes_layers_and_widths(project: Path) -> None:
    def left(*words: str) -> list[str]:
        result = run("prune", MODEL, "--data", DATA, "--sparsity", "0.5", "--dry-run", *words)
        assert result.exit_code == 0, result.output
        return [line.split() for line in result.stdout.splitlines() if line[:1].isdigit() and "neurons" not in line]

    everything = left("--strategy", "structured")
    assert len(everything) > 1
    first, second = (line[0] for line in everything[:2])
    assert [line[0] for line in left("--include", first)] == [first]
    assert [line[0] for line in left("--include", first, "--include", second, "--exclude", first)] == [second]
    assert all(int(line[2]) % 4 == 0 for line in left("--strategy", "structured", "--round-to", "4"))
    assert left("--kind", "mlp", "--kind", "channel")
    refused = run("prune", MODEL, "--data", DATA, "--exclude", "no such layer")
    assert refused.exit_code == 2
    assert "strategy.exclude = 'no such layer' matches no layer. The nearest is" in refused.stderr


def test_prune_to_a_target(project: Path) -> None:
    result = run("prune", MODEL, "--data", DATA, "--target", "params=0.7", "--effort", "low")
    assert result.exit_code == 0, result.output
    assert "Verification: 6/6 tests passed." in result.stdout
    assert "Distance to the dense model's answers:" in result.stdout
    (plan,) = [path for path in outputs_of(project, "logs") if path.name.endswith("_pruning.json")]
    found = json.loads(plan.read_text())["pruning_results"]
    assert 0.6 < found["parameters_after"] / found["parameters_before"] < 0.75
    assert found["budgets"]["left"] == pytest.approx(found["parameters_after"] / found["parameters_before"], abs=1e-6)
    for words, says in (
        ("params", "is not understood"),
        ("size=0.5", "is not understood"),
        ("params=7", "not a number"),
    ):
        refused = run("prune", MODEL, "--data", DATA, "--target", words)
        assert refused.exit_code == 2
        assert says in refused.stderr


def test_optimize_finds_the_smallest_model_within_a_tolerance_and_goes_on(project: Path) -> None:
    words = ["optimize", MODEL, "--data", DATA, "--judge", DATA, "--metric", "distance", "--resolution", "0.1"]
    result = run(*words, "--tolerance", "1000")
    assert result.exit_code == 0, result.output
    assert "chosen" in result.stdout
    assert "Verification: 5/5 tests passed." in result.stdout
    folder = project / "outputs" / "optimize" / "my_project-build"
    again = run("verify", str(folder / "model"), "--original", MODEL, "--data", DATA)
    assert again.exit_code == 0, again.output
    tries = (folder / "tries.json").stat().st_mtime_ns
    assert run(*words, "--tolerance", "1000").exit_code == 0
    assert (folder / "tries.json").stat().st_mtime_ns == tries
    nothing = run(*words, "--tolerance", "0")
    assert nothing.exit_code == 0
    assert "No smaller model is good enough." in nothing.stdout
    refused = run(*words)
    assert refused.exit_code == 2
    assert "either a tolerance or a target" in refused.stderr


def test_a_pruned_model_can_be_pruned_again(checkpoint: Path, project: Path) -> None:
    words = ["--data", DATA, "--sparsity", "0.25"]
    assert run("prune", str(checkpoint), "--original", MODEL, *words).exit_code == 0
    (again,) = outputs_of(project, "pruned_models")
    assert json.loads((again / "pruning.json").read_text())["base"] == MODEL
    assert run("verify", str(again), "--original", MODEL, "--data", DATA).exit_code == 0


@pytest.mark.parametrize("sparsity", ["1.5", "-0.1"])
def test_a_sparsity_out_of_range_is_refused_before_anything_is_written(project: Path, sparsity: str) -> None:
    result = run("prune", MODEL, "--data", DATA, f"--sparsity={sparsity}")
    assert result.exit_code == 2
    assert "target_sparsity" in result.stderr
    assert not (project / "outputs").exists()


@pytest.fixture
def checkpoint(project: Path) -> Path:
    """The project's model without three of its neurons, on disk."""
    model = call("build")
    prune_(model, PruningPlan({"0": [0, 7]}))
    prune_(model, PruningPlan({"0": [3], "2": [1]}))
    save_pruned(model, project / "pruned", base=MODEL)
    return project / "pruned"


def test_verify_proves_a_checkpoint_pruned_in_several_steps(checkpoint: Path) -> None:
    result = run("verify", str(checkpoint), "--original", MODEL, "--data", DATA)
    assert result.exit_code == 0, result.output
    assert "Verification: 6/6 tests passed." in result.stdout
    assert "sliced equals masked" in result.stdout


def test_verify_fails_for_the_right_shapes_with_other_weights(checkpoint: Path, project: Path) -> None:
    (project / "my_project.py").write_text(PROJECT.replace("manual_seed(0)", "manual_seed(2)"))
    result = run("verify", str(checkpoint), "--original", MODEL, "--data", DATA)
    assert result.exit_code == 1
    assert "sliced equals masked  FAILED" in result.stdout
    assert "Verification: 5/6 tests passed." in result.stdout


def test_verify_names_a_directory_without_a_checkpoint(project: Path) -> None:
    result = run("verify", str(project), "--original", MODEL, "--data", DATA)
    assert result.exit_code == 2
    assert "There is no pruned model in" in result.stderr


def test_a_checkpoint_does_not_choose_the_code_that_runs(checkpoint: Path) -> None:
    result = run("map", str(checkpoint))
    assert result.exit_code == 2
    assert f"made from '{MODEL}', which is code to be run" in result.stderr
    assert "14 neurons in 2 layers" in run("map", str(checkpoint), "--original", MODEL).stdout


def test_report_without_runs_says_how_to_make_one(project: Path) -> None:
    result = run("report")
    assert result.exit_code == 2
    assert "neuronscope demo" in result.stderr


def test_export_writes_a_file_that_was_compared(project: Path) -> None:
    result = run("export", MODEL, "out/model.pt2", "--data", DATA)
    assert result.exit_code == 0, result.output
    assert "output differs by" in result.stdout
    assert "any number of rows" in result.stdout
    assert (project / "out" / "model.pt2").is_file()


def test_export_to_nowhere_known_says_what_there_is(project: Path) -> None:
    result = run("export", MODEL, "model.tflite")
    assert result.exit_code == 2
    assert "Name the file .onnx or .pt2" in result.stderr
    assert not (project / "model.tflite").exists()
