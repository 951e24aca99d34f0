"""A process killed at any line of Python while it writes leaves the old file or the new one."""

import subprocess
import sys
from pathlib import Path

import pytest

import tracker.files

# Forks one child per line that is executed between "nothing written" and "done", and ends the child at that line the
# hard way: no `finally`, no buffers flushed. Prints what each child left at the target ("-" if nothing).
KILLER = """
import os, sys, types
from pathlib import Path
sys.modules["tracker"] = types.ModuleType("tracker")  # without torch, which makes a fork slow
sys.modules["tracker"].__path__ = [sys.argv[4]]
from tracker.files import atomic_path, write_bytes

def write_in_two_halves(path, data):
    with atomic_path(path) as temporary, temporary.open("wb", buffering=0) as file:
        half = len(data) // 2
        file.write(data[:half])
        file.write(data[half:])

def naive(path, data):
    with path.open("wb") as file:
        file.write(data)

def die_at(line):
    seen = 0
    def trace(frame, event, argument):
        nonlocal seen
        if event == "line":
            seen += 1
            if seen == line:
                os._exit(9)
        return trace
    sys.settrace(trace)

writer, directory, old = globals()[sys.argv[1]], Path(sys.argv[2]), sys.argv[3]
line, status = 0, None
while status != 0:
    line += 1
    target = directory / str(line) / "data.bin"
    target.parent.mkdir()
    if old:
        target.write_bytes(old.encode())
    child = os.fork()
    if child == 0:
        die_at(line)
        writer(target, b"the new content")
        sys.settrace(None)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(target.read_bytes().decode() if target.exists() else "-")
"""


def contents_after_every_kill(writer: str, directory: Path, old: str) -> list[str]:
    command = [sys.executable, "-c", KILLER, writer, str(directory), old, str(Path(tracker.files.__file__).parent)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.parametrize("writer", ["write_bytes", "write_in_two_halves"])
@pytest.mark.parametrize("old", ["the old content", ""])
def test_the_old_file_or_the_new_one_and_nothing_between(writer: str, old: str, tmp_path: Path) -> None:
    left = contents_after_every_kill(writer, tmp_path, old)
    before = left.index("the new content")
    assert len(left) > 20
    assert set(left[:before]) == {old or "-"}
    assert set(left[before:]) == {"the new content"}
    assert before < len(left) - 1, "some kills must come after the rename"


def test_the_killer_finds_a_writer_that_is_not_safe(tmp_path: Path) -> None:
    assert "" in contents_after_every_kill("naive", tmp_path, "the old content")
