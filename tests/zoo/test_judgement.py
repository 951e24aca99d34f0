"""What counts as a miss, and what the other library's results are called."""

from typing import Any

import pytest
from benchmarks.zoo.judgement import miss, outcome, seconds, speed, summary

GOOD: dict[str, Any] = {
    "tool": "ours",
    "stage": "done",
    "exact": {"attention": 2},
    "inexact": {},
    "frozen": {"is the model's output": 1, "is folded": 2},
    "notes": {},
    "error": 1e-16,
    "tolerance": 1e-10,
    "moved": 0.5,
    "share": 0.7,
    "share_beside_residual": 0.9,
    "attention": True,
    "discover_seconds": 0.5,
    "plan_seconds": 0.25,
    "slice_seconds": 0.25,
}
RIVAL: dict[str, Any] = {"tool": "rival", "stage": "done", "result": "ok", "seconds": 3.0, "difference": 1e-15}


@pytest.mark.parametrize(
    ("change", "what", "why"),
    [
        ({}, "works", None),
        ({"error": 1e-3}, "another function", "1e-03"),
        ({"error": 2e-9}, "works", "differ in rounding by 2e-09"),
        ({"error": float("inf")}, "another function", "inf"),
        ({"error": 1e-8, "tolerance": 1e-7, "cast": "casts to float32 in Norm"}, "works", None),
        ({"exact": {}}, "nothing pruned", "is folded"),
        ({"moved": 0.0}, "works", "changed nothing"),
        ({"share_beside_residual": 0.5}, "works", "50%"),
        ({"failure": "hang", "stage": "discover", "why": "over the time limit"}, "hangs", "discover"),
        ({"failure": "error", "why": "ValueError: no"}, "crashes", "ValueError"),
    ],
)
def test_ours(change: dict[str, Any], what: str, why: str | None) -> None:
    record = {**GOOD, **change}
    assert outcome(record) == what
    found = miss(record)
    assert found is None if why is None else why in (found or "")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({}, "works"),
        ({"difference": 0.3}, "another function"),
        ({"difference": None}, "works"),
        ({"difference": float("inf")}, "works"),
        ({"result": "nothing pruned"}, "nothing pruned"),
        ({"result": "forward fails", "failure": "error"}, "fails in forward"),
        ({"result": "crash", "failure": "error"}, "crashes"),
        ({"result": "crash", "failure": "hang", "stage": "prune"}, "hangs"),
        ({"failure": "hang", "stage": "judge"}, "works"),
    ],
)
def test_the_rivals(change: dict[str, Any], what: str) -> None:
    assert outcome({**RIVAL, **change}) == what


def test_speed_is_compared_where_both_came_through() -> None:
    assert seconds(GOOD) == 1.0
    assert speed(GOOD, RIVAL) == 3.0
    assert speed(GOOD, None) is None
    assert speed({**GOOD, "slice_seconds": None}, RIVAL) is None


def test_a_summary_counts() -> None:
    numbers = summary([(GOOD, RIVAL), ({**GOOD, "exact": {"mlp": 1}, "error": 1.0}, {**RIVAL, "seconds": 0.5})])
    assert (numbers["models"], numbers["exact"], numbers["silent errors"]) == (2, 1, 1)
    assert (numbers["with attention"], numbers["heads removable"]) == (2, 1)
    assert (numbers["median speed"], numbers["slower"], numbers["compared"]) == (1.75, 1, 2)
    assert numbers["rival's outcomes"]["works"] == 2
