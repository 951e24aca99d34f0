"""Files that are whole or absent: written beside their place, flushed to disk, then renamed into it.

A process killed at any step leaves the old file or the new one, never a half of either. What a kill can leave behind is
a temporary file, whose name starts with a dot; nothing reads those.
"""

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError

from tracker.errors import NeuronScopeError, StorageError

_WAY_OUT = {
    errno.ENOSPC: "The disk is full: free some space or choose another directory.",
    errno.EDQUOT: "Your disk quota is used up: free some space or choose another directory.",
    errno.EACCES: "Choose a directory that you may write to.",
    errno.EPERM: "Choose a directory that you may write to.",
    errno.EROFS: "The file system is read-only: choose another directory.",
    errno.ENOTDIR: "A part of the path is a file, not a directory: choose another path.",
    errno.EEXIST: "A part of the path is a file, not a directory: choose another path.",
    errno.EISDIR: "The path is a directory: name a file in it.",
}


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path for a writer that needs a path; becomes `path` when the block ends well, vanishes otherwise.

    The temporary file lies in the same directory and has the same suffix, by which some writers choose a format. Parent
    directories are made.

    Raises:
        StorageError: the directory cannot be made, or the file not written, flushed or renamed.
    """
    target = Path(path)
    temporary = target.with_name(f".{secrets.token_hex(8)}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        flush(temporary)
        os.replace(temporary, target)
        flush(target.parent)
    except StorageError:
        raise
    except (OSError, SafetensorError) as error:
        raise cannot_write(target, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def cannot_write(target: Path, error: OSError | SafetensorError) -> StorageError:
    """What is wrong with writing there, and the way out."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    hint = _WAY_OUT.get(_errno(error), "Check the path, or choose another directory.")
    return StorageError(f"Cannot write {target}: {reason}.", hint=hint)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, whole or not at all. Raises `StorageError`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all. Raises `StorageError`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` as indented JSON to `path`, whole or not at all.

    Raises:
        StorageError: the file cannot be written.
        TypeError, ValueError: `obj` is not JSON, or holds NaN or Inf, which JSON does not have. No file is touched.
    """
    write_text(path, json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str], *, what: str, error: type[NeuronScopeError] = StorageError) -> Any:
    """The JSON in `path`, which holds `what` ("recommendations", "a pruning plan"), read strictly.

    Raises:
        StorageError: the file is missing or cannot be read.
        error: the file is not UTF-8, not JSON, has NaN or Inf in it, or an object in it names one key twice.
    """
    source = Path(path)
    try:
        data = source.read_bytes()
    except FileNotFoundError as missing:
        raise StorageError(f"There is no file {source} to read {what} from.", hint="Check the path.") from missing
    except OSError as failure:
        reason = failure.strerror or str(failure)
        raise StorageError(f"Cannot read {what} from {source}: {reason}.", hint="Check the path.") from failure
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as malformed:
        hint = "Write the file again, or mend it by hand."
        raise error(f"{source} does not hold {what} as JSON: {malformed}.", hint=hint) from malformed


def flush(path: Path) -> None:
    """Wait until the file, or the directory's list of names, is on the disk and not only in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _errno(error: OSError | SafetensorError) -> int:
    """The operating system's error number, or 0. safetensors' own writer passes it on only inside its message."""
    if isinstance(error, OSError):
        return error.errno or 0
    return next((number for number in _WAY_OUT if f"os error {number})" in str(error)), 0)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
