"""Solutions against plain least squares on the rows themselves."""

import pytest
import torch
from torch import Tensor

from pruner.compensation.moments import Moments
from pruner.compensation.regression import solve
from pruner.compensation.sums import MomentSums

KEPT = torch.tensor([0, 2, 3, 5])


def rows(count: int = 400, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """What is read, the weights, and what is written: (count, 6), (3, 6), (count, 3)."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=random, dtype=torch.float64) + 1
    x = x @ torch.randn(6, 6, generator=random, dtype=torch.float64)
    w = torch.randn(3, 6, generator=random, dtype=torch.float64)
    return x, w, x @ w.T + torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def moments(x: Tensor, y: Tensor) -> Moments:
    sums = MomentSums(x.shape[1], y.shape[1], x.device, x.dtype)
    sums.update(x, y)
    return sums.moments()


def test_with_nothing_removed_the_weights_are_what_they_were() -> None:
    x, w, y = rows()
    found = solve(moments(x, y), None, w, torch.arange(6), bias=True, offset=torch.tensor([1.0, -2.0, 0.5]))
    torch.testing.assert_close(found.matrix, w, rtol=1e-9, atol=1e-12)
    assert found.shift is not None
    assert float(found.shift.abs().max()) < 1e-9


def test_it_is_affine_least_squares_where_the_ridge_is_small() -> None:
    x, w, y = rows()
    found = solve(moments(x, y), moments(x, y), w, KEPT, bias=True, ridges=(1e-12,), methods=("least squares",))
    design = torch.cat([x[:, KEPT], torch.ones(len(x), 1, dtype=x.dtype)], 1)
    expected = torch.linalg.lstsq(design, y).solution
    torch.testing.assert_close(found.matrix[:, KEPT], expected[:-1].T, rtol=1e-6, atol=1e-8)
    assert found.shift is not None
    torch.testing.assert_close(found.shift, expected[-1], rtol=1e-6, atol=1e-8)
    error = (design @ expected - y).square().sum(1).mean()
    assert found.errors["least squares"] == pytest.approx(
        float(error / (y - y.mean(0)).square().sum(1).mean()), rel=1e-6
    )
    assert not found.matrix[:, [1, 4]].any()


def test_with_an_endless_ridge_only_the_bias_changes() -> None:
    x, w, y = rows()
    found = solve(moments(x, y), moments(x, y), w, KEPT, bias=True, ridges=(1e15,), methods=("least squares",))
    torch.testing.assert_close(found.matrix[:, KEPT], w[:, KEPT])
    assert found.shift is not None
    torch.testing.assert_close(found.shift, y.mean(0) - w[:, KEPT] @ x[:, KEPT].mean(0))


def test_without_a_bias_it_is_least_squares_through_the_origin() -> None:
    x, w, y = rows()
    found = solve(moments(x, y), moments(x, y), w, KEPT, bias=False, ridges=(1e-12,), methods=("least squares",))
    torch.testing.assert_close(
        found.matrix[:, KEPT], torch.linalg.lstsq(x[:, KEPT], y).solution.T, rtol=1e-6, atol=1e-8
    )
    assert found.shift is None


def test_rows_held_out_decide_whether_to_solve_at_all() -> None:
    x, w, y = rows(count=5)  # fewer rows than columns: whatever is fitted to them is noise
    noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 50
    more, _, wanted = rows(seed=0)
    found = solve(moments(x, y + noise), moments(more, wanted), w, KEPT, bias=True, ridges=(1e-9,))
    assert found.method != "least squares"
    assert found.errors[found.method] == min(found.errors.values())


@pytest.mark.parametrize("bias", [True, False])
def test_columns_that_are_constant_zero_do_no_harm(bias: bool) -> None:
    x, w, y = rows()
    x[:, 3] = 0
    found = solve(moments(x, y), moments(x, y), w, KEPT, bias=bias)
    assert torch.isfinite(found.matrix).all()
