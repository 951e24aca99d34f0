import doctest

import pytest

from pruner import markup, outputs, report_text


@pytest.mark.parametrize("module", [report_text, markup, outputs])
def test_the_examples_in_the_docstrings(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]

    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("share", "words"),
    [(1.0, "100 %"), (0.999, "99.9 %"), (0.0994, "9.9 %"), (0.0004, "0.04 %"), (0.5, "50 %")],
)
def test_percent_never_rounds_something_to_nothing_or_to_all(share: float, words: str) -> None:
    assert report_text.percent(share) == words


def test_what_was_not_measured_is_said_so() -> None:
    assert report_text.short(None) == "not measured"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [(200, 220, "10 % larger"), (1000, 995, "0.5 % smaller"), (5, 5, "as large as before")],
)
def test_smaller(before: int, after: int, words: str) -> None:
    assert report_text.smaller(before, after) == words
