"""The table of all cells, and the picture: excess loss by share removed, for every subject."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.quality import store

MARKDOWN = store.RESULTS.with_suffix(".md")
PICTURE = store.RESULTS.with_suffix(".png")
UNITS = {
    "stdlib-gpt": "nats a token",
    "stdlib-llama": "nats a token",
    "digits-vit": "nats an image",
    "digits-cnn": "nats an image",
    "minilm": "1 − cosine",
    "stdlib-gpt-large": "nats a token",
}

Key = tuple[str, str, float]


def write() -> str:
    """Write the files; returns the table."""
    cells: dict[Key, dict[str, list[dict[str, Any]]]] = {}
    for cell, row in store.known().items():
        cells.setdefault((cell.subject, cell.kind, cell.ratio), {}).setdefault(cell.method, []).append(row)
    text = "\n\n".join(_section(key, methods) for key, methods in sorted(cells.items()))
    head = (
        "# Quality kept\n\n`make bench-quality`. Excess: loss of the pruned model minus that of the dense one on data "
        "that nothing was calibrated on, mean ± standard deviation over seeds (calibration samples). Nothing is "
        "trained on labels. Calibrated elsewhere: on NumPy's sources or their documentation, on mirrored digits. "
        "Accuracy: next tokens, images, or nearest neighbours found.\n\n"
    )
    MARKDOWN.write_text(head + text + "\n", encoding="utf-8")
    _draw(cells)
    return text


def _section(key: Key, methods: Mapping[str, list[dict[str, Any]]]) -> str:
    subject, kind, ratio = key
    dense = next((r["dense"] for rows in methods.values() for r in rows if "dense" in r), {"loss": 0, "accuracy": 0})
    machines = {str(r["machine"]) for rows in methods.values() for r in rows if "machine" in r}
    lines = [
        f"## {subject}: {ratio:.0%} of {kind} neurons",
        "",
        f"Machine: {'; '.join(sorted(machines))}. Dense: loss {dense['loss']:.4f}, accuracy {dense['accuracy']:.1%}. "
        f"Unit: {UNITS.get(subject, '')}.",
        "",
        "| method | excess | accuracy | parameters left | seconds | seeds |",
        "|---|---|---|---|---|---|",
    ]
    ordered = sorted(methods.items(), key=lambda item: (_mean(item[1]) is None, _mean(item[1]) or 0.0))
    for name, rows in ordered:
        good = [row for row in rows if "excess" in row]
        if not good:
            lines.append(f"| {name} | {rows[0].get('error', '')} | | | | |")
            continue
        values = [row["excess"] for row in good]
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        own = [statistics.mean(row[what] for row in good) for what in ("accuracy", "parameters", "seconds")]
        bold = "**" if name.startswith("ours") else ""
        lines.append(
            f"| {bold}{name}{bold} | {statistics.mean(values):.4f}{spread} | {own[0]:.1%} | {own[1]:.1%} | "
            f"{own[2]:.0f} | {len(good)} |"
        )
    return "\n".join(lines)


def _mean(rows: list[dict[str, Any]]) -> float | None:
    values = [row["excess"] for row in rows if "excess" in row]
    return statistics.mean(values) if values else None


def _draw(cells: Mapping[Key, Mapping[str, list[dict[str, Any]]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = (
        "producer",
        "taylor",
        "wanda",
        "flap",
        "modegpt-I",
        "obs + least squares",
        "osscar",
        "ours low",
        "ours default",
    )
    subjects = sorted({(subject, kind) for subject, kind, _ in cells if kind in ("mlp", "channel")})
    subjects = [pair for pair in subjects if sum(key[:2] == pair for key in cells) > 1]
    if not subjects:
        return
    figure, axes = pyplot.subplots(1, len(subjects), figsize=(3.6 * len(subjects), 4.4), squeeze=False)
    colours = pyplot.get_cmap("tab10")
    for axis, (subject, kind) in zip(axes[0], subjects, strict=True):
        for number, name in enumerate(shown):
            points = sorted(
                (ratio, mean)
                for (s, k, ratio), methods in cells.items()
                if (s, k) == (subject, kind) and name in methods and (mean := _mean(methods[name])) is not None
            )
            ours = name.startswith("ours")
            if not points:
                continue
            axis.plot(
                [ratio * 100 for ratio, _ in points],
                [max(mean, 1e-5) for _, mean in points],
                marker="o",
                markersize=4,
                linewidth=2.4 if ours else 1.1,
                color="black" if name == "ours default" else "dimgray" if ours else colours(number),
                linestyle="--" if name == "ours low" else "-",
                label=name,
            )
        axis.set_yscale("log")
        axis.set_title(f"{subject} ({kind})", fontsize=10)
        axis.set_xlabel("neurons removed, %")
        axis.set_ylabel(f"excess loss, {UNITS.get(subject, '')}")
        axis.grid(alpha=0.3)
    together = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    handles, labels = list(together.values()), list(together)
    figure.legend(handles, labels, loc="lower center", ncols=5, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(PICTURE, dpi=130)
    pyplot.close(figure)
