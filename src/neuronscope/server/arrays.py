"""Arrays of numbers on their way through JSON."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

_DTYPES = {"float32": "<f4", "int64": "<i8"}


def encoded(values: np.ndarray[Any, Any]) -> dict[str, str]:
    """An array as plain data: floats of 4 bytes, integers of 8, little-endian, in base 64."""
    kind = "float32" if values.dtype.kind == "f" else "int64"
    data = np.ascontiguousarray(values.astype(_DTYPES[kind]))
    return {"dtype": kind, "data": base64.b64encode(data.tobytes()).decode()}


def decoded(value: Mapping[str, str]) -> np.ndarray[Any, Any]:
    """What `encoded` was given."""
    return np.frombuffer(base64.b64decode(value["data"]), dtype=_DTYPES[value["dtype"]])
