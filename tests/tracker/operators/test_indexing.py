"""Look-ups keep the axis that is looked into, pass the others, and never let an index carry neurons away."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.tracker.equivalence import check_exact
from tests.tracker.samples import Sample, between, reason, rows, sizes
from torch import Tensor, nn

FEW = torch.tensor([2, 0, 1])


@pytest.mark.parametrize(
    "compute",
    [
        lambda m, h: h[FEW],
        lambda m, h: h[FEW, :],
        lambda m, h: h[:, None][FEW, 0],
        lambda m, h: h.expand(2, -1, -1)[:, FEW].mean(0),
        lambda m, h: h.expand(2, -1, -1)[torch.tensor([0, 1]), FEW[:2]],
        lambda m, h: h[torch.tensor([True, False, True, True])],
        lambda m, h: h.expand(2, -1, -1)[torch.ones(2, 4, dtype=torch.bool)],
        lambda m, h: h.index_select(0, FEW),
        lambda m, h: h.gather(0, FEW[:, None].expand(-1, h.shape[1])),
        lambda m, h: h.take_along_dim(FEW[:, None].expand(-1, h.shape[1]), 0),
        lambda m, h: torch.where(torch.tensor([[True], [False], [True], [False]]), h, -h),
    ],
)
def test_other_axes_pass(compute: Callable[..., Tensor]) -> None:
    assert sizes(check_exact(between(lambda m, h: compute(m, torch.relu(h))), rows())) == {"a": 8}


@pytest.mark.parametrize(
    "compute",
    [
        lambda m, h: h[:, torch.arange(8)],
        lambda m, h: h[:, torch.ones(8, dtype=torch.bool)],
        lambda m, h: h[torch.ones(4, 8, dtype=torch.bool)].view(4, -1),
        lambda m, h: h.index_select(1, torch.arange(8)),
        lambda m, h: h.gather(1, torch.zeros(4, 8, dtype=torch.long)),
        lambda m, h: h.gather(0, torch.zeros(1, 4, dtype=torch.long)).repeat(1, 2),
        lambda m, h: m.table(h.long().clamp(0, 4)).sum(1),
        lambda m, h: m.table.weight[h.long().clamp(0, 4)].sum(1),
        lambda m, h: m.table.weight.index_select(0, h[0].long().clamp(0, 4)).sum(0, keepdim=True) + 0 * h,
        lambda m, h: h[h > -1e9][:8].expand(4, -1),
        lambda m, h: h.masked_fill(torch.arange(8) > 3, 0.0),
    ],
)
def test_looked_into_or_looked_up_with_keeps_neurons(compute: Callable[..., Tensor]) -> None:
    found = check_exact(between(compute, table=nn.Embedding(5, 8)), rows())
    assert "a" not in sizes(found)
    assert reason(found, "a")


def test_embeddings_write_neurons_and_keep_their_rows() -> None:
    model = Sample(lambda m, ids: m.b(m.a(ids)), a=nn.Embedding(9, 8), b=nn.Linear(8, 3))
    found = check_exact(model, torch.randint(0, 9, (2, 4)))
    assert sizes(found) == {"a": 8}
    assert found["a"].producers == (("a.weight", 1),)


def test_positions_are_added_to_tokens() -> None:
    def compute(m: Any, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1])
        result: Tensor = m.b(torch.relu(m.tokens(ids) + m.places(places)[None]))
        return result

    model = Sample(compute, tokens=nn.Embedding(9, 8), places=nn.Embedding(7, 8), b=nn.Linear(8, 3))
    found = check_exact(model, torch.randint(0, 9, (2, 4)))
    assert sizes(found) == {"tokens": 8}
    assert found["places"] is found["tokens"]


@pytest.mark.parametrize(
    ("positions", "left"), [([-2, -1], 6), ([0, 2], 5), ([2], 5), ([-1, 0], 6)], ids="last first one ends".split()
)
def test_listed_positions_stay_with_those_before_them(positions: list[int], left: int) -> None:
    model = Sample(
        lambda m, x: m.b(torch.cat([m.a(x)[..., positions], m.a(x)], 1)),
        a=nn.Linear(6, 8), b=nn.Linear(8 + len(positions), 3),
    )  # fmt: skip
    found = check_exact(model, rows())
    assert sizes(found) == {"a": left}
    assert "looked up at the constant position" in reason(found, "a")


def test_keys_and_values_listed_behind_the_query_heads() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        qkv = m.qkv(x).view(*x.shape[:2], m.heads + 2, m.width).transpose(1, 2)
        mixed = (qkv[:, :-2] @ qkv[:, [-2]].mT).softmax(-1) @ qkv[:, [-1]]
        result: Tensor = m.out(mixed.transpose(1, 2).flatten(2))
        return result

    model = Sample(compute, qkv=nn.Linear(6, 18), out=nn.Linear(12, 6), heads=4, width=3)
    assert sizes(check_exact(model, torch.randn(2, 5, 6))) == {"qkv": 4}
