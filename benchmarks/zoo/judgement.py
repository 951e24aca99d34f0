"""What the measurements mean: what works, what is a miss and why, and how the other library did."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

Record = dict[str, Any]

ENOUGH = 0.8
TARGETS = {"torchvision": 0.98, "timm": 0.97, "transformers": 1.0}
HEADS_TARGET = 0.9
SPEED_TARGET = 3.0
WRONG = 1e-6  # relative; in float64, where rounding is 1e-13

OUTCOMES = ("works", "another function", "nothing pruned", "fails in forward", "crashes", "hangs")


def outcome(record: Record) -> str:
    """One of `OUTCOMES`, for either tool."""
    if record.get("failure") == "hang" and record["stage"] != "judge":
        return "hangs"
    if record["tool"] == "rival":
        return _rival_outcome(record)
    if record.get("failure") or record.get("error") is None:
        return "crashes"
    if not record["exact"]:
        return "nothing pruned"
    # What is wrong differs by much more than rounding, and this is between the two.
    return "works" if record["error"] <= record["tolerance"] ** 0.5 else "another function"


def exact(record: Record) -> bool:
    """Whether ours found groups, and is the masked model to the last digits."""
    return outcome(record) == "works" and bool(record["error"] <= record["tolerance"])


def _rival_outcome(record: Record) -> str:
    if record["result"] == "ok" and (record.get("difference") or 0.0) > WRONG and record["difference"] != float("inf"):
        return "another function"
    words = {"ok": "works", "crash": "crashes", "forward fails": "fails in forward", "nothing pruned": "nothing pruned"}
    return words[record["result"]]


def miss(record: Record) -> str | None:
    """Why a model of ours counts as a miss; None where it does not."""
    what = outcome(record)
    if what in ("crashes", "hangs"):
        return f"{what} ({record.get('stage')}): {record.get('why', 'no answer')}"
    if what == "nothing pruned":
        return f"no exact group; {_reasons(record)}"
    if not exact(record):
        how = "differ" if what == "another function" else "differ in rounding"
        return f"sliced and masked {how} by {record['error']:.0e} ({record.get('cast') or 'no cast'})"
    if record["moved"] == 0.0:
        return "the removal changed nothing, so it proves nothing"
    if record["share_beside_residual"] < ENOUGH:
        return f"only {record['share_beside_residual']:.0%} of the parameters are prunable; {_reasons(record)}"
    return None


def _reasons(record: Record, most: int = 2) -> str:
    found = [reason for reason in record["frozen"] if "model's output" not in reason]
    return "; ".join([*found, *record["notes"]][:most]) or "no reason given"


def seconds(record: Record) -> float | None:
    """Processor seconds from the model to the smaller model; None where it did not get there."""
    if record["tool"] == "rival":
        return record.get("seconds")
    parts = [record.get(f"{part}_seconds") for part in ("discover", "plan", "slice")]
    return None if None in parts else sum(parts)  # type: ignore[arg-type]


def speed(ours: Record, rival: Record | None) -> float | None:
    """How many times faster ours was, where both came through."""
    mine, other = seconds(ours), seconds(rival) if rival else None
    return other / mine if mine and other else None


def summary(pairs: Iterable[tuple[Record, Record | None]]) -> dict[str, Any]:
    """The numbers of some entries: (ours, the rival's) each."""
    rows = list(pairs)
    ours = [mine for mine, _ in rows]
    others = [other for _, other in rows if other]
    attending = [mine for mine in ours if mine.get("attention")]
    speeds = [ratio for mine, other in rows if (ratio := speed(mine, other)) is not None]
    return {
        "models": len(rows),
        "without a miss": sum(miss(mine) is None for mine in ours),
        "exact": sum(exact(mine) for mine in ours),
        "silent errors": sum(outcome(mine) == "another function" for mine in ours),
        "hangs": sum(outcome(mine) == "hangs" for mine in ours),
        "with attention": len(attending),
        "heads removable": sum("attention" in mine.get("exact", {}) for mine in attending),
        "median share": median([mine["share"] for mine in ours if "share" in mine] or [0.0]),
        "median speed": median(speeds) if speeds else None,
        "compared": len(speeds),
        "slower": sum(ratio < 1.0 for ratio in speeds),
        "outcomes": {what: sum(outcome(mine) == what for mine in ours) for what in OUTCOMES},
        "rival's outcomes": {what: sum(outcome(other) == what for other in others) for what in OUTCOMES},
        "rival's models": len(others),
    }
