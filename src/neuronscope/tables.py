"""Rows of numbers as a file that other tools read: JSON, CSV, Parquet or NPZ, by the end of its name."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tracker.errors import ConfigError
from tracker.extras import require
from tracker.files import atomic_path, write_bytes, write_json, write_text

FORMATS = ("json", "csv", "parquet", "npz")

Row = Mapping[str, Any]


def write_table(path: str | Path, rows: Sequence[Row], about: Mapping[str, Any] | None = None) -> Path:
    """Write rows, whole or not at all.

    Args:
        path: ends in .json, .csv, .parquet or .npz. JSON holds `about` and then `rows`; the others the columns alone,
            nested ones as `outer.inner`.
        rows: plain data. A column of CSV is empty where a row has no value; in NPZ it is NaN, or an empty text.

    Raises:
        ConfigError: another end.
        MissingExtraError: Parquet without pyarrow.
        StorageError: the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise ConfigError(f"'{path.name}' is of no known format.", hint=f"Let it end in one of: {', '.join(FORMATS)}.")
    if kind == "json":
        write_json(path, {**(about or {}), "rows": [dict(row) for row in rows]})
        return path
    columns = columns_of(rows)
    if kind == "csv":
        write_text(path, _csv(columns))
    elif kind == "parquet":
        arrow, parquet = require("pyarrow", "parquet"), require("pyarrow.parquet", "parquet")
        with atomic_path(path) as temporary:
            parquet.write_table(arrow.table(columns), temporary)
    else:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{name: _array(values) for name, values in columns.items()})  # type: ignore[arg-type]
        write_bytes(path, buffer.getvalue())
    return path


def columns_of(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The values of every column, None where a row has none; nested mappings become columns of their own."""
    flat = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    return {name: [row.get(name) for row in flat] for name in names}


def _flat(row: Row, before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = str(value) if isinstance(value, list | tuple) else value
    return found


def _csv(columns: Mapping[str, Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _array(values: Sequence[Any]) -> np.ndarray[Any, np.dtype[Any]]:
    if any(isinstance(value, str) for value in values):
        return np.array(["" if value is None else str(value) for value in values])
    if any(value is None for value in values):
        return np.array([np.nan if value is None else float(value) for value in values])
    return np.array(values)
