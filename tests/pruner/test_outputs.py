import os
import shutil
from collections import namedtuple
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruner.outputs import FOLDERS, file_name_of, list_runs, start_run
from tracker.errors import StorageError

NOW = datetime(2025, 9, 12, 10, 15, 23)


def test_six_folders_and_the_name_of_the_run(tmp_path: Path) -> None:
    run = start_run(tmp_path / "outputs", "org/My Model", now=NOW)

    assert run.name == "org-My-Model_20250912-101523"
    assert sorted(folder.name for folder in (tmp_path / "outputs").iterdir()) == sorted(FOLDERS)
    assert run.report_html == tmp_path / "outputs" / "reports" / "org-My-Model_20250912-101523_report.html"


def test_probing_leaves_no_file(tmp_path: Path) -> None:
    run = start_run(tmp_path, "cnn", now=NOW)

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert run.original_model.is_dir()


def test_runs_of_the_same_second_do_not_collide(tmp_path: Path) -> None:
    names = [start_run(tmp_path, "cnn", now=NOW).name for _ in range(3)]

    assert names == ["cnn_20250912-101523", "cnn_20250912-101523-2", "cnn_20250912-101523-3"]


def test_a_file_in_the_place_of_the_directory_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("not a directory")

    with pytest.raises(StorageError, match="outputs"):
        start_run(tmp_path / "outputs", "cnn")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_a_storage_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    with pytest.raises(StorageError, match="may write to"):
        start_run(tmp_path / "outputs", "cnn")


def test_a_disk_without_room_is_found_out_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40 - 2**25, 2**25))

    start_run(tmp_path, "small", model_bytes=2**20)
    with pytest.raises(StorageError, match=r"32 MiB free; this run needs about 2,064 MiB"):
        start_run(tmp_path, "large", model_bytes=2**30)


@given(st.text(max_size=200))
def test_any_model_name_becomes_a_plain_file_name(name: str) -> None:
    safe = file_name_of(name)

    assert safe == Path(safe).name
    assert safe.isascii()
    assert 0 < len(safe) <= 80
    assert not safe.startswith((".", "-"))
    assert file_name_of(safe) == safe


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    for name in ("b_20250912-101523", "a_20250912-101523-2", "a_20250912-101523-10", "c_20240101-000000"):
        (tmp_path / "reports").mkdir(exist_ok=True)
        (tmp_path / "reports" / f"{name}_report.json").write_text("{}")
    (tmp_path / "reports" / "notes.json").write_text("{}")

    assert [run.name for run in list_runs(tmp_path)] == [
        "a_20250912-101523-10",
        "a_20250912-101523-2",
        "b_20250912-101523",
        "c_20240101-000000",
    ]


def test_no_directory_no_runs(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "nowhere") == []


def test_discarding_a_run_leaves_the_others(tmp_path: Path) -> None:
    first, second = (start_run(tmp_path, "cnn", now=NOW) for _ in range(2))
    for run in (first, second):
        for path in (run.plan, run.report_html, run.pruned_model / "model.safetensors", run.visualization("a.svg")):
            path.parent.mkdir(exist_ok=True)
            path.write_text("x")

    first.discard()

    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {
        "logs/cnn_20250912-101523-2_plan.json",
        "reports/cnn_20250912-101523-2_report.html",
        "pruned_models/cnn_20250912-101523-2_pruned/model.safetensors",
        "visualizations/cnn_20250912-101523-2_a.svg",
    }
    assert not first.original_model.exists()
