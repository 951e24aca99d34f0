"""The tensor files of a checkpoint, checked before it is believed: length, header, digest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pruner.manifest import MANIFEST, FileEntry, TensorEntry
from tracker.errors import CheckpointError, nearest

MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def check_header(path: Path, tensors: Mapping[str, TensorEntry]) -> None:
    """What a tensor file says it holds is what the manifest says, before a byte of it is allocated."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(
                f"{path}: expected a header of at most {min(size - 8, MAX_HEADER_BYTES)} bytes, found {length}.",
                hint="This is no safetensors file, or it was cut off.",
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
        found = {name: (entry["dtype"], entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is malformed: {error}.", hint="Get the checkpoint again.") from error
    expected = {name: (entry.dtype, entry.shape) for name, entry in tensors.items()}
    check_same_names(path, set(expected), set(found), "the manifest", "the file")
    for name, (dtype, shape) in expected.items():
        if found[name] != (dtype, shape):
            raise CheckpointError(
                f"{path}: '{name}': expected {dtype} {shape} as in {MANIFEST}, found {str(found[name])[:100]}.",
                hint="The two files are not of one checkpoint.",
            )
        if dtype not in DTYPES:
            raise CheckpointError(f"{path}: '{name}' has the unknown type {dtype}.", hint=f"Known: {list(DTYPES)}.")
    payload = sum(math.prod(shape) * DTYPES[dtype].itemsize for dtype, shape in expected.values())
    if 8 + length + payload != size:
        raise CheckpointError(
            f"{path}: expected {payload} bytes of tensors for these shapes, found {size - 8 - length}.",
            hint="Get the checkpoint again.",
        )


def read_tensors(path: Path, file: FileEntry, expected: Mapping[str, TensorEntry]) -> dict[str, Tensor]:
    """The tensors of a file whose header was checked; raises `CheckpointError` where they are not the manifest's."""
    digest = sha256(path)
    if digest != file.sha256:
        raise CheckpointError(
            f"{path}: expected SHA-256 {file.sha256}, found {digest}: the file was changed or damaged.",
            hint="Get the checkpoint again.",
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", hint="Get the checkpoint again.") from error
    for name, entry in expected.items():
        value = tensors.get(name)
        if value is None or list(value.shape) != entry.shape or value.dtype != DTYPES[entry.dtype]:
            raise CheckpointError(
                f"{path}: '{name}': expected {entry.dtype} {entry.shape}, found something else than its header said.",
                hint="Get the checkpoint again.",
            )
    return tensors


def check_same_names(path: Path, expected: set[str], found: set[str], whose: str, where: str) -> None:
    """Raise `CheckpointError` unless both sets of names are the same; `whose` names the first, `where` the second."""
    if missing := sorted(expected - found):
        raise CheckpointError(
            f"{path}: '{missing[0][:100]}' of {whose} is not in {where} ({len(missing)} are missing)."
            f"{nearest(missing[0], found - expected)}",
            hint="The checkpoint is not of this model, or not whole.",
        )
    if extra := sorted(found - expected):
        raise CheckpointError(
            f"{path}: '{extra[0][:100]}' in {where} is unknown to {whose} ({len(extra)} are).",
            hint="The checkpoint is not of this model, or not whole.",
        )


def sha256(path: Path) -> str:
    """Digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
