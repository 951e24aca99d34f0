"""Integers that remember where they came from behave as integers, and tell when they become numbers."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tracker.sizes import (
    Arithmetic,
    Attribute,
    Expression,
    Side,
    Size,
    Tracked,
    evaluate,
    expression_of,
    integer_attributes,
    read_path,
    sources,
    write_path,
)

WIDTH = Attribute("block", ("width",))


class Log:
    """What a trace is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[Expression, Side]] = []

    def __call__(self, expression: Expression, side: Side) -> None:
        self.heard.append((expression, side))

    def tracked(self, value: int, expression: Expression = WIDTH) -> Tracked:
        return Tracked(value, expression, self)


@given(left=st.integers(1, 999), right=st.integers(1, 999), operator=st.sampled_from(["+", "-", "*", "//", "%"]))
def test_arithmetic_is_that_of_integers_and_keeps_the_origin(left: int, right: int, operator: str) -> None:
    log = Log()
    compute: Callable[[Any, Any], Any] = eval(f"lambda a, b: a {operator} b")  # noqa: S307 (five operators, spelled here)
    other = Attribute("block", ("other",))
    values: dict[Expression, int] = {WIDTH: left, other: right}
    a, b = log.tracked(left), log.tracked(right, other)
    for made in (compute(a, right), compute(left, b), compute(a, b)):
        assert isinstance(made, Tracked)
        assert int(made) == compute(left, right)
        assert evaluate(made.expression, values.__getitem__) == int(made)
    assert not log.heard


def test_both_halves_of_a_division() -> None:
    log = Log()
    quotient, rest = divmod(log.tracked(17), 5)
    assert (int(quotient), int(rest)) == (3, 2)
    assert quotient.expression == Arithmetic("floordiv", WIDTH, 5)
    assert rest.expression == Arithmetic("mod", WIDTH, 5)
    assert [int(part) for part in divmod(17, log.tracked(5))] == [3, 2]


def test_a_sign_is_kept_and_taken_back() -> None:
    negative = -Log().tracked(7)
    assert int(negative) == -7
    assert negative.expression == Arithmetic("mul", -1, WIDTH)
    assert (-negative).expression == WIDTH
    assert (+negative) is negative


@pytest.mark.parametrize(
    ("use", "side"),
    [
        (float, "left"),
        (math.sqrt, "left"),
        (lambda n: n / 2, "left"),
        (lambda n: 2 / n, "right"),
        (lambda n: n**-0.5, "left"),
        (lambda n: 2**n, "right"),
        (lambda n: n * 0.5, "left"),
        (lambda n: n + 0.5, "left"),
        (lambda n: n > 1.5, "left"),
    ],
)
def test_becoming_a_number_is_told_with_the_side(use: Callable[[Any], Any], side: str) -> None:
    log = Log()
    assert use(log.tracked(16)) == use(16)
    assert log.heard[0] == (WIDTH, side)


@pytest.mark.parametrize("compare", [lambda a, b: a == b, lambda a, b: a < b, lambda a, b: b >= a, lambda a, b: b != a])
def test_a_comparison_is_told(compare: Callable[[Any, Any], bool]) -> None:
    log = Log()
    assert compare(log.tracked(8), 9) == compare(8, 9)
    ((expression, _),) = log.heard
    assert evaluate(expression, lambda _: 8) in (-1, 1)
    assert evaluate(expression, lambda _: 9) == 0


def test_what_is_no_comparison_of_integers_tells_nothing() -> None:
    log = Log()
    size = log.tracked(8)
    assert size != "8"  # type: ignore[comparison-overlap]
    assert {8: "found"}[9 - 1] == "found"
    assert f"{size} {size:3d}" == "8   8"
    assert list(range(size))[-1] == 7
    assert "ab" * size == "ab" * 8
    assert not log.heard


def test_copies_are_plain_integers() -> None:
    size = Log().tracked(8)
    for copied in (copy.deepcopy(size), pickle.loads(pickle.dumps(size)), int(size)):  # noqa: S301 (our own bytes)
        assert type(copied) is int
        assert copied == 8
    assert expression_of(8) == 8
    assert hash(size) == hash(8)


def test_sources_of_an_expression() -> None:
    made = Log().tracked(12) * Log().tracked(5, Size(3)) // 4 + 1
    assert list(sources(expression_of(made))) == [WIDTH, Size(3)]
    assert str(Attribute("", ("shape", 0, "x"))) == "shape[0]['x']"


class Kept(nn.Module):
    """Integers in all the places where modules keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.flag, self.one, self.ratio = 8, True, 1, 0.5
        self.shape, self.table, self.nested = (4, 5), {"heads": 3, 7: [6]}, [[2], (9, "x")]
        self.many = list(range(100))
        self.inner = nn.Linear(4, 4)


def test_integers_are_found_in_nested_attributes() -> None:
    module = Kept()
    found = {path: read_path(module, path) for path in integer_attributes(module)}
    assert found == {
        ("width",): 8,
        ("shape", 0): 4,
        ("shape", 1): 5,
        ("table", "heads"): 3,
        ("table", 7, 0): 6,
        ("nested", 0, 0): 2,
        ("nested", 1, 0): 9,
    }


def test_writing_rebuilds_containers_and_shares_nothing() -> None:
    module = Kept()
    shape, table = module.shape, module.table
    for path in list(integer_attributes(module)):
        write_path(module, path, read_path(module, path) + 10)
    assert module.shape == (14, 15)
    assert module.table == {"heads": 13, 7: [16]}
    assert module.nested == [[12], (19, "x")]
    assert (shape, table) == ((4, 5), {"heads": 3, 7: [6]})
