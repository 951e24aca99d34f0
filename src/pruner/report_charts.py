"""The pictures of the report: small inline SVG, coloured by the page's style sheet so that they follow its theme."""

from collections.abc import Sequence
from html import escape
from typing import TypeVar

from pruner.markup import Html, element
from pruner.report import Bin, Layer
from pruner.report_text import count, percent, short

Number = TypeVar("Number", bound=float)

_LEVELS = 8


def layer_bar(layer: Layer, largest: int) -> Html:
    """Kept and removed neurons of a layer, drawn against a layer of `largest` neurons."""
    width = max(100 * layer.before / largest, 1.5)
    kept = width * layer.after / layer.before
    return element(
        "svg",
        element("rect", class_="kept", x=0, y=0, width=kept, height=10),
        element("rect", class_="gone", x=kept, y=0, width=width - kept, height=10),
        class_="bar",
        viewBox="0 0 100 10",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{layer.name}: {layer.after} kept, {layer.before - layer.after} removed",
    )


def activity_strip(layer: Layer) -> Html:
    """A layer's neurons in order: the stronger the colour, the more often they fire; marks below where some went."""
    if all(entry.firing is None for entry in layer.profile):
        return element("span", "not measured", class_="soft")
    step = 100 / len(layer.profile)
    cells = [
        element("rect", class_=f"a{level}", x=first * step, y=0, width=(last - first) * step, height=10)
        for level, first, last in _runs([_level(entry) for entry in layer.profile])
    ]
    shares = [entry.removed / entry.size for entry in layer.profile]
    scale = 3.5 / (max(shares) or 1.0)
    marks = [
        element("rect", class_="gone", x=first * step, y=11.5, width=(last - first) * step, height=scale * share)
        for share, first, last in _runs(shares)
        if share
    ]
    fired = sum((entry.firing or 0.0) * entry.size for entry in layer.profile) / layer.before
    return element(
        "svg",
        cells,
        marks,
        class_="strip",
        viewBox="0 0 100 15",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{layer.name}: its neurons fire on {percent(fired)} of the data on average",
    )


def model_profile(layers: Sequence[Layer]) -> Html:
    """One column per layer, first to last: the share of its neurons that was removed."""
    width, height, left = 1000.0, 150.0, 46.0
    step = (width - left) / len(layers)
    gap = min(2.0, step / 4)
    highest = max(1 - layer.after / layer.before for layer in layers)
    top = next(limit for limit in (0.05, 0.1, 0.25, 0.5, 1.0) if highest <= limit)
    parts: list[Html] = []
    for mark in (0.0, 0.5, 1.0):
        y = 10 + height * (1 - mark)
        parts.append(element("line", class_="grid", x1=left, y1=y, x2=width, y2=y))
        parts.append(element("text", percent(mark * top), x=left - 6, y=y + 4, text_anchor="end"))
    for place, layer in enumerate(layers):
        share = 1 - layer.after / layer.before
        x = left + place * step
        tall = height * share / top
        label = f"{layer.name}: {percent(share)} removed, {layer.after:,} of {count(layer.before, 'neuron')} kept"
        parts.append(
            element(
                "rect",
                class_="gone",
                x=x + gap / 2,
                y=10 + height - tall,
                width=step - gap,
                height=tall,
            )
        )
        hit = element("title", label)
        parts.append(element("g", hit, element("rect", class_="hit", x=x, y=10, width=step, height=height)))
    return element(
        "svg",
        parts,
        class_="profile",
        viewBox=f"0 0 {width:.0f} {height + 20:.0f}",
        role="img",
        aria_label=f"Share of neurons removed from each of {len(layers)} layers; at most {percent(highest)}",
    )


def line_chart(name: str, epochs: Sequence[int], values: Sequence[float]) -> Html:
    """One logged quantity by epoch."""
    width, height, left, right, top = 480.0, 150.0, 52.0, 12.0, 12.0
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    first, length = epochs[0], (epochs[-1] - epochs[0]) or 1

    def place(epoch: int, value: float) -> tuple[float, float]:
        x = left + (width - left - right) * (epoch - first) / length
        return x, top + height * (1 - (value - low) / span)

    points = [place(epoch, value) for epoch, value in zip(epochs, values, strict=True)]
    x, y = points[-1]
    grid = [
        part
        for value in dict.fromkeys((low, high))
        for part in (
            element("line", class_="grid", x1=left, y1=place(first, value)[1], x2=width, y2=place(first, value)[1]),
            element("text", short(value), x=left - 8, y=place(first, value)[1] + 4, text_anchor="end"),
        )
    ]
    return element(
        "svg",
        grid,
        element("polyline", class_="curve", points=" ".join(f"{px:.1f},{py:.1f}" for px, py in points)),
        element("circle", class_="dot", cx=x, cy=y, r=4),
        element("text", f"epoch {epochs[0]}", x=left, y=height + 34, text_anchor="start"),
        element("text", f"epoch {epochs[-1]}", x=width, y=height + 34, text_anchor="end"),
        class_="curve-chart",
        viewBox=f"0 0 {width:.0f} {height + 44:.0f}",
        role="img",
        aria_label=f"{name} by epoch: from {short(values[0])} to {short(values[-1])}",
    )


def reasons_bar(reasons: Sequence[tuple[str, int]]) -> Html:
    """One bar of all removed neurons, cut by the reason why they went."""
    total = sum(number for _, number in reasons)
    parts, x = [], 0.0
    for place, (_, number) in enumerate(reasons):
        width = 100 * number / total
        parts.append(element("rect", class_=f"r{place % 5}", x=x, y=0, width=width, height=10))
        x += width
    label = ", ".join(f"{number} {reason}" for reason, number in reasons)
    return element(
        "svg",
        parts,
        class_="reasons",
        viewBox="0 0 100 10",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"Reasons: {label}",
    )


def layers_picture(layers: Sequence[tuple[str, int, int]], model_name: str) -> str:
    """The layers, each (name, neurons after, neurons before), as an SVG file of its own with its colours in it."""
    row, left, bar = 26, 300, 480
    largest = max((before for _, _, before in layers), default=1)
    parts: list[Html] = [element("text", f"Neurons of {model_name}, kept and removed", x=16, y=30, class_="title")]
    for place, (full_name, after, before) in enumerate(layers):
        y = 52 + place * row
        kept, whole = bar * after / largest, bar * before / largest
        name = full_name if len(full_name) <= 40 else f"…{full_name[-39:]}"
        parts += [
            element("text", name, x=left - 12, y=y + 13, text_anchor="end"),
            element("rect", class_="kept", x=left, y=y, width=kept, height=16),
            element("rect", class_="gone", x=left + kept, y=y, width=whole - kept, height=16),
            element("text", f"{after:,} of {before:,}", x=left + whole + 8, y=y + 13, class_="soft"),
        ]
    height = 68 + len(layers) * row
    svg = element(
        "svg", parts, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 900 {height}", width=900, height=height
    )
    css = (
        "svg{background:#fff}text{font:13px system-ui,sans-serif;fill:#1d2330}.title{font-size:17px;font-weight:600}"
        ".soft{fill:#5b6474}.kept{fill:#2f6f9f}.gone{fill:#d9723a}"
    )
    return svg.replace(">", f"><style>{escape(css)}</style>", 1) + "\n"


def _level(entry: Bin) -> int:
    """Firing frequency in eight steps; the lowest is only for neurons that never fire."""
    firing = entry.firing or 0.0
    return 0 if firing == 0 else 1 + min(int(firing * (_LEVELS - 1)), _LEVELS - 2)


def _runs(values: Sequence[Number]) -> list[tuple[Number, int, int]]:
    """(value, first, last) of every stretch of equal values."""
    starts = [place for place, value in enumerate(values) if place == 0 or values[place - 1] != value]
    return [(values[first], first, last) for first, last in zip(starts, [*starts[1:], len(values)], strict=True)]
