"""Sections and tables of the report's page, and names that may break where they are long."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from pruner.markup import Child, Html, element, join

ROWS_SHOWN = 12
"""Rows of a table that are open; the others are one click away."""
ROWS_IN_PAGE = 400
"""Rows of a table that are in the page at all; the JSON has every one."""


def section(title: str, *children: Child, key: str = "") -> Html:
    """A section under its heading."""
    name = key or title.lower().replace(" ", "-")
    return element("section", element("h2", title, id=name), *children, aria_labelledby=name)


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[Child]],
    noun: str,
    shown: int = ROWS_SHOWN,
    numeric: Sequence[int] = (),
) -> Html:
    """A table of which `shown` rows are open and the others folded, up to what a page can bear."""
    if len(rows) <= shown + 2:
        return plain_table(caption, head, rows, numeric)
    rest = rows[shown:ROWS_IN_PAGE]
    return join(
        [
            plain_table(caption, head, rows[:shown], numeric),
            element(
                "details",
                element("summary", f"{len(rest):,} more {noun}"),
                plain_table(f"{caption}, continued", head, rest, numeric),
                left_out(len(rows)),
            ),
        ]
    )


def plain_table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Child]], numeric: Sequence[int]) -> Html:
    """A table, all of whose rows are open; the columns `numeric` are set to the right."""

    def cells(kind: str, row: Sequence[Child]) -> list[Html]:
        scope = {"scope": "col"} if kind == "th" else {}
        return [
            element(kind, cell, **scope, **({"class_": "number"} if place in numeric else {}))
            for place, cell in enumerate(row)
        ]

    made = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", cells("th", head))),
        element("tbody", [element("tr", cells("td", row)) for row in rows]),
    )
    return element("div", made, class_="scroll", role="region", aria_label=caption, tabindex="0")


def left_out(rows: int) -> Html:
    """A word about the rows that are not in the page."""
    if rows <= ROWS_IN_PAGE:
        return Html()
    return element("p", f"{rows - ROWS_IN_PAGE:,} more are in the JSON beside this page.", class_="soft")


def breakable(name: str) -> Html:
    """A dotted name or a path that may be broken after its dots and slashes."""
    pieces = name.replace("/", "/\0").replace(".", ".\0").replace("_", "_\0").split("\0")
    return join(part for piece in pieces for part in (piece, Html("<wbr>")))


def ranges(neurons: Sequence[int]) -> str:
    """Indices as ranges: "0–3, 7"; the first dozen of them."""
    ordered = sorted(neurons)
    parts = []
    for _, run in groupby(enumerate(ordered), key=lambda pair: pair[1] - pair[0]):
        members = [neuron for _, neuron in run]
        parts.append(f"{members[0]}" if len(members) == 1 else f"{members[0]}–{members[-1]}")
    return ", ".join(parts[:12]) + (" …" if len(parts) > 12 else "")


def names(where: Sequence[str]) -> Html:
    """Names of layers, the first six of them in sight."""
    shown = join(part for name in where[:6] for part in (element("code", breakable(name)), " "))
    if len(where) <= 6:
        return shown
    rest = join(part for name in where[6:ROWS_IN_PAGE] for part in (element("code", breakable(name)), " "))
    return join([shown, element("details", element("summary", f"and {len(where) - 6:,} more"), rest)])
