"""The results as a table (Markdown), as data (JSON), and as a picture."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measuring import RESULTS, machine
from benchmarks.zoo.entries import LIBRARIES
from benchmarks.zoo.judgement import (
    HEADS_TARGET,
    SPEED_TARGET,
    TARGETS,
    WRONG,
    Record,
    miss,
    outcome,
    seconds,
    speed,
    summary,
)

Pair = tuple[Record, Record | None]

_NOTES = f"""
How it is measured. Every model is random (all parameters and buffers, norms and biases too) and gets a process of its
own and 30 seconds of processor time for each tool; nothing is tried twice. Seconds are processor seconds of one thread,
for a model never seen before; both tools have pruned a perceptron of two layers first, so that what is loaded once does
not count. Ours are those of `discover`, a magnitude plan of half of every exact group, and `prune_` without its proof
(discover + plan + slice). Memory is the peak beyond the model itself.

- **exact**: another random half of every exact group is removed from a fresh copy in float64, and every output is
  compared with the dense model in which hooks zero what the consumers of these neurons read; the error is
  max|a - b| / max|b|, and at most 1e-10, or the epsilon of a type that the model itself casts to, which is then named.
  A **silent error** is more than the square root of that; what lies between is rounding, and a miss.
- **share**: parameters that lie in exact groups by one of their dimensions, over all but embeddings and the output
  layer; in brackets the same without what belongs to nothing but the residual width. A model is a **miss** when it is
  not exact, hangs, or when the share in brackets is under 80 %.
- **heads**: an attention group is among the exact ones. A model has attention when a fused attention operator runs, or
  a softmax over a product of two activations; linear attention does not count.
- **Torch-Pruning**: `BasePruner` with `GroupMagnitudeImportance` and ratio 0.5, layers that write an output ignored,
  and all else as it comes. It *works* when parameters went and the model runs. *Another function*: in float64 it
  differs by more than {WRONG:.0e} from the dense model with the very channels zeroed that its dependency graph lists,
  counting only groups without layer norms or bare parameters (a smaller temperature of attention counts as another
  function, too); where there was no such group, or an output changed its shape, it has the benefit of the doubt.
"""


def write(records: Mapping[tuple[str, str], Record]) -> str:
    """`results/zoo.json`, `.md` and `.png`; returns the summary as text."""
    pairs = {
        library: [
            (record, records.get((key, "rival")))
            for (key, tool), record in sorted(records.items())
            if tool == "ours" and record["library"] == library
        ]
        for library in LIBRARIES
    }
    pairs = {library: found for library, found in pairs.items() if found}
    head = _summary(pairs)
    misses = [
        f"- `{ours['key']}`: {why}" for found in pairs.values() for ours, _ in found if (why := miss(ours)) is not None
    ]
    where = machine()
    kind = (
        f"Machine: {where['processor']}, {where['cores']} cores, one thread, torch {where['torch']}. {_versions(pairs)}"
    )
    parts = ["# The zoo", head, kind, _NOTES.strip(), "## Misses", "\n".join(misses) or "None."]
    for library, found in pairs.items():
        parts += [f"## {library}", _table(_COLUMNS, [_row(*pair) for pair in found])]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "zoo.md").write_text("\n\n".join(parts) + "\n")
    (RESULTS / "zoo.json").write_text(_json(pairs, where))
    from benchmarks.zoo.picture import draw

    draw(pairs, RESULTS / "zoo.png")
    return head


def _versions(pairs: Mapping[str, Sequence[Pair]]) -> str:
    """Which code was measured: it may have changed between two runs that together made the table."""
    counts = Counter(ours["version"] for found in pairs.values() for ours, _ in found)
    if len(counts) == 1:
        return f"Code measured: {next(iter(counts))}."
    rows = ", ".join(f"{count} rows {version}" for version, count in counts.most_common())
    return f"The code changed while the table was made: {rows}."


def _summary(pairs: Mapping[str, Sequence[Pair]]) -> str:
    columns = (
        *("library", "models", "exact", "without a miss (target)", "silent errors", "hangs"),
        *(f"heads removable (target {HEADS_TARGET:.0%})", f"speed, median (target {SPEED_TARGET:.0f}×)", "slower"),
        *("Torch-Pruning works", "another function", "nothing pruned", "fails in forward", "crashes", "hangs"),
    )
    rows = []
    everything = [pair for found in pairs.values() for pair in found]
    for library, found in [*pairs.items(), ("all", everything)]:
        numbers = summary(found)
        total, target = numbers["models"], TARGETS.get(library)
        wanted = f" ({target:.0%})" if target else ""
        rival = numbers["rival's outcomes"]
        rows.append(
            [
                *(library, str(total), _share(numbers["exact"], total)),
                f"{_share(numbers['without a miss'], total)}{wanted}",
                *(str(numbers["silent errors"]), str(numbers["hangs"])),
                _share(numbers["heads removable"], numbers["with attention"]),
                "" if numbers["median speed"] is None else f"{numbers['median speed']:.1f}×",
                f"{numbers['slower']} of {numbers['compared']}",
                *(
                    _share(count, numbers["rival's models"]) if what == "works" else str(count)
                    for what, count in rival.items()
                ),
            ]
        )
    return _table(columns, rows)


def _share(count: int, total: int) -> str:
    return f"{count}/{total} = {math.floor(1000 * count / total) / 10:g} %" if total else "0/0"


_COLUMNS = (
    *("model", "exact groups", "inexact", "frozen, because", "heads", "error", "parameters", "share", "seconds", "MiB"),
    *("Torch-Pruning", "its parameters", "its seconds", "its MiB"),
)


def _row(ours: Record, rival: Record | None) -> list[str]:
    reasons = [
        f"{count}× {reason}" for reason, count in ours.get("frozen", {}).items() if "model's output" not in reason
    ]
    other = rival or {}
    answer = outcome(rival) if rival else ""
    if answer == "another function":
        answer += f" ({other['difference']:.0e})"
    ratio = speed(ours, rival)
    return [
        ours["name"],
        _kinds(ours.get("exact", {})) or f"**{outcome(ours)}**",
        _kinds(ours.get("inexact", {})),
        "; ".join(reasons[:2]).replace("|", "\\|"),
        ("yes" if "attention" in ours.get("exact", {}) else "**no**") if ours.get("attention") else "",
        _error(ours),
        _from_to(ours),
        f"{ours['share']:.0%} ({ours['share_beside_residual']:.0%})" if "share" in ours else "",
        _seconds(ours),
        f"{ours['peak_mib']:.0f}" if "peak_mib" in ours else "",
        answer,
        _from_to(other) if answer not in ("crashes", "hangs") else "",
        (f"{other['seconds']:.2f}" + (f" ({ratio:.1f}×)" if ratio else "")) if "seconds" in other else "",
        f"{other['peak_mib']:.0f}" if "peak_mib" in other else "",
    ]


def _kinds(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _error(record: Record) -> str:
    if record.get("error") is None:
        return ""
    cast = f" ({record['cast']})" if record.get("cast") else ""
    return ("0" if record["error"] == 0 else f"{record['error']:.0e}") + cast


def _from_to(record: Record) -> str:
    if "parameters_after" not in record:
        return ""
    return f"{_short(record['parameters'])} → {_short(record['parameters_after'])}"


def _short(count: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def _seconds(record: Record) -> str:
    total = seconds(record)
    parts = [record.get(f"{part}_seconds") for part in ("discover", "plan", "slice")]
    return "" if total is None else f"{total:.2f} = " + " + ".join(f"{part:.2f}" for part in parts)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_LEFT_OUT = {"key", "tool", "version", "stage", "library", "name", "module", "given"}


def _json(pairs: Mapping[str, Sequence[Pair]], where: Mapping[str, Any]) -> str:
    """One line a model."""
    summaries = {library: summary(found) for library, found in pairs.items()}
    lines = []
    for library, found in pairs.items():
        for ours, rival in found:
            row = {key: ours[key] for key in ("name", "module", "given")} | {
                "library": library,
                "miss": miss(ours),
                "ours": {"outcome": outcome(ours), **_rounded(ours)},
                "rival": rival and {"outcome": outcome(rival), **_rounded(rival)},
            }
            lines.append(json.dumps(row))
    rows = ",\n".join(lines)
    return f'{{"machine": {json.dumps(where)},\n"summary": {json.dumps(summaries)},\n"models": [\n{rows}\n]}}\n'


def _rounded(record: Record) -> Record:
    kept = {key: value for key, value in record.items() if key not in _LEFT_OUT}
    floats = {key: float(f"{value:.3g}") for key, value in kept.items() if isinstance(value, float)}
    return {**kept, **{key: str(value) if math.isinf(value) else value for key, value in floats.items()}}
