"""Pictures of a training: every neuron of every layer through the epochs, and how they spread, as an animation.

matplotlib comes with the extra "plot", and Pillow, which writes the animation, with matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tracker.errors import DataError
from tracker.extras import require
from tracker.figures import BLUE, GREY, SEQUENTIAL, VERMILION, label, new_figure, saved
from tracker.files import atomic_path
from tracker.history import History
from tracker.neuron_history import LayerHistory, NeuronHistory, State

# Vermilion is at least 24 (CIE 1976 ΔE) away from every colour of the map, also for people with any of the common
# colour vision deficiencies (Machado et al. 2009, at full severity). What is gone is paper.
_COLORS = {State.UNSEEN: "#D3D3D3", State.DEAD: VERMILION, State.GONE: "#FFFFFF"}
_WORDS = {State.DEAD: "dead", State.GONE: "removed", State.UNSEEN: "not seen"}
_EDGE = "#9A9A9A"

_ACROSS = 4
_MOST_PANELS = 48
_MOST_ROWS = 512
_MOST_HISTOGRAMS = 12
_MOST_FRAMES = 120
_NAME_LENGTH = 30
_BINS = 20
_FRAME_DPI = 100
_SECONDS = 12.0

Item = TypeVar("Item")


def plot_neuron_history(history: NeuronHistory, path: str | Path) -> Path:
    """One panel a layer: a row a neuron, a column a logged epoch, the colour its firing frequency. A PNG.

    Rows are sorted by when a neuron died for good, those that live last, then by how often it fired when last seen.
    So a layer that dies shows an edge that grows. What was removed is white. A layer of more than 512 neurons shows 512
    of its sorted rows, evenly chosen; at most 48 layers are shown, four abreast, and the title says so.

    Raises `MissingExtraError` without matplotlib, `DataError` where nothing was logged, `StorageError` where the file
    cannot be written.
    """
    names = _evenly(_layers(history), _MOST_PANELS)
    across = min(_ACROSS, len(names))
    down = math.ceil(len(names) / across)
    figure = new_figure(max(4.4, 2.5 * across + 1.1), 2.1 * down + 0.9)
    grid = figure.subplots(down, across, squeeze=False)
    panels = list(grid.flat)
    layers = [history.layer(name) for name in names]
    images = [_matrix(*panel) for panel in zip(panels, layers, _headings(names), strict=False)]
    _outer_labels(panels, len(names), across, "epoch", "neurons")
    bar = figure.colorbar(images[0], ax=panels, pad=0.02, fraction=0.08, aspect=16, shrink=max(0.15, 0.9 / down))
    bar.set_label("firing frequency", fontsize=8)
    bar.ax.tick_params(labelsize=7, length=0)
    bar.outline.set_visible(False)
    _legend(figure, {int(state) for layer in layers for state in np.unique(layer.state)})
    figure.suptitle(_title(history, names), fontsize=11, x=0.01, ha="left", parse_math=False)
    return saved(figure, path)


def animate_neuron_history(history: NeuronHistory, path: str | Path, losses: History | None = None) -> Path:
    """How the neurons of each layer spread over firing frequencies, epoch by epoch, above the loss. A GIF.

    At most 12 layers and 120 epochs are shown, evenly chosen, the first and the last among them; the title says how
    many layers. `losses` is the history of the epochs; where it is missing, or has no loss, there is no line.

    Raises as `plot_neuron_history` does, and `DataError` for a path that does not end in .gif.
    """
    if Path(path).suffix.lower() != ".gif":
        raise DataError(f"The animation is a GIF, and the path is '{path}'.", hint="Let the path end in .gif.")
    names = _evenly(_layers(history), _MOST_HISTOGRAMS)
    line = [(entry.epoch, entry.loss) for entry in losses.epochs if entry.loss is not None] if losses else []
    film = _Film(history, names, line)
    frames = _evenly(range(len(history.epochs)), _MOST_FRAMES)
    writer = require("matplotlib.animation", "plot").PillowWriter(fps=min(4.0, max(2.0, len(frames) / _SECONDS)))
    with atomic_path(path) as temporary, writer.saving(film.figure, temporary, _FRAME_DPI):
        for index in frames:
            film.show(index)
            writer.grab_frame()
    return Path(path)


def _matrix(axes: Any, layer: LayerHistory, heading: str) -> Any:
    """Draw one layer; returns the image of the firing frequencies, for the colour bar."""
    rows = _evenly(_order(layer).tolist(), _MOST_ROWS)
    state = layer.state[:, rows].T
    firing = np.ma.masked_where(state != State.ALIVE, layer.firing_frequency[:, rows].T)
    # The states lie beneath, and show where there is no firing frequency. No pixel of ALIVE stays visible.
    beneath = require("matplotlib.colors", "plot").ListedColormap([_COLORS.get(s, "#FFFFFF") for s in State])
    how = {"aspect": "auto", "interpolation": "nearest"}
    axes.imshow(state, cmap=beneath, vmin=-0.5, vmax=len(State) - 0.5, **how)
    image = axes.imshow(firing, cmap=SEQUENTIAL, vmin=0.0, vmax=1.0, **how)
    dead, removed = int(layer.dead.sum()), int((~layer.present).sum())
    counts = [f"{dead} of {layer.size} dead" if dead else f"{layer.size} neurons"]
    counts += [f"{removed} removed"] if removed else []
    _headline(axes, heading, ", ".join(counts), VERMILION if dead else GREY)
    ticks = _evenly(range(len(layer.epochs)), 5)
    axes.set_xticks(ticks, [str(layer.epochs[tick]) for tick in ticks])
    axes.set_yticks([0, len(rows) - 1] if len(rows) > 1 else [0], ["1", str(layer.size)][: len(rows)])
    axes.tick_params(labelsize=7, length=2, color=GREY)
    axes.spines[:].set(color=_EDGE, linewidth=0.6)
    return image


def _order(layer: LayerHistory) -> NDArray[np.intp]:
    """Neurons by when they died for good, those that did not last; then by when they went, then by how they fired."""
    epochs = len(layer.epochs)
    died = np.where(layer.dead_since >= 0, layer.dead_since, epochs)
    gone = layer.state == State.GONE
    went = np.where(gone.any(0), gone.argmax(0), epochs)
    last = np.zeros(layer.size)
    for row in layer.firing_frequency:
        last = np.where(np.isnan(row), last, row)
    return np.lexsort((last, went, died))


class _Film:
    """The figure of the animation, of which `show` draws one epoch. Axes stay the same from frame to frame."""

    def __init__(self, history: NeuronHistory, names: Sequence[str], losses: Sequence[tuple[int, float]]) -> None:
        self._history = history
        self._layers = [history.layer(name) for name in names]
        self._headings = _headings(names)
        self._losses = losses
        across = min(_ACROSS, len(names))
        down = math.ceil(len(names) / across)
        height = 1.6 * down + (1.2 if losses else 0.0) + 0.5
        self.figure = new_figure(max(4.4, 2.2 * across + 0.5), height, _FRAME_DPI)
        parts: Any = self.figure.subfigures(2, 1, height_ratios=[1.6 * down, 1.2]) if losses else [self.figure]
        self._panels = list(parts[0].subplots(down, across, squeeze=False).flat)
        self._line = parts[1].subplots() if losses else None
        # Set once with the longest text that it will hold, so that nothing moves between the frames.
        self._heading = self.figure.suptitle(self._text(-1), fontsize=10, x=0.01, ha="left", parse_math=False)
        self._tallest = [self._highest(layer) for layer in self._layers]
        self.show(len(history.epochs) - 1)
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")

    def show(self, index: int) -> None:
        """Draw the epoch with this index."""
        self._heading.set_text(self._text(index))
        for axes, layer, heading, tallest in zip(
            self._panels, self._layers, self._headings, self._tallest, strict=False
        ):
            axes.clear()
            self._bars(axes, layer, index, heading, tallest)
        _outer_labels(self._panels, len(self._layers), min(_ACROSS, len(self._layers)), "firing frequency", "neurons")
        if self._line is not None:
            self._line.clear()
            self._curve(self._line, self._history.epochs[index])

    def _text(self, index: int) -> str:
        return f"{_title(self._history, [layer.name for layer in self._layers])}: epoch {self._history.epochs[index]}"

    def _bars(self, axes: Any, layer: LayerHistory, index: int, heading: str, tallest: int) -> None:
        alive, dead = self._counts(layer, index)
        width = 1 / _BINS
        edges = np.arange(_BINS) * width
        axes.bar(edges, alive, width, align="edge", color=BLUE)
        axes.bar(0.0, dead, width, align="edge", bottom=alive[0], color=VERMILION)
        left = int((layer.state[index] != State.GONE).sum())
        text = f"{dead} of {left} dead" if dead else f"{left} neurons"
        _headline(axes, heading, text, VERMILION if dead else GREY)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.05 * tallest)
        axes.yaxis.get_major_locator().set_params(integer=True, nbins=4)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        _plain(axes)

    def _curve(self, axes: Any, epoch: int) -> None:
        epochs, values = (np.array(column) for column in zip(*self._losses, strict=True))
        past = epochs <= epoch
        axes.plot(epochs, values, color="#C9C9C9", linewidth=1.2)
        axes.plot(epochs[past], values[past], color=BLUE, linewidth=1.6)
        axes.plot(epochs[past][-1:], values[past][-1:], "o", color=BLUE, markersize=4)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.get_major_locator().set_params(nbins=4)
        axes.set_xlabel("epoch", fontsize=8)
        axes.set_ylabel("loss", fontsize=8)
        _plain(axes)

    def _counts(self, layer: LayerHistory, index: int) -> tuple[NDArray[np.int64], int]:
        """How many of the living are in each bin, and how many are dead."""
        state = layer.state[index]
        counts, _ = np.histogram(layer.firing_frequency[index][state == State.ALIVE], _BINS, (0.0, 1.0))
        return counts, int((state == State.DEAD).sum())

    def _highest(self, layer: LayerHistory) -> int:
        spread = [self._counts(layer, index) for index in range(len(layer.epochs))]
        return max(1, *(max(int(alive[0]) + dead, int(alive.max())) for alive, dead in spread))


def _layers(history: NeuronHistory) -> tuple[str, ...]:
    if not history.epochs or not history.layers:
        raise DataError("No epoch of any layer was logged.", hint="Call log_epoch after each epoch of the training.")
    return history.layers


def _evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the items, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[index] for index in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _title(history: NeuronHistory, names: Sequence[str]) -> str:
    whose = f"Neurons of {label(history.model)}" if history.model else "Neurons"
    return whose if len(names) == len(history.layers) else f"{whose} ({len(names)} of {len(history.layers)} layers)"


def _headings(names: Sequence[str]) -> list[str]:
    """Names short enough for a panel: without the modules that all of them lie in, and in two lines where needed."""
    if all(len(name) <= _NAME_LENGTH for name in names):
        return [label(name, _NAME_LENGTH) for name in names]
    modules = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, modules)]
    start = len(".".join(shared)) + 1 if shared else 0
    return [_folded("…" * bool(shared) + name[start:]) for name in names]


def _folded(name: str) -> str:
    if len(name) <= _NAME_LENGTH:
        return label(name, _NAME_LENGTH)
    fold = name.rfind(".", 0, _NAME_LENGTH) + 1 or _NAME_LENGTH
    return f"{label(name[:fold], _NAME_LENGTH)}\n{label(name[fold:], _NAME_LENGTH)}"


def _headline(axes: Any, heading: str, counts: str, color: str) -> None:
    """The layer's name above its counts. No name is read as a formula."""
    axes.set_title(heading, fontsize=8, loc="left", pad=14, parse_math=False)
    where = {"xycoords": "axes fraction", "xytext": (0, 4), "textcoords": "offset points"}
    axes.annotate(counts, (0, 1), fontsize=7, color=color, **where)


def _outer_labels(panels: Sequence[Any], used: int, across: int, below: str, left: str) -> None:
    """Name the axes where nothing lies left of a panel, or below it; hide panels that are not used."""
    for index, axes in enumerate(panels):
        axes.set_axis_off() if index >= used else axes.set_axis_on()
        if index < used and index % across == 0:
            axes.set_ylabel(left, fontsize=8)
        if index < used <= index + across:
            axes.set_xlabel(below, fontsize=8)


def _plain(axes: Any) -> None:
    axes.tick_params(labelsize=7, length=2, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def _legend(figure: Any, states: set[int]) -> None:
    """The colours that are not on the bar, of those that occur."""
    patch = require("matplotlib.patches", "plot").Patch
    found = [state for state in _WORDS if state in states]
    if found:
        handles = [patch(facecolor=_COLORS[s], edgecolor=_EDGE, linewidth=0.6, label=_WORDS[s]) for s in found]
        figure.legend(handles=handles, loc="outside lower left", ncols=len(found), fontsize=8, frameon=False)
