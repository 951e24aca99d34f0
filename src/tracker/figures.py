"""What all pictures share: colours, labels, and figures that leave no state behind.

matplotlib comes with the extra "plot". Figures are made without pyplot, so no backend is chosen.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tracker.extras import require
from tracker.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's colours and the map "cividis" stay apart for people with any of the common colour vision deficiencies.
BLUE = "#0072B2"
VERMILION = "#D55E00"
GREY = "#767676"
SEQUENTIAL = "cividis"

_DPI = 150
_NAME_LENGTH = 34
# matplotlib's own font has every Latin letter below this code point; of the rest it may have none.
_DRAWN = 0x250


def new_figure(width: float, height: float, dpi: int = _DPI) -> Figure:
    """A figure of so many inches; raises `MissingExtraError` without matplotlib."""
    module = require("matplotlib.figure", "plot")
    figure: Figure = module.Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    return figure


def saved(figure: Figure, path: str | Path) -> Path:
    """Write the figure as PNG, whole or not at all; raises `StorageError`."""
    agg = require("matplotlib.backends.backend_agg", "plot")
    canvas = agg.FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        canvas.print_png(temporary)
    return Path(path)


def label(name: str, length: int = _NAME_LENGTH) -> str:
    """A name that can be drawn: what has no glyph is escaped, and a long name loses its middle.

    The block's number is near the front, what the layer is at the end.
    """
    drawn = "".join(c if _has_glyph(c) else c.encode("unicode_escape").decode() for c in name)
    if len(drawn) <= length:
        return drawn
    front = length // 2 - 2
    return f"{drawn[:front]}…{drawn[front + 1 - length :]}"


def _has_glyph(character: str) -> bool:
    return character.isprintable() and (ord(character) < _DRAWN or character == "…")
