import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracker.moments import Row, empty, merge, merge_stacked, pool


def block_of(values: np.ndarray) -> torch.Tensor:
    """The definition: `values` has shape (count, neurons)."""
    mean = values.mean(0)
    rows = (
        np.full(values.shape[1], float(len(values))),
        mean,
        ((values - mean) ** 2).sum(0),
        values.min(0),
        values.max(0),
        np.abs(values).sum(0),
        (values != 0).sum(0).astype(float),
    )
    return torch.from_numpy(np.stack(rows))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e3),
    st.integers(0, 2**32 - 1),
)
def test_merging_pieces_gives_the_block_of_the_whole(sizes: list[int], mean: float, spread: float, seed: int) -> None:
    values = np.random.default_rng(seed).normal(mean, spread, (sum(sizes), 3))
    pieces = [block_of(piece) for piece in np.split(values, np.cumsum(sizes)[:-1])]
    merged = merge_stacked(torch.stack(pieces))
    expected = block_of(values)
    torch.testing.assert_close(merged[Row.MEAN], expected[Row.MEAN], rtol=1e-12, atol=1e-12 * (abs(mean) + spread))
    tolerance = 1e-9 * (spread**2 + 1e-6 * mean**2 * 1e-3) * len(values)
    torch.testing.assert_close(merged[Row.M2], expected[Row.M2], rtol=1e-9, atol=tolerance)
    for row in (Row.COUNT, Row.LOW, Row.HIGH, Row.FIRED):
        assert torch.equal(merged[row], expected[row])
    torch.testing.assert_close(merged[Row.MAGNITUDE], expected[Row.MAGNITUDE])


def test_no_data_changes_nothing() -> None:
    block = block_of(np.random.default_rng(0).normal(size=(4, 3)))
    assert torch.equal(merge(empty(3), block), block)
    assert torch.equal(merge(block, empty(3)), block)


def test_no_data_at_all_stays_no_data() -> None:
    assert torch.equal(merge(empty(2), empty(2)), empty(2))


@pytest.mark.parametrize("k", [1, 4])
def test_pooling_is_the_block_of_all_positions(k: int) -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, (7, 8))
    positions = np.random.default_rng(1).permutation(8)[: 8 // k * k].reshape(-1, k)
    pooled = pool(block_of(values), torch.from_numpy(positions))
    expected = block_of(np.stack([values[:, p].ravel() for p in positions], 1))
    torch.testing.assert_close(pooled, expected)
