"""The report says what layers could spare, what was solved for, and where it fell back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruner import IntegratedTrackingPruningWorkflow, create_default_config, report_repair
from pruner.report_files import load_report


def _run(tmp_path: Path, **options: Any) -> tuple[dict[str, Any], str]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3))
    data = [torch.randn(32, 8) for _ in range(4)]
    config = create_default_config().update(logging={"log_to_console": False}, **options.pop("config", {}))
    workflow = IntegratedTrackingPruningWorkflow(config, output_dir=tmp_path)
    results = workflow.run_complete_workflow(model, data, "Net", **options)
    return dict(results), Path(results["report"]["html"]).read_text(encoding="utf-8")


def test_a_target_brings_budgets_with_their_curves(tmp_path: Path) -> None:
    results, page = _run(tmp_path, target={"params": 0.6}, effort="default")
    pruning = results["pruning_results"]
    assert pruning["strategy"] == "compress"
    assert 0.55 < pruning["parameters_after"] / pruning["parameters_before"] < 0.63
    assert results["verification_results"]["summary"]["passed"] == 6  # loaded from its files, too
    assert 'id="budgets"' in page
    assert page.count("curve thin") == 2
    assert "trained block by block" in page
    report = load_report(results["report"]["json"])
    assert report.budgets is not None
    assert set(report.budgets["layers"]) == {"0", "2"}
    assert "the repaired original" in report.summary


def test_the_workflow_repairs_what_was_recommended(tmp_path: Path) -> None:
    results, page = _run(tmp_path)
    repair = results["pruning_results"]["repair"]
    assert repair["distances"]["closed form"] < repair["distances"]["removed"]
    assert 'id="repair"' in page
    assert "the others solved for<strong> kept</strong>" in page
    assert 'id="budgets"' not in page


def test_without_it_the_report_does_not_mention_it(tmp_path: Path) -> None:
    results, page = _run(tmp_path, config={"repair": {"enabled": False}})
    assert results["pruning_results"]["repair"] is None
    assert 'id="repair"' not in page


def test_a_layer_that_fell_back_is_marked() -> None:
    layer = {"consumer": "fc2.weight", "kept": 5, "columns": 8, "errors": {"least squares": 0.5, "bias": 0.2}}
    rows = report_repair.layer_rows({"layers": [{**layer, "method": "bias"}, {**layer, "method": "least squares"}]})
    assert "fell back" in str(rows[0][2])
    assert "fell back" not in str(rows[1][2])


def test_costs_between_known_points() -> None:
    curve = {"neurons": 4, "removed": [0, 2, 4], "costs": [0.0, 1.0, 5.0]}
    rows = report_repair.budget_rows({"layers": {"a": {"neurons": 4, "removed": 2, "share": 0.5, "curve": curve}}})
    assert str(rows[0][3]) == "1"
    assert report_repair._at(curve, 3) == 3.0
