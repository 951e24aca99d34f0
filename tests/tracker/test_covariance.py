import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tracker.watched_models import CNN, CNN_INPUT

import tracker.covariance
from tracker.covariance import check_memory, comoments, correlation, merge_stacked, redundant_pairs
from tracker.discover import discover
from tracker.errors import ConfigError


def covariance_of(state: torch.Tensor) -> np.ndarray:
    return (state[:-1, :-1] / state[-1, -1]).numpy()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.floats(-1e3, 1e3), st.integers(0, 2**32 - 1))
def test_pieces_merge_to_the_covariance_of_the_whole(sizes: list[int], mean: float, seed: int) -> None:
    values = np.random.default_rng(seed).normal(mean, 2.0, (sum(sizes), 4))
    pieces = np.split(values, np.cumsum(sizes)[:-1])
    merged = merge_stacked(torch.stack([comoments(torch.from_numpy(p), -1, None, None) for p in pieces]))
    expected = np.cov(values.T, bias=True)
    np.testing.assert_allclose(covariance_of(merged), expected, rtol=1e-9, atol=1e-9 * max(1.0, abs(mean)))
    assert merged[-1, -1] == len(values)


@pytest.mark.parametrize("at_once", [8, 2**22])
def test_positions_rows_and_pixels_are_samples(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker.covariance, "_VALUES_AT_ONCE", at_once)
    pixels = torch.randn(3, 4, 5, 5)
    values = pixels.movedim(1, -1).reshape(-1, 4).numpy()
    np.testing.assert_allclose(
        covariance_of(comoments(pixels, -3, None, None)), np.cov(values.T, bias=True), rtol=1e-5, atol=1e-7
    )
    tokens, rows = torch.randn(3, 5, 6), torch.tensor([0, 4, 9, 14])
    heads = torch.tensor([[0, 1, 2], [5, 4, 3]])
    values = tokens.flatten(0, 1)[rows][:, heads].movedim(1, -1).reshape(-1, 2).numpy()
    np.testing.assert_allclose(
        covariance_of(comoments(tokens, -1, heads, rows)), np.cov(values.T, bias=True), rtol=1e-5, atol=1e-7
    )


def test_correlation_of_what_never_varies_is_zero() -> None:
    found = correlation(np.array([[4.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(found, [[1, 1, 0], [1, 1, 0], [0, 0, 0]])


def test_redundant_pairs_come_closest_first() -> None:
    matrix = np.array([[1.0, 0.96, -0.99], [0.96, 1.0, 0.5], [-0.99, 0.5, 1.0]])
    assert redundant_pairs(matrix, 0.95) == [(0, 2, -0.99), (0, 1, 0.96)]
    assert redundant_pairs(matrix, 0.99) == []


def test_too_much_memory_is_refused_with_the_numbers() -> None:
    groups = list(discover(CNN(), torch.randn(CNN_INPUT)))
    check_memory(groups, 2000)
    with pytest.raises(ConfigError, match=r"3 layers need 0.00 GB.*for 'fc1'; the limit is 0.00 GB.*groups="):
        check_memory(groups, 1000)
