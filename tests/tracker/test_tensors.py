"""Tensors are found in whatever a model takes or answers."""

from collections import UserDict, deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tracker.tensors import tensors_in

T = torch.ones(2)


@dataclass
class Answer:
    logits: Tensor
    extra: Any = None


class Pair(NamedTuple):
    left: Tensor
    right: Any


class Slotted:
    __slots__ = ("missing", "value")

    def __init__(self, value: Tensor) -> None:
        self.value = value


@pytest.mark.parametrize(
    ("given", "count"),
    [
        (T, 1),
        ((T, [T, {"a": T}]), 3),
        (Answer(T, Answer(T)), 2),
        (Pair(T, (T,)), 2),
        (Slotted(T), 1),
        (UserDict({"a": T}), 1),
        ({"a": T}.values(), 1),
        (deque([T, T]), 2),
        (torch.distributions.Normal(T, T, validate_args=False), 2),
        ((None, "text", 1, nn.Linear(2, 2)), 0),
    ],
)
def test_tensors_in_any_structure(given: Any, count: int) -> None:
    found = tensors_in(given)
    assert len(found) == count
    assert all(isinstance(tensor, Tensor) for tensor in found)


def test_structures_that_hold_themselves() -> None:
    knot: dict[str, Any] = {"tensor": T}
    knot["again"] = [knot]
    assert len(tensors_in(knot)) == 1


def test_caches_are_left_out_when_asked() -> None:
    answer = {"logits": T, "past_key_values": (T, T)}
    assert len(tensors_in(answer)) == 3
    assert len(tensors_in(answer, caches=False)) == 1
