import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuronscope.tables import write_table
from tracker.errors import ConfigError, MissingExtraError

ROWS: list[dict[str, Any]] = [
    {"layer": 0, "score": 0.5, "name": "a,b\n", "metrics": {"kl": 0.1, "loss": None}, "neurons": [[0, 1]]},
    {"layer": 1, "score": None, "name": "ü", "metrics": {"kl": 2.0, "loss": 1.5}, "neurons": []},
]


def test_every_format_holds_the_same(tmp_path: Path) -> None:
    said = json.loads(write_table(tmp_path / "t.json", ROWS, {"type": "impact"}).read_text())
    assert said == {"type": "impact", "rows": ROWS}
    with write_table(tmp_path / "t.csv", ROWS).open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert (first["name"], first["metrics.kl"], first["metrics.loss"]) == ("a,b\n", "0.1", "")
    assert second["score"] == ""
    arrays = np.load(write_table(tmp_path / "t.npz", ROWS))
    np.testing.assert_array_equal(arrays["score"], [0.5, np.nan])
    assert arrays["name"].tolist() == ["a,b\n", "ü"]
    assert arrays["layer"].tolist() == [0, 1]
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(write_table(tmp_path / "t.parquet", ROWS)).to_pydict()
    assert table["metrics.loss"] == [None, 1.5]
    assert table["neurons"] == ["[[0, 1]]", "[]"]


def test_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"'t\.xlsx' is of no known format"):
        write_table(tmp_path / "t.xlsx", ROWS)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"neuronscope\[parquet\]"):
        write_table(tmp_path / "t.parquet", ROWS)
    assert list(tmp_path.iterdir()) == []
