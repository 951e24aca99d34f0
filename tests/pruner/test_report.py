import json
from pathlib import Path

import pytest
from tests.pruner.sample_results import sample_results

from pruner.outputs import RunOutputs
from pruner.report import Report
from pruner.report_building import build_report
from pruner.report_files import load_report, open_report, write_report
from pruner.results import WorkflowResults
from tracker.errors import StorageError


def headline(results: WorkflowResults) -> str:
    return build_report(results).headline


def test_the_headline_says_what_a_person_asks_first() -> None:
    assert headline(sample_results()) == "56 % smaller, 1.3× faster, accuracy 97.8 → 97.6 %, proven: 6/6 checks"


def test_the_headline_is_honest_about_a_slower_model() -> None:
    results = sample_results()
    after = results["metrics"]["after"]
    assert after is not None
    after["latency_ms"], after["accuracy"] = 2.62, 0.978

    assert headline(results) == "56 % smaller, 2.0× slower, accuracy still 97.8 %, proven: 6/6 checks"


def test_the_headline_names_the_metric_of_the_caller_and_skips_what_was_not_measured() -> None:
    results = sample_results()
    before, after = results["metrics"]["before"], results["metrics"]["after"]
    assert after is not None
    for measured, cosine in ((before, 1.0), (after, 0.9931)):
        measured["accuracy"], measured["latency_ms"], measured["quality"] = None, None, {"cosine": cosine}

    assert headline(results) == "56 % smaller, cosine 1 → 0.993, proven: 6/6 checks"


def test_the_headline_claims_a_proof_only_where_there_is_one() -> None:
    results = sample_results()
    verification = results["verification_results"]
    verification["checks"] = [check for check in verification["checks"] if check["name"] != "sliced equals masked"]
    verification["summary"] |= {"passed": 5, "total": 5}
    assert headline(results).endswith("97.6 %, 5/5 checks passed")
    assert "silenced" not in build_report(results).summary

    verification["checks"] = []
    verification["summary"] |= {"passed": 0, "total": 0, "overall_success": False}
    assert headline(results).endswith("97.6 %, not verified")


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("dry run", "Dry run: 48 of 144 neurons would go"),
        ("restored", "Restored: only 5/6 checks passed, so the model is as it was"),
    ],
)
def test_the_headline_of_a_run_that_changed_nothing(outcome: str, words: str) -> None:
    assert headline(sample_results(outcome=outcome)) == words  # type: ignore[arg-type]


def test_the_headline_when_nothing_met_the_conditions() -> None:
    results = sample_results(share=0, outcome="nothing to remove")

    assert headline(results) == "Nothing to remove: all 144 neurons stay"


def test_every_removed_neuron_has_a_reason_and_its_evidence() -> None:
    results = sample_results()
    report = build_report(results)

    gone = {
        (name, neuron) for name, layer in results["pruning_results"]["layers"].items() for neuron in layer["removed"]
    }
    assert {(removal.layer, removal.neuron) for removal in report.removals} == gone
    assert sum(report.reasons.values()) == len(gone)
    for removal in report.removals:
        layer = results["pruning_results"]["layers"][removal.layer]
        place = layer["removed"].index(removal.neuron)
        assert (removal.reason, removal.score) == (layer["reasons"][place], layer["scores"][place])
        assert bool(removal.evidence) == (removal.reason != "low score")


def test_a_pair_of_which_one_has_gone_is_no_longer_suggested() -> None:
    results = sample_results()
    gone = results["pruning_results"]["layers"]["fc1"]["removed"][0]
    stay = [n for n in range(64) if n not in results["pruning_results"]["layers"]["fc1"]["removed"]]
    results["recommendations"]["merge"] = [
        {"layer": "fc1", "neurons": pair, "correlation": 0.98} for pair in ([gone, stay[0]], [stay[1], stay[2]])
    ]

    merge = [entry.detail for entry in build_report(results).suggestions if entry.kind == "merge"]
    assert merge == [f"neurons {stay[1]} and {stay[2]} correlate at 0.980"]


def test_the_profile_of_a_layer_counts_every_neuron_once() -> None:
    results = sample_results([("wide", 1000), ("narrow", 3)])
    wide, narrow = build_report(results).layers

    assert len(wide.profile) == 64
    assert len(narrow.profile) == 3
    for layer in (wide, narrow):
        assert sum(part.size for part in layer.profile) == layer.before
        assert sum(part.removed for part in layer.profile) == layer.before - layer.after
    firing = results["tracking_results"]["layers"]["narrow"]["firing_frequency"]
    assert [part.firing for part in narrow.profile] == firing


def test_a_layer_whose_activity_was_not_measured_has_none() -> None:
    results = sample_results()
    results["tracking_results"]["layers"]["fc1"]["firing_frequency"] = None

    assert {part.firing for part in build_report(results).layers[-1].profile} == {None}


def test_the_report_comes_back_from_its_json(tmp_path: Path) -> None:
    run = RunOutputs(tmp_path, "cnn_20250912-101523")
    report = build_report(sample_results())
    paths = write_report(report, run)

    assert load_report(paths["json"]) == report
    assert Report.model_validate_json(Path(paths["json"]).read_text("utf-8")) == report


@pytest.mark.parametrize(
    ("change", "words"),
    [({"version": 2}, "version"), ({"headline": None}, "headline"), ({"surprise": 1}, "surprise")],
)
def test_json_that_is_no_report_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    data = build_report(sample_results()).model_dump(mode="json") | change
    (tmp_path / "report.json").write_text(json.dumps(data))

    with pytest.raises(StorageError, match=words):
        load_report(tmp_path / "report.json")


def test_any_past_run_can_be_opened(tmp_path: Path) -> None:
    older, newer = RunOutputs(tmp_path, "cnn_20250912-101523"), RunOutputs(tmp_path, "cnn_20250913-080000")
    for run in (older, newer):
        write_report(build_report(sample_results()), run)

    assert open_report(output_dir=tmp_path) == newer.report_html
    assert open_report("latest", tmp_path) == newer.report_html
    assert open_report("cnn_20250912-101523", tmp_path) == older.report_html
    assert open_report(older.report_html) == older.report_html
    assert open_report(older.report_json) == older.report_html


def test_a_missing_page_is_made_again_from_the_json(tmp_path: Path) -> None:
    run = RunOutputs(tmp_path, "cnn_20250912-101523")
    write_report(build_report(sample_results()), run)
    page = run.report_html.read_text("utf-8")
    run.report_html.unlink()

    assert open_report(output_dir=tmp_path).read_text("utf-8") == page


def test_no_run_and_a_wrong_name_say_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="neuronscope demo"):
        open_report(output_dir=tmp_path)
    write_report(build_report(sample_results()), RunOutputs(tmp_path, "cnn_20250912-101523"))
    with pytest.raises(StorageError, match="Did you mean 'cnn_20250912-101523'"):
        open_report("cnn_20250912-101524", tmp_path)
    with pytest.raises(StorageError, match="no report"):
        open_report(tmp_path / "missing.html", tmp_path)


def test_the_snippet_loads_the_stored_model() -> None:
    report = build_report(sample_results())

    compile(report.loading, "<report>", "exec")
    assert 'directory = "outputs/pruned_models/DigitsCNN_20250912-101523_pruned"' in report.loading
    assert report.loading.endswith("model = load_pruned(directory, SmallResNet)\n")
    assert build_report(sample_results(outcome="restored")).loading == ""
