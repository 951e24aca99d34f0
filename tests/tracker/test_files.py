import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tracker.errors import RecommendationError, StorageError
from tracker.files import atomic_path, read_json, write_bytes, write_json, write_text

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


@given(value=json_values)
def test_json_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("json") / "value.json"
    write_json(path, value)
    assert read_json(path, what="a value") == value


def test_parents_are_made_and_only_the_file_is_left(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "note.txt", "Größe\n")
    assert (tmp_path / "a" / "b" / "note.txt").read_bytes() == "Größe\n".encode()
    assert names(tmp_path / "a" / "b") == ["note.txt"]


def test_an_old_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    write_bytes(path, b"old, and longer than the new one")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["data.bin"]


def test_a_writer_that_needs_a_path_gets_one_beside_the_target_with_its_suffix(tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".safetensors"
        assert temporary.name.startswith(".")
        save_file({"weight": torch.arange(3.0)}, temporary)
        assert not target.exists()
    assert torch.equal(load_file(target)["weight"], torch.arange(3.0))
    assert names(tmp_path) == ["model.safetensors"]


def test_the_data_is_on_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recording_fsync(descriptor: int) -> None:
        kind = "directory" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "file"
        steps.append(f"flush {kind}")
        fsync(descriptor)

    def recording_replace(source: Path, target: Path) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", recording_replace)
    write_text(tmp_path / "note.txt", "x")
    assert steps == ["flush file", "rename", "flush directory"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "that you may write to"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "choose another directory"),
    ],
)
def test_a_failing_disk_leaves_the_old_file_and_names_path_and_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int, way_out: str
) -> None:
    path = tmp_path / "data.json"
    write_json(path, {"old": True})

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(StorageError, match=way_out) as caught:
        write_json(path, {"new": True})
    assert str(path) in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert json.loads(path.read_text()) == {"old": True}
    assert names(tmp_path) == ["data.json"]


def test_a_disk_that_fills_up_under_safetensors_own_writer_is_a_storage_error(tmp_path: Path) -> None:
    def fill_the_disk() -> None:
        with atomic_path(tmp_path / "model.safetensors") as temporary:
            temporary.write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(StorageError, match=r"model\.safetensors.*No space left.*free some space"):
        fill_the_disk()
    assert names(tmp_path) == []


def test_safetensors_own_error_messages_still_end_in_the_number(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError, match=rf"\(os error {errno.ENOENT}\)"):
        save_file({"weight": torch.zeros(1)}, tmp_path / "missing" / "model.safetensors")


def test_a_parent_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("I am a file")
    with pytest.raises(StorageError, match="is a file, not a directory"):
        write_text(tmp_path / "outputs" / "logs" / "x.json", "x")
    assert (tmp_path / "outputs").read_text() == "I am a file"


def test_a_target_that_is_a_directory_stays(tmp_path: Path) -> None:
    (tmp_path / "logs" / "deep").mkdir(parents=True)
    with pytest.raises(StorageError, match="logs"):
        write_text(tmp_path / "logs", "x")
    assert names(tmp_path) == ["logs"]
    assert names(tmp_path / "logs") == ["deep"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_writer_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "data.bin"
    write_bytes(path, b"old")

    def interrupted() -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["data.bin"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [1.0, float("-inf")]}, object()])
def test_what_json_cannot_hold_is_refused_before_any_file_is_touched(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "data.json"
    write_json(path, "old")
    with pytest.raises((ValueError, TypeError)):
        write_json(path, value)
    assert json.loads(path.read_text()) == "old"


def test_a_missing_file_is_named_with_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no file .*plan\.json to read a plan from"):
        read_json(tmp_path / "plan.json", what="a plan", error=RecommendationError)


def test_a_directory_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Cannot read a plan"):
        read_json(tmp_path, what="a plan")
