"""The results as a picture: what becomes of the models of every library, and how long it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.zoo.judgement import OUTCOMES, Record, outcome, seconds

# Okabe and Ito's colours, which people who see few colours can tell apart.
_COLOURS = dict(zip(OUTCOMES, ("#009E73", "#D55E00", "#E69F00", "#F0E442", "#56B4E9", "#333333"), strict=True))
_MARKS = {
    "plain": ("#0072B2", "o"),
    "transformers": ("#D55E00", "s"),
    "torchvision": ("#009E73", "^"),
    "timm": ("#CC79A7", "D"),
}


def draw(pairs: Mapping[str, Sequence[tuple[Record, Record | None]]], path: Path) -> None:
    """Write the picture as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.6), layout="constrained", facecolor="white")
    bars, dots = figure.subplots(1, 2, width_ratios=(1.35, 1))
    _draw_outcomes(bars, pairs)
    _draw_seconds(dots, pairs)
    figure.savefig(path, dpi=110)


def _draw_outcomes(axes: Any, pairs: Mapping[str, Sequence[tuple[Record, Record | None]]]) -> None:
    labels, height = [], 0.0
    for library, found in pairs.items():
        for who, records in (
            ("NeuronScope", [ours for ours, _ in found]),
            ("Torch-Pruning", [rival for _, rival in found if rival]),
        ):
            left = 0.0
            for what in OUTCOMES:
                count = sum(outcome(record) == what for record in records)
                share = 100 * count / max(1, len(records))
                axes.barh(height, share, left=left, height=0.8, color=_COLOURS[what], edgecolor="white", linewidth=0.8)
                if share >= 4:
                    ink = "white" if what in ("works", "another function", "hangs") else "black"
                    axes.text(left + share / 2, height, str(count), ha="center", va="center", color=ink, fontsize=9)
                left += share
            labels.append((height, who))
            height -= 1
        axes.text(-0.5, height + 2.55, f"{library}, {len(found)} models", fontsize=10, fontweight="bold", va="bottom")
        height -= 0.75
    axes.set_yticks([y for y, _ in labels], [who for _, who in labels])
    axes.set_xlim(0, 100)
    axes.set_ylim(height + 0.9, 1.25)
    axes.set_xlabel("% of the models; numbers are models")
    axes.tick_params(left=False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    handles = [axes.barh(0, 0, color=_COLOURS[what]) for what in OUTCOMES]
    axes.legend(handles, OUTCOMES, loc="upper center", bbox_to_anchor=(0.45, -0.12), ncols=6, frameon=False, fontsize=9)
    axes.set_title("Half of every prunable group removed: what becomes of the model", fontsize=11, loc="left", pad=12)


def _draw_seconds(axes: Any, pairs: Mapping[str, Sequence[tuple[Record, Record | None]]]) -> None:
    everything: list[float] = []
    for library, found in pairs.items():
        both = [(seconds(ours), seconds(rival)) for ours, rival in found if rival]
        points = [(mine, other) for mine, other in both if mine and other]
        if points:
            colour, mark = _MARKS[library]
            mine, other = zip(*points, strict=True)
            axes.scatter(other, mine, s=20, c=colour, marker=mark, alpha=0.7, linewidths=0, label=library)
            everything += [*mine, *other]
    axes.set_xscale("log")
    axes.set_yscale("log")
    if everything:
        axes.legend(loc="upper left", frameon=False, fontsize=9)
        low, high = min(everything) * 0.8, max(everything) * 1.25
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        for factor, text in ((1, "equal"), (3, "3 times faster"), (10, "10 times faster")):
            axes.plot([low, high], [low / factor, high / factor], color="#888888", linewidth=0.9, linestyle=(0, (4, 3)))
            axes.annotate(
                *(text, (high / 1.03, high / factor / 1.08)),
                ha="right",
                va="top",
                fontsize=8,
                color="#555555",
            )
    axes.set_xlabel("Torch-Pruning, processor seconds")
    axes.set_ylabel("NeuronScope, processor seconds")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title("From the model to the smaller model", fontsize=11, loc="left", pad=12)
