"""The report's part on budgets and repair: what layers could spare, what was solved for, and where it fell back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pruner.markup import Child, Html, element, join
from pruner.report import Report
from pruner.report_tables import section, table
from pruner.report_text import percent, short

_NAMES = {
    "removed": "neurons removed, nothing else",
    "closed form": "the others solved for",
    "batch norms": "batch norms estimated anew",
    "blocks": "trained block by block",
    "answers": "trained as a whole",
}


def budgets_section(report: Report) -> Html:
    """What each layer could spare, and what it lost; empty where no budgets were made."""
    if not report.budgets:
        return Html()
    chart = cost_chart(report.budgets)
    rows = budget_rows(report.budgets)
    what = "What each layer would cost the model's answers, by the share of it that is removed. Dots are the budgets."
    figure = element("figure", chart, element("figcaption", what)) if chart is not None else ""
    head = ("Layer", "Removed", "Share", "Cost")
    return section("Budgets", figure, table("How the layers share the loss", head, rows, "layers", numeric=(1, 2, 3)))


def repair_section(report: Report) -> Html:
    """What became of the weights that stay; empty where nothing did."""
    if not report.repair:
        return Html()
    lede = element(
        "p",
        "The weights that stay were given new values, so that the answers stay what they were. Distances are to the "
        "dense model's answers, on samples that nothing was learned from; errors are shares of the variance of what "
        "the dense layer wrote.",
        class_="soft",
    )
    steps = table(
        "Distance to the dense model's answers", ("Step", "Distance"), steps_rows(report.repair), "steps", numeric=(1,)
    )
    head = ("Layer", "Columns left", "Method", "Solved", "Bias only", "Untouched")
    layers = table("Layers that were solved for", head, layer_rows(report.repair), "layers", numeric=(1, 3, 4, 5))
    trained = block_rows(report.repair)
    titles = ("Block", "Error before", "Error after", "Steps")
    blocks = table("Blocks that were trained", titles, trained, "blocks", numeric=(1, 2, 3)) if trained else ""
    return section("Repair", lede, steps, layers, blocks)


def steps_rows(repair: Mapping[str, Any]) -> list[list[Child]]:
    """How far the answers were from the dense model's after every step tried; the one that was kept is marked."""
    rows: list[list[Child]] = []
    for step, distance in repair["distances"].items():
        kept = step == repair["kept"]
        rows.append(
            [
                join([_NAMES.get(step, step), element("strong", " kept") if kept else ""]),
                short(distance),
            ]
        )
    return rows


def layer_rows(repair: Mapping[str, Any]) -> list[list[Child]]:
    """Every layer that was solved for: columns left, the method that held-out samples chose, the error by method."""
    rows: list[list[Child]] = []
    for layer in repair["layers"]:
        errors = layer["errors"]
        fell_back = layer["method"] != "least squares"
        rows.append(
            [
                element("code", layer["consumer"]),
                f"{layer['kept']:,} of {layer['columns']:,}",
                join([layer["method"], element("span", " fell back", class_="kind") if fell_back else ""]),
                _share(errors.get("least squares")),
                _share(errors.get("bias")),
                _share(errors.get("none")),
            ]
        )
    return rows


def block_rows(repair: Mapping[str, Any]) -> list[list[Child]]:
    """Every block that was trained: its error before and after, on samples held out."""
    return [
        [
            element("code", block["block"] or "the whole model"),
            _share(block["before"]),
            _share(block["after"]),
            f"{block['steps']:,}",
        ]
        for block in repair["blocks"]
    ]


def budget_rows(budgets: Mapping[str, Any]) -> list[list[Child]]:
    """What each layer was to lose, and what that costs by its curve."""
    rows: list[list[Child]] = []
    for name, layer in budgets["layers"].items():
        cost = ""
        if "curve" in layer:
            curve = layer["curve"]
            nearest = min(range(len(curve["removed"])), key=lambda i: abs(curve["removed"][i] - layer["removed"]))
            cost = short(curve["costs"][nearest])
        rows.append(
            [element("code", name), f"{layer['removed']:,} of {layer['neurons']:,}", percent(layer["share"]), cost]
        )
    return rows


def cost_chart(budgets: Mapping[str, Any]) -> Html | None:
    """The cost curve of every layer over the share of it that is removed, with a dot where its budget is."""
    layers = [layer for layer in budgets["layers"].values() if "curve" in layer]
    if not layers:
        return None
    width, height, left, top = 960.0, 240.0, 66.0, 12.0
    highest = max(_until(layer["curve"], 0.9) for layer in layers) or 1.0

    def place(share: float, cost: float) -> tuple[float, float]:
        return left + (width - left - 12) * share, top + height * (1 - min(cost / highest, 1.0))

    parts: list[Html] = []
    for value in (0.0, highest):
        y = place(0, value)[1]
        parts.append(element("line", class_="grid", x1=left, y1=y, x2=width, y2=y))
        parts.append(element("text", short(value), x=left - 8, y=y + 4, text_anchor="end"))
    for layer in layers:
        curve = layer["curve"]
        points = [place(n / curve["neurons"], c) for n, c in zip(curve["removed"], curve["costs"], strict=True)]
        parts.append(element("polyline", class_="curve thin", points=_points(points)))
    for layer in layers:
        x, y = place(layer["share"], _at(layer["curve"], layer["removed"]))
        parts.append(element("circle", class_="dot", cx=x, cy=y, r=3))
    parts.append(element("text", "none removed", x=left, y=height + 34, text_anchor="start"))
    parts.append(element("text", "all removed", x=width, y=height + 34, text_anchor="end"))
    return element(
        "svg",
        parts,
        class_="curve-chart",
        viewBox=f"0 0 {width:.0f} {height + 44:.0f}",
        role="img",
        aria_label=f"Cost of removal by share removed, for {len(layers)} layers; dots are the budgets.",
    )


def _until(curve: Mapping[str, Any], share: float) -> float:
    pairs = zip(curve["removed"], curve["costs"], strict=True)
    return max(float(cost) for removed, cost in pairs if removed <= share * curve["neurons"])


def _at(curve: Mapping[str, Any], removed: int) -> float:
    """The cost after so many removals, between the points that are known."""
    places: Sequence[int] = curve["removed"]
    for i in range(1, len(places)):
        if removed <= places[i]:
            part = (removed - places[i - 1]) / max(1, places[i] - places[i - 1])
            return float(curve["costs"][i - 1] + part * (curve["costs"][i] - curve["costs"][i - 1]))
    return float(curve["costs"][-1])


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _share(value: float | None) -> str:
    return "" if value is None else percent(value)
