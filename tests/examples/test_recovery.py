import pytest
from examples.recovery import WAYS, run, table

pytest.importorskip("transformers")
pytest.importorskip("peft")


def test_every_way_brings_a_damaged_model_nearer() -> None:
    rows = run(3, 0.5, starts=["magnitude"], judged=1, length=64)
    (_, _, dense, _), (_, way, damaged, _), *trained = rows
    assert way == "not trained"
    assert [row[1] for row in trained] == list(WAYS)
    assert all(dense < loss < damaged and step for _, _, loss, step in trained)
    assert table(rows).row_count == 6
