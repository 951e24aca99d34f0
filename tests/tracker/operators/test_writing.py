"""Writing by index and by mask: the written axis stays whole, the others go with what is written."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.tracker.equivalence import check_exact
from tests.tracker.samples import Sample, between, reason, rows, sizes
from torch import Tensor, nn

FEW = torch.tensor([2, 0, 1])
SOME = torch.tensor([[True], [False], [True], [False]])


def written(h: Tensor, index: Any, values: Any) -> Tensor:
    """A copy with `values` written at `index`."""
    out = h.clone()
    out[index] = values
    return out


@pytest.mark.parametrize(
    "compute",
    [
        lambda m, h: written(h, FEW, h[:3] * 2),
        lambda m, h: written(h, FEW, 2.0),
        lambda m, h: written(h, (FEW, slice(None)), h[:1]),
        lambda m, h: written(h.expand(2, -1, -1), (slice(None), FEW), h[:3] * 2)[1],
        lambda m, h: written(h.expand(2, -1, -1), (torch.tensor([0, 1]), FEW[:2]), h[:2] * 3).sum(0),
        lambda m, h: written(h, SOME[:, 0], h[:2] * 2),
        lambda m, h: written(h, h > 0.3, 0.1),
        lambda m, h: h.index_put((FEW,), h[:3], accumulate=True),
        lambda m, h: h.index_add(0, FEW, h[:3] * 2),
        lambda m, h: torch.zeros_like(h).index_add_(0, FEW, h[:3]),
        lambda m, h: torch.zeros(4, m.n).to(h).index_add_(0, FEW, h[:3]),
        lambda m, h: h.index_copy(0, FEW, h[:3] * 3),
        lambda m, h: h.index_fill(0, FEW, 2.0),
        lambda m, h: h.scatter(0, FEW[:, None].expand(-1, h.shape[1]), h[:3] * 2),
        lambda m, h: h.scatter(0, FEW[:, None].expand_as(h[:3]), 0.5),
        lambda m, h: torch.zeros_like(h).scatter_add(0, FEW[:, None].repeat(1, h.shape[1]), h[:3]),
        lambda m, h: h.scatter_reduce(0, FEW[:, None].expand(-1, h.shape[1]), h[:3] * 2, "amax"),
        lambda m, h: h.masked_scatter(SOME.expand_as(h), h[:2] * 2),
        lambda m, h: h.slice_scatter(h[:2] * 2, 0, 1, 3),
        lambda m, h: h.select_scatter(h[0] * 2, 0, 1),
    ],
    ids="put number broadcast second two_indices mask own_mask accumulate add zeros_like zeros copy fill scatter "
    "scatter_value scatter_add scatter_reduce masked_scatter slice_scatter select_scatter".split(),
)
def test_what_is_written_goes_with_it(compute: Callable[..., Tensor]) -> None:
    found = check_exact(between(lambda m, h: compute(m, torch.relu(h)), n=8), rows())
    assert sizes(found) == {"a": 8}


@pytest.mark.parametrize(
    ("compute", "why"),
    [
        (lambda m, h: h.index_fill(1, torch.tensor([3]), 0.0), "written into by index"),
        (lambda m, h: written(h, (slice(None), torch.tensor([3])), 0.0), "written into by index"),
        (lambda m, h: h.index_add(0, FEW, torch.ones(3, 8).to(h)), "without neurons"),
        (lambda m, h: torch.zeros(4, 8).to(h).index_add(0, FEW, h[:3]), "without neurons"),
        (lambda m, h: written(torch.zeros(4, 8).to(h), FEW, h[:3]), "has no neurons"),
        (lambda m, h: written(h, torch.ones(4, 8, dtype=torch.bool), h.flatten()), "written into by index"),
        (lambda m, h: h.scatter(1, torch.zeros(4, 1, dtype=torch.long), 1.0), "written into by index"),
        (lambda m, h: h.scatter(0, torch.zeros(1, 3, dtype=torch.long), 1.0), "of another size"),
        (lambda m, h: h.masked_scatter(torch.ones(4, 8, dtype=torch.bool), h * 2), "by a mask"),
        (lambda m, h: h.masked_scatter(SOME.expand(4, 8), torch.ones(4, 8).to(h)), "has no neurons"),
        (lambda m, h: h.put(torch.tensor([3]), torch.ones(1).to(h)), "values decide"),
    ],
)  # fmt: skip
def test_what_is_written_into_stays(compute: Callable[..., Tensor], why: str) -> None:
    found = check_exact(between(compute), rows())
    assert "a" not in sizes(found)
    assert why in reason(found, "a")


def test_both_writers_of_a_tensor_are_one_layer() -> None:
    model = Sample(
        lambda m, x, where: m.b(m.a(x).masked_scatter(where[..., None].expand_as(m.a(x)), m.c(x)[:, :2])),
        a=nn.Linear(6, 8), c=nn.Linear(6, 8), b=nn.Linear(8, 3),
    )  # fmt: skip
    where = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 0, 0, 1]]).bool()
    found = check_exact(model, torch.randn(2, 5, 6), where, groups=["a"])
    assert found["c"] is found["a"]
