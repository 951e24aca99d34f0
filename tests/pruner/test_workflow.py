import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pruner import small_cnn
from tests.pruner.small_cnn import SmallCNN
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pruner import execution, workflow, workflow_run
from pruner.config import PruningConfig
from pruner.manifest import read_manifest
from pruner.outputs import FOLDERS
from pruner.plan import PruningPlan
from pruner.report_files import load_report, open_report
from pruner.verification import FailedChecksError
from pruner.workflow import IntegratedTrackingPruningWorkflow, create_simple_workflow
from tracker.engine import NeuronEngine
from tracker.errors import DataError, PlanError, RecommendationError, StorageError

Loader = DataLoader[tuple[Tensor, ...]]
QUIET = PruningConfig(logging={"log_to_console": False})


@pytest.fixture
def model() -> SmallCNN:
    """202 neurons in 3 layers; neuron 17 of fc1 is dead, and neuron 5 of conv2 does what neuron 4 does."""
    cnn = small_cnn.model()
    with torch.no_grad():
        cnn.fc1.bias[17] = -1e6
        cnn.conv2.weight[5], cnn.conv2.bias[5] = cnn.conv2.weight[4], cnn.conv2.bias[4]
    return cnn


@pytest.fixture
def data() -> Loader:
    return DataLoader(TensorDataset(small_cnn.images(24), torch.arange(24) % 10), batch_size=8)


@pytest.fixture(autouse=True)
def _no_long_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies of a few rounds do, and pictures by matplotlib are drawn in one test alone."""
    monkeypatch.setattr("pruner.metrics._SECONDS", 0.0)
    monkeypatch.setattr(workflow_run, "find_spec", lambda _: None)


def state(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Everything about a model that a failed run must not change."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict(keep_vars=False).items()},
        "objects": {name: id(tensor) for name, tensor in model.named_parameters()},
        "modes": [module.training for module in model.modules()],
        "integers": {
            f"{name}.{key}": value
            for name, module in model.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, int)
        },
        "hooks": sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()),
        "random": torch.get_rng_state(),
        "moments": [] if optimizer is None else [s["exp_avg"].clone() for s in optimizer.state.values()],
    }


def same(before: Any, after: Any) -> bool:
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(same(before[key], after[key]) for key in before)
    if isinstance(before, list):
        return len(before) == len(after) and all(map(same, before, after))
    return torch.equal(before, after) if isinstance(before, Tensor) else before == after


def files(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


# --- a run that succeeds


def test_a_whole_run(model: SmallCNN, data: Loader, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pruner"):
        results = create_simple_workflow(model, data, "org/My Model", QUIET, output_dir=tmp_path)

    pruning, verification = results["pruning_results"], results["verification_results"]
    assert pruning["neurons_pruned"] == 60
    assert model.fc1.out_features == 128 - len(pruning["layers"]["fc1"]["removed"])
    assert verification["summary"] == {"passed": 6, "total": 6, "overall_success": True}
    assert [check["name"] for check in verification["checks"]][-2:] == ["sliced equals masked", "save and load"]
    name = results["run"]["name"]
    assert re.fullmatch(r"org-My-Model_\d{8}-\d{6}", name)
    assert [record.getMessage() for record in caplog.records if record.name == "pruner"] == [
        "Original model: 202 neurons across 3 layers",
        f"Pruning candidates identified: {len(pruning['candidates'])} neurons",
        "Pruning completed: 60 neurons removed from 3 layers",
        "Verification: 6/6 tests passed",
        "Final model: 142 neurons (29.7% reduction)",
        f"Report: {tmp_path}/reports/{name}_report.html",
    ]
    assert files(tmp_path) == [
        f"logs/{name}_plan.json",
        f"logs/{name}_pruning.json",
        f"logs/{name}_recommendations.json",
        f"models/{name}_original/model.safetensors",
        f"models/{name}_original/pruning.json",
        f"pruned_models/{name}_pruned/model.safetensors",
        f"pruned_models/{name}_pruned/pruning.json",
        f"reports/{name}_report.html",
        f"reports/{name}_report.json",
        f"verification/{name}_verification.json",
        f"visualizations/{name}_layers.svg",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FOLDERS)


def test_the_metrics_are_those_of_the_models(model: SmallCNN, data: Loader, tmp_path: Path) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    metrics = create_simple_workflow(model, data, "cnn", QUIET, output_dir=tmp_path)["metrics"]

    before, after = metrics["before"], metrics["after"]
    assert after is not None
    assert (before["neurons"], before["parameters"]) == (202, parameters)
    assert (after["neurons"], after["parameters"]) == (142, sum(p.numel() for p in model.parameters()))
    assert before["bytes"] - after["bytes"] > 4 * (parameters - after["parameters"])  # buffers, too
    assert before["flops"] is not None
    assert after["flops"] is not None
    assert before["flops"] > after["flops"] > 0
    assert before["latency_ms"] is not None
    assert before["latency_ms"] > 0
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in data)
    assert after["accuracy"] == right / 24


def test_the_results_are_json_and_the_files_hold_them(model: SmallCNN, data: Loader, tmp_path: Path) -> None:
    results = create_simple_workflow(model, data, "cnn", QUIET, output_dir=tmp_path)

    assert json.loads(json.dumps(results)) == results
    read = {what: Path(path).read_text("utf-8") for what, path in results["outputs"].items() if path.endswith(".json")}
    assert json.loads(read["recommendations"]) == results["recommendations"]
    assert json.loads(read["verification"]) == results["verification_results"]
    assert json.loads(read["pruning"])["pruning_results"] == results["pruning_results"]
    assert PruningPlan.load(results["outputs"]["plan"]).neurons == 60
    assert load_report(results["report"]["json"]).headline.endswith("proven: 6/6 checks")
    assert str(open_report(output_dir=tmp_path)) == results["report"]["html"]


def test_a_dead_and_a_redundant_neuron_go_and_the_report_says_why(
    model: SmallCNN, data: Loader, tmp_path: Path
) -> None:
    results = create_simple_workflow(model, data, "cnn", QUIET, output_dir=tmp_path)

    why = {(entry.layer, entry.neuron): entry for entry in load_report(results["report"]["json"]).removals}
    assert why["fc1", 17].reason == "dead"
    assert why["fc1", 17].evidence == "fires on 0 %, reaches 0 at most"
    twins = [why[key] for key in (("conv2", 4), ("conv2", 5)) if key in why]
    assert [entry.reason for entry in twins] == ["redundant"]
    assert "correlates at 1.000" in twins[0].evidence


@pytest.mark.parametrize("base", [None, "tests.pruner.small_cnn:SmallCNN"])
def test_the_snippet_in_the_report_loads_the_result(
    model: SmallCNN, data: Loader, tmp_path: Path, base: str | None
) -> None:
    results = IntegratedTrackingPruningWorkflow(QUIET, tmp_path).run_complete_workflow(model, data, "cnn", base=base)

    assert read_manifest(tmp_path / "pruned_models" / f"{results['run']['name']}_pruned").base == base
    names: dict[str, Any] = {"SmallCNN": SmallCNN}
    exec(load_report(results["report"]["json"]).loading, names)
    images = small_cnn.images(5)
    torch.testing.assert_close(names["model"](images), model(images))


def test_the_model_is_otherwise_as_before(model: SmallCNN, data: Loader, tmp_path: Path) -> None:
    model.train()
    model.bn1.eval()
    before = state(model)
    create_simple_workflow(model, data, "cnn", QUIET, output_dir=tmp_path)

    after = state(model)
    assert all(same(before[key], after[key]) for key in ("objects", "modes", "hooks", "random"))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_second_run_finds_the_target_reached(model: SmallCNN, data: Loader, tmp_path: Path) -> None:
    flow = IntegratedTrackingPruningWorkflow(QUIET, tmp_path)
    flow.run_complete_workflow(model, data, "cnn")
    before = state(model)
    results = flow.run_complete_workflow(model, data, "cnn")

    assert results["run"]["outcome"] == "nothing to remove"
    assert results["pruning_results"]["neurons_pruned"] == 0
    assert same(before, state(model))
    assert "pruned_model" not in results["outputs"]
    assert load_report(results["report"]["json"]).headline == "Nothing to remove: all 142 neurons stay"


def test_a_pruned_model_can_be_pruned_again_by_another_workflow(model: SmallCNN, data: Loader, tmp_path: Path) -> None:
    for neurons in (142, 100):
        results = create_simple_workflow(model, data, "cnn", QUIET, output_dir=tmp_path)
        assert results["pruning_results"]["neurons_after"] == neurons
        assert results["verification_results"]["summary"]["overall_success"]


def test_without_auto_prune_it_stops_after_a_dry_run(model: SmallCNN, data: Loader, tmp_path: Path) -> None:
    before = state(model)
    flow = IntegratedTrackingPruningWorkflow(QUIET, tmp_path)
    results = flow.run_complete_workflow(model, data, "cnn", auto_prune=False)

    assert same(before, state(model))
    assert results["run"]["outcome"] == "dry run"
    assert (results["pruning_results"]["neurons_pruned"], results["metrics"]["after"]) == (60, None)
    assert results["verification_results"]["summary"]["overall_success"] is False
    assert not list((tmp_path / "pruned_models").iterdir())
    assert load_report(results["report"]["json"]).headline == "Dry run: 60 of 202 neurons would go"


def test_without_verification_the_report_says_so(model: SmallCNN, data: Loader, tmp_path: Path) -> None:
    config = QUIET.update(validation={"validate_outputs": False})
    results = create_simple_workflow(model, data, "cnn", config, output_dir=tmp_path)

    assert results["pruning_results"]["neurons_pruned"] == 60
    assert results["verification_results"]["checks"] == []
    assert load_report(results["report"]["json"]).headline.endswith("not verified")
    assert (tmp_path / "pruned_models" / f"{results['run']['name']}_pruned" / "model.safetensors").is_file()


def test_a_quality_of_ones_own(model: SmallCNN, data: Loader, tmp_path: Path) -> None:
    asked: list[int] = []

    def evaluate(candidate: nn.Module) -> dict[str, float]:
        asked.append(sum(parameter.numel() for parameter in candidate.parameters()))
        assert not candidate.training
        return {"accuracy": 0.5, "cosine": 1.0 - len(asked) / 10}

    metrics = create_simple_workflow(model, data, "cnn", QUIET, output_dir=tmp_path, evaluate=evaluate)["metrics"]

    after = metrics["after"]
    assert after is not None
    assert asked[0] > asked[1]
    assert (metrics["before"]["accuracy"], metrics["before"]["quality"]) == (0.5, {"cosine": 0.9})
    assert (after["accuracy"], after["quality"]) == (0.5, {"cosine": 0.8})


def test_a_plain_number_is_called_quality(model: SmallCNN, tmp_path: Path) -> None:
    batches = [small_cnn.images(8)]
    results = create_simple_workflow(model, batches, "cnn", QUIET, output_dir=tmp_path, evaluate=lambda _: 3)

    assert results["metrics"]["before"]["quality"] == {"quality": 3.0}
    assert results["metrics"]["before"]["accuracy"] is None


def test_recommendations_made_earlier_are_followed_without_tracking(
    model: SmallCNN, data: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advice = {"prune": [{"layer": "fc1", "neuron": 17, "reason": "dead"}]}
    monkeypatch.setattr(workflow, "NeuronEngine", pytest.fail)
    flow = IntegratedTrackingPruningWorkflow(QUIET, tmp_path)
    results = flow.run_complete_workflow(model, data, "cnn", recommendations=advice)

    assert results["pruning_results"]["layers"]["fc1"]["removed"] == [17]
    assert results["pruning_results"]["neurons_pruned"] == 1
    assert results["tracking_results"]["layers"]["conv1"]["firing_frequency"] is None
    assert "not measured" in Path(results["report"]["html"]).read_text("utf-8")


def test_pictures_and_the_history_of_a_tracker_that_watched_the_training(
    model: SmallCNN, data: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(workflow_run, "find_spec", lambda name: name)
    engine = NeuronEngine(tmp_path)
    engine.observe(model, data)
    for epoch, loss in enumerate((0.9, 0.4)):
        engine.log_epoch(epoch, loss)
    flow = IntegratedTrackingPruningWorkflow(QUIET, tmp_path, tracker=engine)
    results = flow.run_complete_workflow(model, data, "cnn")

    assert [epoch["loss"] for epoch in results["tracking_results"]["history"]] == [0.9, 0.4]
    assert "Training so far" in Path(results["report"]["html"]).read_text("utf-8")
    for picture in ("activity_heatmap", "activity_histograms"):
        assert Path(results["outputs"][picture]).read_bytes().startswith(b"\x89PNG")


def test_a_hostile_name_stays_inside_the_folders(model: SmallCNN, data: Loader, tmp_path: Path) -> None:
    results = create_simple_workflow(model, data, "../../<b>x</b>", QUIET, output_dir=tmp_path / "out")

    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert results["run"]["name"].startswith("b-x-b_")
    assert "<b>x" not in Path(results["report"]["html"]).read_text("utf-8")


# --- runs that do not


STAGES: dict[str, tuple[Any, str, int]] = {
    "tracking": (workflow, "current_map", 1),
    "storing the original": (workflow_run, "save_pruned", 1),
    "measuring before": (workflow_run, "accuracy", 1),
    "simulating": (execution, "check", 1),
    "removing": (execution, "prune_", 1),
    "storing the result": (workflow_run, "save_pruned", 2),
    "verifying": (execution, "verify", 1),
    "measuring after": (workflow_run, "compute_metrics", 1),
    "measuring quality after": (workflow_run, "accuracy", 2),
    "writing the results": (workflow_run, "write_json", 3),
    "drawing": (workflow_run, "layers_picture", 1),
    "reporting": (workflow_run, "write_report", 1),
}


def failing(real: Callable[..., Any], error: BaseException, call: int) -> Callable[..., Any]:
    """`real`, which fails at its `call`-th call, right after it did its work."""
    calls = iter(range(1, 100))

    def replacement(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        if next(calls) == call:
            raise error
        return result

    return replacement


@pytest.mark.parametrize(
    ("stage", "error"),
    [(stage, KeyboardInterrupt()) for stage in STAGES]
    + [(stage, StorageError("The disk is full.")) for stage in ("storing the result", "reporting")],
)
def test_whatever_happens_on_the_way_model_optimizer_and_files_are_as_before(
    model: SmallCNN,
    data: Loader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    error: BaseException,
) -> None:
    optimizer = torch.optim.Adam(model.parameters())
    model(small_cnn.images()).sum().backward()
    optimizer.step()
    before, flow = state(model, optimizer), IntegratedTrackingPruningWorkflow(QUIET, tmp_path)
    module, name, call = STAGES[stage]
    monkeypatch.setattr(module, name, failing(getattr(module, name), error, call))

    with pytest.raises(type(error)):
        flow.run_complete_workflow(model, data, "cnn", optimizer=optimizer)

    assert same(before, state(model, optimizer))
    assert files(tmp_path) == []
    assert not list((tmp_path / "models").iterdir())


def test_after_an_interrupted_run_the_next_one_succeeds_and_cuts_the_optimizer_too(
    model: SmallCNN, data: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer = torch.optim.Adam(model.parameters())
    model(small_cnn.images()).sum().backward()
    optimizer.step()
    flow = IntegratedTrackingPruningWorkflow(QUIET, tmp_path)
    monkeypatch.setattr(workflow_run, "write_report", failing(workflow_run.write_report, KeyboardInterrupt(), 1))
    with pytest.raises(KeyboardInterrupt):
        flow.run_complete_workflow(model, data, "cnn", optimizer=optimizer)

    results = flow.run_complete_workflow(model, data, "cnn", optimizer=optimizer)
    assert results["pruning_results"]["neurons_pruned"] == 60
    moments = [s["exp_avg"].shape for s in optimizer.state.values()]
    assert moments == [parameter.shape for parameter in model.parameters()]


def test_a_failed_check_restores_the_model_and_is_reported(
    model: SmallCNN, data: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = execution.prune_

    def prunes_wrongly(pruned: SmallCNN, *args: Any, **kwargs: Any) -> Any:
        result = real(pruned, *args, **kwargs)
        pruned.fc2.bias.data = pruned.fc2.bias.data + 1
        return result

    monkeypatch.setattr(execution, "prune_", prunes_wrongly)
    before = state(model)
    with pytest.raises(FailedChecksError, match=r"5/6 tests passed; sliced equals masked: .*restored.*_report\.html"):
        create_simple_workflow(model, data, "cnn", QUIET, output_dir=tmp_path)

    assert same(before, state(model))
    report = load_report(open_report(output_dir=tmp_path).with_suffix(".json"))
    assert report.outcome == "restored"
    assert report.headline == "Restored: only 5/6 checks passed, so the model is as it was"
    assert "60 neurons were taken out of cnn" in report.summary
    assert [check.name for check in report.checks if not check.passed] == ["sliced equals masked"]
    assert not list((tmp_path / "pruned_models").iterdir())


def generator() -> Iterator[Tensor]:
    yield small_cnn.images()


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "empty"),
        (generator(), "only once"),
        ([small_cnn.images() * float("nan")], "Batch 0: .* NaN"),
        (["a", "b"], "Batch 0"),
        (None, "NoneType"),
    ],
)
def test_bad_data_is_found_before_a_folder_is_made(model: SmallCNN, tmp_path: Path, batches: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        create_simple_workflow(model, batches, "cnn", QUIET, output_dir=tmp_path / "outputs")

    assert not (tmp_path / "outputs").exists()


def test_an_unwritable_directory_is_found_before_the_model_is_looked_at(
    model: SmallCNN, data: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outputs").write_text("a file")
    monkeypatch.setattr(workflow, "NeuronEngine", pytest.fail)
    before = state(model)
    with pytest.raises(StorageError, match="choose another"):
        create_simple_workflow(model, data, "cnn", QUIET, output_dir=tmp_path / "outputs")

    assert same(before, state(model))
    assert (tmp_path / "outputs").read_text() == "a file"


def test_a_metric_that_is_no_number_is_an_error(model: SmallCNN, data: Loader, tmp_path: Path) -> None:
    values = iter([0.5, float("nan")])
    before = state(model)
    with pytest.raises(DataError, match="'quality' is nan"):
        create_simple_workflow(model, data, "cnn", QUIET, output_dir=tmp_path, evaluate=lambda _: next(values))

    assert same(before, state(model))
    assert files(tmp_path) == []


def test_a_model_without_neurons_to_remove_is_an_error(data: Loader, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(PlanError, match="no neurons that can be removed"):
        create_simple_workflow(model, data, "linear", QUIET, output_dir=tmp_path)

    assert files(tmp_path) == []


def test_recommendations_of_another_model_are_an_error(model: SmallCNN, data: Loader, tmp_path: Path) -> None:
    other = create_simple_workflow(small_cnn.SmallCNN(8, 16, 32), data, "b", QUIET, output_dir=tmp_path)
    before, stored = state(model), files(tmp_path)
    flow = IntegratedTrackingPruningWorkflow(QUIET, tmp_path)
    with pytest.raises(RecommendationError, match="layer 'conv1' had 8 neurons then and has 10 now"):
        flow.run_complete_workflow(model, data, "cnn", recommendations=other["outputs"]["recommendations"])

    assert same(before, state(model))
    assert files(tmp_path) == stored


class Stream(nn.Module):
    """A residual stream under a layer norm, and an MLP beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(4, 16), nn.LayerNorm(16)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        logits: Tensor = self.head(self.norm(x))
        return logits


def test_the_width_of_the_stream_is_measured_where_somebody_asks_for_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(3)]
    config = QUIET.update(strategy={"kinds": ["residual", "mlp"], "default_strategy": "structured"})
    results = create_simple_workflow(Stream(), batches, config=config, output_dir=tmp_path)
    pruning, verification = results["pruning_results"], results["verification_results"]
    assert {name: layer["after"] for name, layer in pruning["layers"].items()} == {"embed": 12, "up": 23}
    assert pruning["warnings"][0].startswith("Layer 'embed' is not exact (its neurons are normalised together)")
    assert verification["summary"] == {"passed": 6, "total": 6, "overall_success": True}
    measured = verification["measured"]
    assert measured is not None
    assert list(measured["layers"]) == ["embed"]
    assert measured["relative_error"] > 0
    assert measured["exact_alone"] is not None
    assert measured["accuracy_before"] == results["metrics"]["before"]["accuracy"]
    assert results["metrics"]["after"] is not None
    assert measured["accuracy_after"] == results["metrics"]["after"]["accuracy"]
    report = load_report(results["report"]["json"])
    assert report.measured is not None
    assert not report.proven
    assert "1 layer not exact" in report.headline
    only_mlp = create_simple_workflow(Stream(), batches, config=QUIET, output_dir=tmp_path)
    assert set(only_mlp["pruning_results"]["layers"]) == {"up"}
    assert only_mlp["verification_results"]["measured"] is None
