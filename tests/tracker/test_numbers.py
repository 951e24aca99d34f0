"""Numbers in operators are recorded, and what changes between two forwards is told."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tracker.numbers import Numbers, Use, changed


def recorded(compute: Callable[[Tensor], Any], width: int = 8) -> list[Use]:
    numbers = Numbers()
    with numbers:
        compute(torch.ones(2, width))
    return numbers.uses


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x * (1.0 / x.shape[1]),
        lambda x: x * x.shape[1],
        lambda x: x + torch.tensor(0.5 / x.shape[1]),
        lambda x: torch.full((2,), x.shape[1]),
        lambda x: x.masked_fill(x > 0, x.shape[1]),
        lambda x: x.clamp(max=x.shape[1]),
        lambda x: torch.arange(0, 1, 1 / x.shape[1]),
        lambda x: torch.addmm(x, x, torch.ones(x.shape[1], x.shape[1]), beta=1 / x.shape[1]),
        lambda x: [x * 2 for _ in range(x.shape[1])],
        lambda x: x * 2 if x.shape[1] > 5 else x + 2,
    ],
)
def test_numbers_that_follow_a_width(compute: Callable[[Tensor], Any]) -> None:
    difference = changed(recorded(compute), recorded(compute, width=4))
    assert difference is not None
    assert "test_numbers.py:" in difference


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: (x * 0.5 + 3).softmax(-1),
        lambda x: x.view(2, -1, 2).transpose(1, 2).flatten(1)[:, : x.shape[1] // 2],
        lambda x: torch.nn.functional.layer_norm(x, x.shape[1:], eps=1e-6),
        lambda x: torch.zeros(x.shape) + x.new_full((x.shape[1],), -1.0),
        lambda x: x.masked_fill(x > 0, float("-inf")).nan_to_num(float("nan")),
    ],
)
def test_sizes_and_constants_are_not_numbers_that_follow(compute: Callable[[Tensor], Any]) -> None:
    before = recorded(compute)
    assert changed(before, recorded(compute, width=4)) is None


def test_the_message_shows_both_numbers() -> None:
    before, after = [Use("aten.mul.Tensor", (0.25,), "net.py:3")], [Use("aten.mul.Tensor", (0.5,), "net.py:3")]
    assert changed(before, after) == "a number follows its size at net.py:3: `aten.mul.Tensor` gets 0.5 instead of 0.25"
    assert changed(before, []) == "the code computes something else without some of them, after net.py:3"
    assert changed([], []) is None
