"""Views move labels: whatever is split, merged, turned and repeated, sliced equals masked."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.tracker.equivalence import check_exact
from tests.tracker.samples import Sample, between, convolved, image, reason, rows, sizes
from torch import Tensor, nn
from torch.nn import functional as F


@pytest.mark.parametrize(
    ("compute", "width"),
    [
        (lambda m, h: h.t().relu().t(), 8),
        (lambda m, h: h.transpose(0, 1).relu().T, 8),
        (lambda m, h: h[None].permute(2, 0, 1).relu().permute(1, 2, 0)[0], 8),
        (lambda m, h: h.unsqueeze(1).relu().squeeze(1), 8),
        (lambda m, h: h.movedim(0, 1).relu().swapaxes(0, 1), 8),
        (lambda m, h: h[:, None].expand(-1, 5, -1).relu().mean(1), 8),
        (lambda m, h: h.flip(1).relu(), 8),
        (lambda m, h: h.flip(0).relu(), 8),
        (lambda m, h: h.unflatten(1, (m.two, -1)).flip(1).relu().flatten(1), 4),
        (lambda m, h: h.roll(1, 0).relu(), 8),
        (lambda m, h: h.view(-1, m.two, h.shape[1] // m.two).transpose(1, 2).reshape(h.shape).relu(), 4),
        (lambda m, h: h.reshape(4, m.two, -1).relu().view(-1, h.size(1)), 4),
        (lambda m, h: h.view(4, 1, h.size(1), 1).relu().view(4, -1), 8),
        (lambda m, h: h.view_as(h * 2).relu().reshape_as(h), 8),
        (lambda m, h: h.unflatten(1, (-1, m.two)).relu().flatten(1), 4),
        (lambda m, h: torch.view_as_real(torch.complex(h, h)).sum(-1), 8),
        (lambda m, h: torch.view_as_complex(torch.stack([h, h], -1)).real, 8),
        (lambda m, h: h.ravel().view(4, -1).relu(), 8),
    ],
    ids="t transpose permute unsqueeze movedim expand flip flip_rows flip_grid roll_rows shuffle grid ones view_as "
    "unflatten real complex ravel".split(),
)
def test_views(compute: Callable[..., Tensor], width: int) -> None:
    found = check_exact(between(compute, two=2), rows())
    assert sizes(found) == {"a": width}


@pytest.mark.parametrize(
    ("compute", "read", "width"),
    [
        (lambda m, h: h.repeat(1, 2).relu(), 16, 8),
        (lambda m, h: h.tile(1, 3).relu(), 24, 8),
        (lambda m, h: h.repeat_interleave(2, 1).relu(), 16, 8),
        (lambda m, h: h.repeat(2, 1).relu(), 8, 8),
        (lambda m, h: h[:, :, None].expand(-1, -1, 3).reshape(4, -1).relu(), 24, 8),
        (lambda m, h: (h[:, :, None] * m.c(h)[:, None, :]).flatten(1), 40, 8),
    ],
    ids="repeat tile interleave rows expand outer".split(),
)
def test_copies_and_products_of_axes(compute: Callable[..., Tensor], read: int, width: int) -> None:
    found = check_exact(between(compute, read=read, c=nn.Linear(8, 5)), rows())
    assert sizes(found) == {"a": width}


@pytest.mark.parametrize(
    ("compute", "why"),
    [
        (lambda m, h: h.view(4, 2, 4).relu().flatten(1), "constant size 4"),
        (lambda m, h: h.view(-1, 8), "constant size 8"),
        (lambda m, h: h.view(4, m.two, -1).transpose(1, 2).reshape(4, 8), "constant size 8"),
        (lambda m, h: h.reshape(-1, int(h.shape[1])), "constant size 8"),
        (lambda m, h: h.roll(1, 1), "is rolled"),
        (lambda m, h: h.roll(1).view(4, -1), "is rolled"),
        (lambda m, h: h.expand(4, 8), "constant size 8"),
        (lambda m, h: h.as_strided((8, 4), (1, 8)).T, "viewed by strides"),
    ],
    ids="grid view shuffle int roll roll_all expand strides".split(),
)
def test_sizes_that_stay(compute: Callable[..., Tensor], why: str) -> None:
    found = check_exact(between(compute, two=2), rows())
    assert not len(found)
    assert why in reason(found, "a")


def test_a_square_viewed_by_strides_is_not_taken_for_itself() -> None:
    found = check_exact(between(lambda m, h: h.as_strided((8, 8), (1, 8))), torch.randn(8, 6))
    assert "viewed by strides" in reason(found, "a")


def test_flattened_pictures_take_a_run_of_columns_for_every_channel() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        result: Tensor = m.b(F.relu(m.a(x)).flatten(1)) + m.c(m.a(x).permute(0, 2, 3, 1).reshape(2, -1))
        return result

    model = Sample(compute, a=nn.Conv2d(3, 5, 1), b=nn.Linear(45, 3), c=nn.Linear(45, 3))
    group = check_exact(model, torch.randn(2, 3, 3, 3), groups=["a"])["a"]
    slices = {site.parameter: positions.tolist() for site, positions in group.slices([1, 4]).items()}
    assert slices["b.weight"] == [*range(9, 18), *range(36, 45)]
    assert slices["c.weight"] == sorted([*range(1, 45, 5), *range(4, 45, 5)])


def test_the_width_as_the_product_of_all_sizes_follows() -> None:
    def compute(m: Any, h: Tensor) -> Tensor:
        count = 1
        for size in h.size()[1:]:
            count *= size
        return h.view(-1, count)[:, :, None, None].expand(-1, -1, 1, 1)

    model = convolved(lambda m, h: compute(m, F.relu(h)), read=8 * 64)
    assert sizes(check_exact(model, image())) == {"a": 8}


def test_squeeze_leaves_an_axis_that_it_would_take_away() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        result: Tensor = m.b(m.a(x).mean((2, 3), keepdim=True).squeeze())
        return result

    found = check_exact(Sample(compute, a=nn.Conv2d(3, 8, 1), b=nn.Linear(8, 3)), image())
    assert sizes(found) == {"a": 7}
    assert "squeeze" in reason(found, "a")


def test_the_axis_with_more_neurons_is_chosen_and_never_both() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        result: Tensor = m.b((m.a(x)[:, :, None] * m.c(x)[:, None, :]).flatten(1))
        return result

    model = Sample(compute, a=nn.Linear(6, 4), c=nn.Linear(6, 5), b=nn.Linear(20, 3))
    found = check_exact(model, rows())
    assert sizes(found) == {"c": 5}
    assert "shares a view" in reason(found, "a")


def test_a_shuffle_that_is_undone_ties_nothing() -> None:
    def compute(m: Any, h: Tensor) -> Tensor:
        turned = h.view(4, m.two, -1).transpose(1, 2)
        return F.relu(turned.transpose(1, 2).reshape(4, -1))

    assert sizes(check_exact(between(compute, two=2), rows())) == {"a": 4}
