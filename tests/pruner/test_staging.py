from pathlib import Path

import pytest

from pruner.staging import place_of, replacing, settle
from tracker.errors import StorageError


def write(folder: Path, **contents: str) -> None:
    with replacing(folder, last="last") as new:
        for name, content in contents.items():
            (new / name).write_text(content)


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_all_files_come_at_once_and_others_stay(tmp_path):
    (tmp_path / "other").write_text("mine")
    write(tmp_path, one="1", last="2")
    write(tmp_path, one="3", last="4")
    assert contents(tmp_path) == {"other": "mine", "one": "3", "last": "4"}


def test_directories_among_the_files_are_kept(tmp_path):
    for content in "12":
        with replacing(tmp_path, last="last") as new:
            (new / "templates").mkdir()
            (new / "templates" / "chat").write_text(content)
    assert contents(tmp_path) == {"templates/chat": "2"}


def test_nothing_comes_where_the_block_fails_and_no_directory_is_left_behind(tmp_path):
    write(tmp_path / "old", one="1")
    (tmp_path / "empty").mkdir()
    for folder in ("old", "empty", "new"):
        with pytest.raises(TypeError):
            write(tmp_path / folder, one="2", two=2)  # type: ignore[arg-type]
    assert contents(tmp_path) == {"old/one": "1"}
    assert (tmp_path / "empty").exists()
    assert not (tmp_path / "new").exists()


def killed_while_moving(folder: Path, moved: int, monkeypatch: pytest.MonkeyPatch, **new: str) -> None:
    """What is left when the process dies after so many files of the set were moved."""
    import os

    real, count = os.replace, []

    def replace(old: Path, target: Path) -> None:
        if Path(target).parent == folder and not Path(target).name.startswith("."):
            if len(count) == moved:
                raise KeyboardInterrupt
            count.append(target)
        real(old, target)

    with monkeypatch.context() as patch:
        patch.setattr("pruner.staging.os.replace", replace)
        with pytest.raises(KeyboardInterrupt):
            write(folder, **new)


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_whoever_comes_after_a_kill_finds_the_new_files_and_settles_them(tmp_path, moved, monkeypatch):
    write(tmp_path, one="1", two="1", last="1")
    killed_while_moving(tmp_path, moved, monkeypatch, one="2", two="2", last="2")
    assert {place_of(tmp_path, name).read_text() for name in ("one", "two", "last")} == {"2"}
    assert (tmp_path / "last").read_text() == "1", "the last file is moved last"
    settle(tmp_path, last="last")
    assert contents(tmp_path) == {"one": "2", "two": "2", "last": "2"}


def test_what_was_never_ready_is_forgotten(tmp_path):
    write(tmp_path, one="1")
    (tmp_path / ".pruning.pending").mkdir()
    (tmp_path / ".pruning.pending" / "one").write_text("half")
    assert place_of(tmp_path, "one").read_text() == "1"
    write(tmp_path, two="2")
    assert contents(tmp_path) == {"one": "1", "two": "2"}


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"Cannot write .*below"):
        write(tmp_path / "file" / "below", one="1")
