from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from pruner.markup import element, join


class Seen(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.text += data


PRINTABLE = st.text(st.characters(exclude_categories=("Cs", "Cc")))


@given(PRINTABLE, PRINTABLE)
def test_text_and_attributes_come_back_as_they_went_in(content: str, label: str) -> None:
    seen = Seen(element("p", content, aria_label=label))

    assert seen.tags == [("p", [("aria-label", label)])]
    assert seen.text == content


def test_markup_is_not_escaped_twice() -> None:
    assert element("p", element("b", "a & b")) == "<p><b>a &amp; b</b></p>"
    assert join(["<", [element("br"), element("i", ">")]]) == "&lt;<br/><i>&gt;</i>"


def test_attributes_that_are_true_or_false_stand_alone_or_are_left_out() -> None:
    assert element("details", "x", open=True, hidden=False) == "<details open>x</details>"
