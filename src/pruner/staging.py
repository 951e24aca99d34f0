"""Several files that change together: a process killed at any point leaves all of the old ones, or all of the new.

The new files are written into a hidden directory beside the old ones, which one rename then declares ready. What is
left is moving them to their places, and whoever comes next after a kill goes on with that. Until it is done, `place_of`
knows where a file lies. The last file of a set is moved last, so that with it the set is complete for anybody.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

from tracker.errors import StorageError
from tracker.files import cannot_write, flush

_PENDING = ".pruning.pending"
_READY = ".pruning.ready"


@contextmanager
def replacing(directory: str | PathLike[str], *, last: str) -> Iterator[Path]:
    """An empty directory to write files into; they become `directory`'s when the block ends well, and vanish otherwise.

    Files of other names in `directory` stay. `last` is the file to be moved last.

    Raises:
        StorageError: a file cannot be written, flushed or moved.
    """
    folder = Path(directory)
    pending = folder / _PENDING
    made = not folder.exists()
    with _reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
        settle(folder, last=last)
        pending.mkdir()
    try:
        yield pending
        with _reported(folder):
            for path in (*_files(pending), pending):
                flush(path)
            os.replace(pending, folder / _READY)
            flush(folder)
    except BaseException:
        shutil.rmtree(pending, ignore_errors=True)
        if made:
            with suppress(OSError):
                folder.rmdir()
        raise
    settle(folder, last=last)


def settle(directory: str | PathLike[str], *, last: str) -> None:
    """End what a killed process began: move the files that are ready, forget the others. Raises `StorageError`."""
    folder = Path(directory)
    ready = folder / _READY
    with _reported(folder):
        if (folder / _PENDING).is_dir():
            shutil.rmtree(folder / _PENDING)
        if not ready.is_dir():
            return
        for path in sorted(_files(ready), key=lambda path: path == ready / last):
            target = folder / path.relative_to(ready)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
        flush(folder)
        shutil.rmtree(ready)


def place_of(directory: str | PathLike[str], name: str) -> Path:
    """Where the file `name` of `directory` lies: in its place, or still on the way there."""
    ready = Path(directory) / _READY / name
    return ready if ready.is_file() else Path(directory) / name


def _files(folder: Path) -> Iterable[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@contextmanager
def _reported(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise cannot_write(folder, error) from error
