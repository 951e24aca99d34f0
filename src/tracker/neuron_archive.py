"""The file of a neuron history: safetensors, read without pickle and checked before it is believed.

The metadata holds `history`, JSON. For layer i of it there are `values_i` float32 (epochs, 3, neurons), `state_i` uint8
(epochs, neurons) and `present_i` bool (neurons,). Layers are numbered, so that no name of one can clash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tracker.errors import DataError, StorageError
from tracker.files import atomic_path

STATISTICS = ("firing_frequency", "mean_magnitude", "variance")
# Room for the header.
_OVERHEAD = 2**20

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
    arrays = {
        name: np.ascontiguousarray(array)
        for index, layer in enumerate(archive.layers.values())
        for name, array in zip(_names(index), layer, strict=True)
    }
    with atomic_path(path) as temporary:
        save_file(arrays, temporary, metadata={"history": header.model_dump_json()})


def read_archive(path: str | Path, limit_bytes: int) -> Archive:
    """Read and check the file.

    Raises `StorageError` where it is missing or cannot be read, `DataError` where it is something else, is damaged or
    takes more than `limit_bytes`.
    """
    source = Path(path)
    try:
        size = source.stat().st_size
        if size > limit_bytes + _OVERHEAD:
            raise ValueError(f"it takes {size / 1e6:.1f} MB, and limit_bytes is {limit_bytes / 1e6:.1f} MB")
        with safe_open(source, framework="numpy") as file:
            return _checked(file)
    except FileNotFoundError as missing:
        raise StorageError(f"There is no file {source} to read a history from.", hint="Check the path.") from missing
    except ValidationError as error:
        first = error.errors()[0]
        raise _no_history(source, f"{'.'.join(map(str, first['loc'])) or 'header'}: {first['msg']}") from error
    except (SafetensorError, ValueError) as error:
        raise _no_history(source, str(error)) from error
    except OSError as failure:
        reason = failure.strerror or str(failure)
        raise StorageError(f"Cannot read a history from {source}: {reason}.", hint="Check the path.") from failure


def _checked(file: Any) -> Archive:
    header = _Header.model_validate_json((file.metadata() or {}).get("history", ""))
    if any(one >= other for one, other in zip(header.epochs, header.epochs[1:], strict=False)):
        raise ValueError("its epochs are not in order")
    if len(set(header.layers)) < len(header.layers):
        raise ValueError("it names a layer twice")
    expected = {name for index in range(len(header.layers)) for name in _names(index)}
    if set(file.keys()) != expected:
        raise ValueError(f"its arrays are not those of its layers: {sorted(set(file.keys()) ^ expected)[:3]}")
    layers = {name: _layer(file, index, len(header.epochs)) for index, name in enumerate(header.layers)}
    return Archive(header.model, tuple(header.epochs), layers)


def _layer(file: Any, index: int, epochs: int) -> Arrays:
    values_name, state_name, present_name = _names(index)
    present = _array(file, present_name, np.bool_, None)
    values = _array(file, values_name, np.float32, (epochs, len(STATISTICS), len(present)))
    state = _array(file, state_name, np.uint8, (epochs, len(present)))
    if (state > 3).any():
        raise ValueError(f"{state_name} holds {state.max()}, which is no state")
    seen = (state == 1) | (state == 2)
    numbers = np.isfinite(values)
    if (numbers != seen[:, None, :]).any() or (values[numbers] < 0).any():
        raise ValueError(f"{values_name} does not fit {state_name}: neurons that were seen have numbers, from 0 up")
    if (present & (state == 3)).any():
        raise ValueError(f"{present_name} names neurons that were gone before")
    return values, state, present


def _array(file: Any, name: str, dtype: type[Element], shape: tuple[int, ...] | None) -> NDArray[Element]:
    """An array of exactly this type and shape; None stands for any number of elements in one dimension."""
    array: NDArray[Element] = file.get_tensor(name)
    if array.dtype != dtype or array.shape != (shape or (array.size,)):
        raise ValueError(f"{name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape or '(n,)'}")
    return array


def _names(index: int) -> tuple[str, str, str]:
    return f"values_{index}", f"state_{index}", f"present_{index}"


def _no_history(source: Path, reason: str) -> DataError:
    return DataError(f"'{source}' is no history of neurons: {reason}.", hint="Write it with NeuronHistory.save.")
