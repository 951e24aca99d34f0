"""The file of a neuron history: an .npz of plain arrays, read without pickle and checked before it is believed.

Members: `header`, JSON as bytes, and for layer i of the header `values_i` float32 (epochs, 3, neurons), `state_i` uint8
(epochs, neurons) and `present_i` bool (neurons,). Layers are numbered, so that no name of one becomes a path.
"""

from __future__ import annotations

import struct
import tokenize
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tracker.errors import DataError, StorageError
from tracker.files import atomic_path

STATISTICS = ("firing_frequency", "mean_magnitude", "variance")
# Room for the header and for what the format adds around each array.
_OVERHEAD = 2**20

# What Python's and NumPy's readers raise on bytes that are no such file.
_DAMAGED = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
)

Element = TypeVar("Element", bound=np.generic)
Arrays = tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.bool_]]


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal["neuronscope/neuron-history"] = "neuronscope/neuron-history"
    version: Literal[1] = 1
    model: str
    epochs: list[Annotated[int, Field(ge=0, lt=2**63)]]
    layers: list[str]


@dataclass(frozen=True, eq=False)
class Archive:
    """The content of the file: for every layer its values, states and present neurons."""

    model: str
    epochs: tuple[int, ...]
    layers: Mapping[str, Arrays]


def write_archive(path: str | Path, archive: Archive) -> None:
    """Write the file, whole or not at all; raises `StorageError`."""
    header = _Header(model=archive.model, epochs=list(archive.epochs), layers=list(archive.layers))
    members: dict[str, Any] = {"header": np.frombuffer(header.model_dump_json().encode(), np.uint8)}
    for index, arrays in enumerate(archive.layers.values()):
        members |= dict(zip(_names(index), arrays, strict=True))
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **members)


def read_archive(path: str | Path, limit_bytes: int) -> Archive:
    """Read and check the file.

    Raises `StorageError` where it is missing or cannot be read, `DataError` where it is something else, is damaged or
    takes more than `limit_bytes`.
    """
    source = Path(path)
    try:
        with source.open("rb") as file:
            _check_members(file_size=source.stat().st_size, archive=zipfile.ZipFile(file), limit_bytes=limit_bytes)
            file.seek(0)
            with np.load(file, allow_pickle=False) as members:
                return _checked(members)
    except FileNotFoundError as missing:
        raise StorageError(f"There is no file {source} to read a history from.", hint="Check the path.") from missing
    except ValidationError as error:
        first = error.errors()[0]
        raise _no_history(source, f"{'.'.join(map(str, first['loc'])) or 'header'}: {first['msg']}") from error
    except _DAMAGED as error:
        raise _no_history(source, str(error.args[0]) if error.args else type(error).__name__) from error
    except OSError as failure:
        reason = failure.strerror or str(failure)
        raise StorageError(f"Cannot read a history from {source}: {reason}.", hint="Check the path.") from failure


def _check_members(file_size: int, archive: zipfile.ZipFile, limit_bytes: int) -> None:
    """Arrays are stored as they are: nothing in the file may be larger than the file, or than the limit."""
    for member in archive.infolist():
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise ValueError(f"its member {member.filename!r} is compressed or encrypted")
    total = sum(member.file_size for member in archive.infolist())
    if total > file_size:
        raise ValueError(f"its members claim {total} bytes, the file has {file_size}")
    if total > limit_bytes + _OVERHEAD:
        raise ValueError(f"it takes {total / 1e6:.1f} MB, and limit_bytes is {limit_bytes / 1e6:.1f} MB")


def _checked(members: NpzFile) -> Archive:
    header = _Header.model_validate_json(_array(members, "header", np.uint8, None).tobytes())
    if any(one >= other for one, other in zip(header.epochs, header.epochs[1:], strict=False)):
        raise ValueError("its epochs are not in order")
    if len(set(header.layers)) < len(header.layers):
        raise ValueError("it names a layer twice")
    expected = {"header"}.union(*(_names(index) for index in range(len(header.layers))))
    if set(members.files) != expected:
        raise ValueError(f"its members are not those of its layers: {sorted(set(members.files) ^ expected)[:3]}")
    layers = {name: _layer(members, index, len(header.epochs)) for index, name in enumerate(header.layers)}
    return Archive(header.model, tuple(header.epochs), layers)


def _layer(members: NpzFile, index: int, epochs: int) -> Arrays:
    values_name, state_name, present_name = _names(index)
    present = _array(members, present_name, np.bool_, None)
    values = _array(members, values_name, np.float32, (epochs, len(STATISTICS), len(present)))
    state = _array(members, state_name, np.uint8, (epochs, len(present)))
    if (state > 3).any():
        raise ValueError(f"{state_name} holds {state.max()}, which is no state")
    seen = (state == 1) | (state == 2)
    numbers = np.isfinite(values)
    if (numbers != seen[:, None, :]).any() or (values[numbers] < 0).any():
        raise ValueError(f"{values_name} does not fit {state_name}: neurons that were seen have numbers, from 0 up")
    if (present & (state == 3)).any():
        raise ValueError(f"{present_name} names neurons that were gone before")
    return values, state, present


def _array(members: NpzFile, name: str, dtype: type[Element], shape: tuple[int, ...] | None) -> NDArray[Element]:
    """A member of exactly this type and shape; None stands for any number of elements in one dimension."""
    array: NDArray[Element] = np.asarray(members[name])
    if array.dtype != dtype or array.shape != (shape or (array.size,)):
        raise ValueError(f"{name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape or '(n,)'}")
    return array


def _names(index: int) -> tuple[str, str, str]:
    return f"values_{index}", f"state_{index}", f"present_{index}"


def _no_history(source: Path, reason: str) -> DataError:
    return DataError(f"'{source}' is no history of neurons: {reason}.", hint="Write it with NeuronHistory.save.")
