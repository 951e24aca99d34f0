import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tracker.meter
from tracker.meter import FIRING_SHARE, Meter, Scratch
from tracker.moments import Row


def block(x: torch.Tensor, axis: int, rows: torch.Tensor | None = None) -> torch.Tensor:
    meter = Meter(axis, Scratch())
    meter.add(x, rows)
    found = meter.block()
    assert found is not None
    return found


def check(found: torch.Tensor, values: np.ndarray, rtol: float = 1e-5) -> None:
    """Against float64 numpy; `values` has shape (count, channels)."""
    spread = values.std(0)
    scale = np.abs(values).max() + 1e-30
    np.testing.assert_array_equal(found[Row.COUNT].numpy(), len(values))
    np.testing.assert_allclose(found[Row.MEAN].numpy(), values.mean(0), rtol=0, atol=1e-6 * scale)
    np.testing.assert_allclose(found[Row.M2].numpy() / len(values), spread**2, rtol=rtol, atol=1e-12 * scale**2)
    np.testing.assert_array_equal(found[Row.LOW].numpy(), values.min(0))
    np.testing.assert_array_equal(found[Row.HIGH].numpy(), values.max(0))
    np.testing.assert_allclose(found[Row.MAGNITUDE].numpy() / len(values), np.abs(values).mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((9, 5), -1),
        ((3, 7, 5), -1),
        ((4, 5, 3, 3), -3),
        ((2, 5, 16, 16), -3),
        ((4, 5, 130), 1),
        ((5,), -1),
        ((5, 9), 0),
    ],
)
@pytest.mark.parametrize("piece", [16, 2**19])
def test_every_layout(shape: tuple[int, ...], axis: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker.meter, "_PIECE_ON_CPU", piece)
    x = torch.randn(shape)
    values = x.double().movedim(axis, -1).reshape(-1, shape[axis]).numpy()
    check(block(x, axis), values)
    rectified = block(x.relu(), axis)
    np.testing.assert_array_equal(rectified[Row.FIRED].numpy(), (values > 0).sum(0))
    check(rectified, np.maximum(values, 0))


def test_channels_last_and_other_strides() -> None:
    x = torch.randn(4, 5, 6, 6)
    values = x.double().movedim(1, -1).reshape(-1, 5).numpy()
    check(block(x.to(memory_format=torch.channels_last), -3), values)
    check(block(torch.randn(4, 6, 5, 6).transpose(1, 2).copy_(x), -3), values)


@settings(deadline=None, max_examples=40)
@given(st.floats(-1e4, 1e4), st.floats(1e-2, 1e3), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_a_large_mean_does_not_swallow_a_small_variance(mean: float, spread: float, rows: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(mean, spread, (rows, 3)).astype(np.float32)
    found = block(torch.from_numpy(values), -1)
    exact = values.astype(np.float64)
    # float32 carries 24 bits: what the distance of mean and spread leaves of them is all there is.
    lost = 2.0**-22 * (1 + abs(mean) / spread)
    np.testing.assert_allclose(found[Row.M2].numpy() / rows, exact.var(0), rtol=1e-4 + lost, atol=1e-12 * mean**2)


def test_a_distribution_that_drifts_far_from_where_it_began() -> None:
    meter = Meter(-1, Scratch())
    parts = [torch.randn(64, 4) + 20 * step for step in range(10)]
    for part in parts:
        meter.add(part)
    found = meter.block()
    assert found is not None
    check(found, torch.cat(parts).double().numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    x = (torch.randn(300, 4) * 3 + 1).to(dtype)
    check(block(x, -1), x.double().numpy())


def test_half_precision_is_summed_in_more() -> None:
    x = torch.full((70_000, 1), 1.0, dtype=torch.float16)  # a float16 sum overflows at 65,504
    assert block(x, -1)[Row.MAGNITUDE].item() == 70_000


def test_only_the_rows_asked_for_count() -> None:
    x = torch.randn(4, 6, 5)
    rows = torch.tensor([0, 3, 7, 23])
    check(block(x, -1, rows), x.flatten(0, 1)[rows].double().numpy())
    heads = torch.randn(4, 6, 2, 5)
    expected = heads.flatten(0, 1)[rows].reshape(-1, 5)
    check(block(heads, -1, rows), expected.double().numpy())
    by_head = heads.flatten(0, 1)[rows].transpose(1, 2).reshape(-1, 2)
    check(block(heads, 2, rows), by_head.double().numpy())


def test_no_rows_is_no_data() -> None:
    meter = Meter(-1, Scratch())
    meter.add(torch.randn(0, 5))
    meter.add(torch.randn(2, 3, 5), torch.tensor([], dtype=torch.int64))
    assert meter.block() is None


def test_small_values_of_signed_activations_do_not_fire() -> None:
    x = torch.tensor([[-1.0, 2.0], [0.5 * FIRING_SHARE, -0.5 * FIRING_SHARE], [1.0, 0.0]])
    assert block(x, -1)[Row.FIRED].tolist() == [2, 1]


def test_small_values_of_rectified_activations_fire() -> None:
    x = torch.tensor([[0.0, 2.0], [1e-30, 0.0], [1.0, 0.0]])
    assert block(x, -1)[Row.FIRED].tolist() == [2, 1]


def test_sizes_may_change_from_batch_to_batch() -> None:
    meter = Meter(-2, Scratch())
    parts = [torch.randn(3, 4, length) for length in (5, 200, 5)]
    for part in parts:
        meter.add(part)
    found = meter.block()
    assert found is not None
    check(found, torch.cat([p.movedim(1, -1).flatten(0, 1) for p in parts]).double().numpy())
    assert meter.block() is None


def test_nan_is_noticed_at_once() -> None:
    meter = Meter(-1, Scratch())
    meter.add(torch.tensor([[1.0, 2.0]]))
    assert not meter.bad
    meter.add(torch.tensor([[1.0, float("nan")]]))
    assert meter.bad
