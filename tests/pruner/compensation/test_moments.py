"""Sums over batches and ranks against the moments of all rows at once."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pruner.compensation.moments import Moments, pooled
from pruner.compensation.sums import MomentSums


def rows(seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(101, 4, generator=random) + 3, torch.randn(101, 2, generator=random) - 1


def sums(x: Tensor, y: Tensor, parts: int = 1) -> MomentSums:
    found = MomentSums(4, 2, x.device, x.dtype)
    for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
        found.update(a, b)
    return found


def check(found: Moments, x: Tensor, y: Tensor) -> None:
    everything = np.cov(x.numpy().T, y.numpy().T, ddof=0)
    assert found.count == len(x)
    np.testing.assert_allclose(found.mean_x, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.mean_y, y.mean(0), rtol=1e-4)
    np.testing.assert_allclose(found.xx, everything[:4, :4], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.yx, everything[4:, :4], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.yy, everything[4:, 4:].diagonal(), rtol=1e-4)


@pytest.mark.parametrize("parts", [1, 7, 101])
def test_batches_add_up(parts: int) -> None:
    x, y = rows()
    check(sums(x, y, parts).moments(), x, y)


def test_two_sums_merge_and_two_moments_pool() -> None:
    x, y = rows()
    one, other = sums(x[:30], y[:30]), sums(x[30:], y[30:])
    check(pooled(one.moments(), other.moments()), x, y)
    one.merge(other)
    check(one.moments(), x, y)


def test_an_empty_batch_and_an_empty_part_change_nothing() -> None:
    x, y = rows()
    found = sums(x, y)
    found.update(x[:0], y[:0])
    check(found.moments(), x, y)
    check(pooled(found.moments(), sums(x[:0], y[:0]).moments()), x, y)


def test_about_zero() -> None:
    x, y = rows()
    found = sums(x, y).moments().about_zero()
    np.testing.assert_allclose(found.xx, x.T @ x / len(x), rtol=1e-5)
    np.testing.assert_allclose(found.yx, y.T @ x / len(x), rtol=1e-4)


def test_what_ranks_have_gathered_is_merged() -> None:
    x, y = rows()
    found = sums(x[:30], y[:30])
    other = sums(x[30:], y[30:])
    for name in ("count", "mean_x", "mean_y", "xx", "yx", "yy"):  # as torchmetrics leaves it after gathering
        setattr(found, name, torch.stack([getattr(found, name), getattr(other, name)]))
    gathered = found.compute()
    assert float(gathered["count"]) == 101
    torch.testing.assert_close(gathered["mean_x"], x.mean(0))
