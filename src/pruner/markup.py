"""HTML and SVG that cannot be injected into: text is escaped unless this module itself made it.

>>> element("p", "a < b", class_="note")
'<p class="note">a &lt; b</p>'
"""

from collections.abc import Iterable
from html import escape

_VOID = frozenset({"meta", "link", "br", "hr", "rect", "line", "polyline", "circle"})


class Html(str):
    """Text that is markup already. Only `element` and `join` make it."""

    __slots__ = ()


Child = str | Iterable["Html"]


def element(tag: str, /, *children: Child, **attributes: str | float | bool) -> Html:
    """An element; `class_` and `aria_label` stand for `class` and `aria-label`.

    A child is text, which is escaped, or markup. An attribute that is True stands alone, one that is False is left out.
    """
    opening = "".join([f"<{tag}", *(_attribute(key, value) for key, value in attributes.items()), ">"])
    if tag in _VOID:
        return Html(f"{opening[:-1]}/>")
    return Html(f"{opening}{join(children)}</{tag}>")


def join(children: Iterable[Child]) -> Html:
    """Children one after the other, text escaped."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(escape(child))
        else:
            parts.append(join(child))
    return Html("".join(parts))


def document(head: Html, body: Html) -> str:
    """A whole page in English."""
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def style(css: str) -> Html:
    """An inline style sheet. Not for text from outside: a style sheet is not escaped."""
    return Html(f"<style>\n{css}</style>")


def _attribute(key: str, value: str | float | bool) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    if value is False:
        return ""
    written = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return f' {name}="{escape(written)}"'
