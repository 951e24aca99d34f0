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


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("dead", "fires on 0 %, reaches 0.001 at most"),
        ("constant", "stays at 0.5"),
        ("inactive", "fires on 0 %"),
        ("redundant", "correlates at -0.970 with neuron 12"),
        ("low score", ""),
    ],
)
def test_evidence_is_what_bears_on_the_reason(reason: str, words: str) -> None:
    numbers = {"firing_frequency": 0.0, "mean": 0.5, "maximum": 0.001, "correlation": -0.97, "same_as": 12.0}

    assert report_text.evidence(reason, numbers) == words


def test_plain_words_for_any_data() -> None:
    assert report_text.plain({"a_b": [1, 2.5, None], "ok": True, "n": 12345}) == "a b 1, 2.5, –, ok yes, n 12,345"
