"""Pictures of the neurons' activity: a heat map of all layers, and a histogram of each. PNG files.

matplotlib comes with the extra "plot".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tracker.activity import ActivityStats, GroupActivity
from tracker.errors import DataError
from tracker.figures import BLUE, GREY, SEQUENTIAL, VERMILION, label, new_figure, saved

Statistic = Literal["firing_frequency", "mean_magnitude", "mean", "variance", "minimum", "maximum", "saturation"]

_TITLES: Mapping[str, str] = {
    "firing_frequency": "Firing frequency",
    "mean_magnitude": "Mean magnitude",
    "mean": "Mean activation",
    "variance": "Variance",
    "minimum": "Smallest activation",
    "maximum": "Largest activation",
    "saturation": "Saturation",
}
_BOUNDED = ("firing_frequency", "saturation")

_COLUMNS = 256
_BINS = 40
_HISTOGRAMS_ACROSS = 3
_MOST_HISTOGRAMS = 48


def plot_heatmap(stats: ActivityStats, path: str | Path, statistic: Statistic = "firing_frequency") -> Path:
    """One row a layer, its neurons from the lowest value to the highest; dead neurons are counted at the side.

    Rows are stretched to the same width: a layer of more than 256 neurons is shown in 256 bins (the mean of each). What
    has no bounds is shown relative to the layer's largest value, since scales differ between layers.

    Raises `MissingExtraError` without matplotlib, `DataError` where nothing was tracked or the statistic is unknown,
    `StorageError` where the file cannot be written.
    """
    _check(stats, statistic)
    rows = np.stack([_stretched(np.sort(_values(group, statistic)), statistic) for group in stats.values()])
    names = list(stats)
    figure = new_figure(9.0, 1.5 + 0.28 * len(names))
    axes = figure.add_subplot()
    signed = bool((rows < 0).any())
    low, high = (0.0, 1.0) if not signed else (-1.0, 1.0)
    image = axes.imshow(rows, aspect="auto", interpolation="nearest", cmap=SEQUENTIAL, vmin=low, vmax=high)
    axes.set_yticks(range(len(names)), [label(name) for name in names], fontsize=8)
    axes.set_xticks([0, rows.shape[1] - 1], ["lowest", "highest"], fontsize=8)
    axes.get_xticklabels()[0].set_horizontalalignment("left")
    axes.get_xticklabels()[1].set_horizontalalignment("right")
    axes.set_xlabel("neurons of each layer, sorted", fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.hlines(np.arange(1, len(names)) - 0.5, -0.5, rows.shape[1] - 0.5, color="white", linewidth=2)
    for index, group in enumerate(stats.values()):
        dead = int(group.dead.sum())
        count = f"{group.size} neurons" if not dead else f"{dead} of {group.size} dead"
        axes.annotate(
            count,
            (1.0, index),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=VERMILION if dead else GREY,
        )
    unit = "" if statistic in _BOUNDED else ", share of the layer's largest"
    bar = figure.colorbar(image, ax=axes, pad=0.12, fraction=0.03, aspect=max(8, 2.2 * len(names)))
    bar.ax.tick_params(labelsize=8, length=0)
    bar.outline.set_visible(False)
    axes.set_title(f"{_TITLES[statistic]} of {stats.model}'s neurons{unit}", fontsize=11, loc="left", pad=10)
    return saved(figure, path)


def plot_histograms(stats: ActivityStats, path: str | Path, statistic: Statistic = "firing_frequency") -> Path:
    """How the neurons of each layer are spread over the values of a statistic; the dead ones are set apart by colour.

    At most 48 layers are shown, evenly chosen from all; the title says so. Raises as `plot_heatmap` does.
    """
    _check(stats, statistic)
    shown = list(stats)
    if len(shown) > _MOST_HISTOGRAMS:
        shown = [shown[i] for i in np.linspace(0, len(shown) - 1, _MOST_HISTOGRAMS).round().astype(int)]
    across = min(_HISTOGRAMS_ACROSS, len(shown))
    down = math.ceil(len(shown) / across)
    figure = new_figure(3.1 * across + 0.6, 1.9 * down + 0.7)
    grid = figure.subplots(down, across, squeeze=False)
    for axes, name in zip(grid.flat, shown, strict=False):
        _histogram(axes, stats[name], statistic)
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_axis_off()
    for row in grid:
        row[0].set_ylabel("neurons", fontsize=8)
    some = f" ({len(shown)} of {len(stats)} layers)" if len(shown) < len(stats) else ""
    figure.suptitle(f"{_TITLES[statistic]} of {stats.model}'s neurons{some}", fontsize=11, x=0.01, ha="left")
    return saved(figure, path)


def _histogram(axes: Any, group: GroupActivity, statistic: Statistic) -> None:
    values = _values(group, statistic)
    span = (0.0, 1.0) if statistic in _BOUNDED else _span(values)
    dead = group.dead
    axes.hist(
        [values[~dead], values[dead]],
        bins=min(_BINS, max(10, group.size // 2)),
        range=span,
        stacked=True,
        color=[BLUE, VERMILION],
    )
    count = int(dead.sum())
    axes.set_title(label(group.name), fontsize=8, loc="left")
    axes.annotate(
        f"{count} of {group.size} dead" if count else f"{group.size} neurons",
        (1, 1.02),
        xycoords="axes fraction",
        ha="right",
        va="bottom",
        fontsize=7,
        color=VERMILION if count else GREY,
    )
    axes.set_xlim(*span)
    axes.yaxis.get_major_locator().set_params(integer=True, nbins=4)
    axes.xaxis.get_major_locator().set_params(nbins=5)
    axes.tick_params(labelsize=7, length=2, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def _check(stats: ActivityStats, statistic: str) -> None:
    if statistic not in get_args(Statistic):
        raise DataError(f"There is no statistic '{statistic}'.", hint=f"Choose from {', '.join(get_args(Statistic))}.")
    if not stats:
        raise DataError(f"No layer of {stats.model} was tracked.", hint="Observe the model first.")


def _values(group: GroupActivity, statistic: Statistic) -> NDArray[np.float64]:
    values: NDArray[np.float64] = getattr(group, statistic)
    return values


def _stretched(values: NDArray[np.float64], statistic: Statistic) -> NDArray[np.float64]:
    """Any number of values as 256: repeated, or the means of equal bins."""
    if len(values) > _COLUMNS:
        edges = np.linspace(0, len(values), _COLUMNS + 1).round().astype(int)
        values = np.add.reduceat(values, edges[:-1]) / np.diff(edges)
    else:
        values = values[np.arange(_COLUMNS) * len(values) // _COLUMNS]
    largest = float(np.abs(values).max())
    return values if statistic in _BOUNDED or largest == 0 else values / largest


def _span(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    return (low, high) if high > low else (0.0, 1.0)
