"""Pictures of the weights: how large they are in each layer, and which patterns they have."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neuronscope.weights import LOW, VERY_LOW, WeightAnalyzer
from tracker.figures import BLUE, GREY, VERMILION, label, new_figure, saved

_MOST_MATRICES = 60


def plot_weights(analyzer: WeightAnalyzer, path: str | Path) -> Path:
    """Two panels as PNG: the neurons' mean |w| layer by layer with the bands, and what the matrices look like.

    The first shows the middle half, the middle nine tenths and the extremes of each layer. The second shows for every
    matrix how unevenly its magnitudes are spread (Gini), its effective rank as a share, and its zeros. Raises
    `MissingExtraError` without matplotlib.
    """
    columns = analyzer.neuron_columns()
    layers, magnitudes = columns["layer_index"], columns["weight_magnitude"]
    numbers = np.unique(layers)
    patterns = analyzer.get_sparsity_patterns()
    matrices = [entry for entry in analyzer.extract_weight_stats() if entry.layer_name in patterns][:_MOST_MATRICES]
    figure = new_figure(9, 3.2 + 0.19 * len(matrices))
    upper, lower = figure.subplots(2, 1, height_ratios=[3, max(1.5, 0.19 * len(matrices))])
    shares = np.array([np.quantile(magnitudes[layers == n], [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]) for n in numbers])
    upper.fill_between(
        numbers, shares[:, 1], shares[:, 5], color=BLUE, alpha=0.18, linewidth=0, label="9 of 10 neurons"
    )
    upper.fill_between(numbers, shares[:, 2], shares[:, 4], color=BLUE, alpha=0.35, linewidth=0, label="half of them")
    upper.plot(numbers, shares[:, 3], color=BLUE, marker="o", markersize=3, label="median")
    for extreme in (0, 6):
        upper.plot(numbers, shares[:, extreme], color=GREY, linewidth=0.8, label="extremes" if extreme else None)
    for at, called in ((VERY_LOW, "very low"), (LOW, "low")):
        upper.axhline(at, color=VERMILION, linewidth=0.8, linestyle=":")
        upper.annotate(
            called, (1, at), xycoords=("axes fraction", "data"), ha="right", va="top", color=VERMILION, fontsize=8
        )
    upper.set(
        xlabel="layer", ylabel="mean |w| of a neuron", xticks=numbers[:: max(1, len(numbers) // 16)], ylim=(0, None)
    )
    upper.legend(frameon=False, fontsize=8, ncols=4)
    rows = np.arange(len(matrices))
    for offset, (name, values, colour) in enumerate(
        (
            ("Gini", [patterns[entry.layer_name].gini for entry in matrices], BLUE),
            ("zeros", [entry.sparsity for entry in matrices], VERMILION),
        )
    ):
        lower.barh(rows + 0.36 * offset - 0.18, values, 0.34, color=colour, label=name)
    lower.set(yticks=rows, yticklabels=[label(entry.layer_name) for entry in matrices], xlim=(0, 1), xlabel="share")
    lower.tick_params(axis="y", labelsize=7)
    lower.invert_yaxis()
    lower.legend(frameon=False, fontsize=8)
    return saved(figure, path)
