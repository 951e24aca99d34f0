"""Taking apart and putting together along an axis."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.tracker.equivalence import check_exact
from tests.tracker.samples import Sample, between, reason, rows, sizes
from torch import Tensor, nn
from torch.nn import functional as F

Compute = Callable[..., Any]


def read_apart(parts: Compute, widths: tuple[int, ...], **attributes: Any) -> Sample:
    """Pieces of a layer of 8 neurons, each read by a layer of its own."""
    return Sample(
        lambda m, x: sum(head(piece) for head, piece in zip(m.heads, parts(m, F.relu(m.a(x))), strict=True)),
        a=nn.Linear(6, 8),
        heads=nn.ModuleList(nn.Linear(width, 3) for width in widths),
        **attributes,
    )


@pytest.mark.parametrize(
    ("parts", "widths", "expected"),
    [
        (lambda m, h: h.chunk(2, 1), (4, 4), {"a": 4}),
        (lambda m, h: h.split(m.four, 1), (4, 4), {"a": 4}),
        (lambda m, h: h.split(h.shape[1] // 2, 1), (4, 4), {"a": 4}),
        (lambda m, h: h.split([m.three, m.five], 1), (3, 5), {"a": 3, "a[1]": 5}),
        (lambda m, h: torch.split(h, [m.three, m.five], dim=1), (3, 5), {"a": 3, "a[1]": 5}),
        (lambda m, h: (h[:, : m.three], h[:, m.three :]), (3, 5), {"a": 3, "a[1]": 5}),
        (lambda m, h: (h[:, : -m.three], h[:, -m.three :]), (5, 3), {"a": 5, "a[1]": 3}),
        (lambda m, h: (h[..., : h.shape[1] // 2], h[..., h.shape[1] // 2 :]), (4, 4), {"a": 4}),
        (lambda m, h: (h[:, ::2], h[:, 1::2]), (4, 4), {"a": 4}),
        (lambda m, h: h.unflatten(1, (2, -1)).unbind(1), (4, 4), {"a": 4}),
        (lambda m, h: (h.unflatten(1, (2, -1))[:, 0], h.unflatten(1, (-1, m.four))[:, 1]), (4, 4), {"a": 4}),
        (lambda m, h: h[:, None].expand(-1, 2, -1).unbind(1), (8, 8), {"a": 8}),
    ],
)  # fmt: skip
def test_pieces_read_apart(parts: Compute, widths: tuple[int, ...], expected: dict[str, int]) -> None:
    found = check_exact(read_apart(parts, widths, three=3, four=4, five=5), rows())
    assert sizes(found) == expected


@pytest.mark.parametrize(
    ("parts", "widths", "left", "why"),
    [
        (lambda m, h: h.chunk(3, 1), (3, 3, 2), {}, "unequal pieces"),
        (lambda m, h: h.split(m.three, 1), (3, 3, 2), {}, "unequal pieces"),
        (lambda m, h: h.split(4, 1), (4, 4), {}, "pieces of the constant size 4"),
        (lambda m, h: h.split([3, 5], 1), (3, 5), {}, "constant size"),
        (lambda m, h: (h[:, :3], h[:, 3:]), (3, 5), {"a": 5}, "constant position 3"),
        (lambda m, h: (h[:, :-3], h[:, -3:]), (5, 3), {"a": 5}, "constant position -3"),
        (lambda m, h: (h[:, 2:5],), (3,), {}, "constant position 5"),
        (lambda m, h: (h[:, ::3],), (3,), {}, "sliced with a step"),
        (lambda m, h: (h[:, 3:4], h[:, 1, None]), (1, 1), {}, "position"),
        (lambda m, h: h.tensor_split((3,), 1), (3, 5), {"a": 5}, "constant position 3"),
    ],
)  # fmt: skip
def test_pieces_of_constant_sizes(parts: Compute, widths: tuple[int, ...], left: dict[str, int], why: str) -> None:
    found = check_exact(read_apart(parts, widths, three=3), rows())
    assert sizes(found) == left
    assert why in reason(found, "a")


@pytest.mark.parametrize(
    ("compute", "read", "expected"),
    [
        (lambda m, h: torch.cat([h, m.c(h)], 1), 13, {"a": 8, "c": 5}),
        (lambda m, h: torch.cat([h, h, m.c(h)], -1), 21, {"a": 8, "c": 5}),
        (lambda m, h: torch.cat([h, torch.ones(4, 2).to(h)], 1), 10, {"a": 8}),
        (lambda m, h: torch.cat([h, m.c(h)[:, :1]], 1), 9, {"a": 8}),
        (lambda m, h: torch.cat([h, h + 1], 0), 8, {"a": 8}),
        (lambda m, h: torch.cat([h, torch.ones(4, 8).to(h)], 0), 8, {}),
        (lambda m, h: torch.stack([h, h * 2], 1).flatten(1), 16, {"a": 8}),
        (lambda m, h: torch.stack([h, h * 2], 2).flatten(1), 16, {"a": 8}),
        (lambda m, h: torch.stack([h, torch.ones(4, 8).to(h)], 0).sum(0), 8, {}),
        (lambda m, h: torch.stack([h.view(4, 2, -1), h.view(4, 2, -1)]).sum(0).flatten(1), 8, {"a": 4}),
        (lambda m, h: torch.stack([h.view(4, -1, m.two).mT, h.view(4, m.two, -1)]).sum(0).flatten(1), 8, {}),
        (lambda m, h: F.glu(torch.cat([h, h * 3], 1), 1), 8, {"a": 8}),
    ],
)  # fmt: skip
def test_putting_together(compute: Compute, read: int, expected: dict[str, int]) -> None:
    model = between(lambda m, h: compute(m, F.relu(h)), read=read, c=nn.Linear(8, 5), two=2)
    found = check_exact(model, rows())
    for name in ("a", "c"):
        assert sizes(found).get(name) == expected.get(name)


def test_writing_into_a_slice_ties_what_is_written() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        hidden = m.a(x).clone()
        hidden[:, : m.n] = m.c(x)
        hidden[:, m.n :] *= 2
        result: Tensor = m.b(hidden)
        return result

    model = Sample(compute, a=nn.Linear(6, 8), c=nn.Linear(6, 3), b=nn.Linear(8, 3), n=3)
    found = check_exact(model, rows())
    assert sizes(found) == {"a": 3, "a[1]": 5}
    assert found["c"] is found["a"]


def test_what_comes_back_in_another_order_is_found_again() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        first, second, third = m.qkv(x).unflatten(-1, (3, m.heads, -1)).unbind(-3)
        mixed = (first @ second.mT).softmax(-1) @ third
        result: Tensor = m.out(mixed.flatten(-2))
        return result

    model = Sample(compute, qkv=nn.Linear(6, 24), out=nn.Linear(8, 3), heads=2)
    found = check_exact(model, rows())
    assert all(group.size > 1 for group in found)
