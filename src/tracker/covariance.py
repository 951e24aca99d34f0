"""Covariance of the neurons of one group, for correlation: streaming, mergeable, and n² in memory.

State of a group of n neurons: a float64 matrix (n + 1, n + 1). Its first n rows and columns hold the sums of products
of deviations from the means, its last row the means and the count. Two states merge by Chan's formula in matrix form.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracker.errors import ConfigError
from tracker.meter import as_channels
from tracker.neuron_map import NeuronGroup

LIMIT_BYTES = 2 * 2**30
_VALUES_AT_ONCE = 2**22


def check_memory(groups: Iterable[NeuronGroup], limit: int = LIMIT_BYTES) -> None:
    """Raise `ConfigError` if the covariances of these groups would take more than `limit` bytes."""
    needed = {group.name: 8 * (group.size + 1) ** 2 for group in groups}
    total = sum(needed.values())
    if total > limit:
        largest = max(needed, key=needed.__getitem__)
        raise ConfigError(
            f"The covariances of {len(needed)} layers need {total / 1e9:.2f} GB, {needed[largest] / 1e9:.2f} GB of it "
            f"for '{largest}'; the limit is {limit / 1e9:.2f} GB.",
            hint="Name fewer layers with groups=[...], or raise covariance_limit (bytes).",
        )


def comoments(x: Tensor, axis: int, positions: Tensor | None, rows: Tensor | None) -> Tensor:
    """The state of one tensor: every position of a neuron, and every row and pixel, is a sample.

    `positions` (size, k) are the channels of each neuron along `axis`, None where both are the same; `rows` picks
    tokens. In float64 throughout: matrix products in float32 may be run at lower precision by a setting of the user's.
    """
    data, rows = as_channels(x.detach(), axis, rows)
    count = data.shape[0] if rows is None else rows.numel()
    size = data.shape[1] if positions is None else positions.shape[0]
    state = torch.zeros(size + 1, size + 1, dtype=torch.float64, device=x.device)
    step = max(1, _VALUES_AT_ONCE // max(1, data.shape[1] * data.shape[2]))
    for start in range(0, count, step):
        piece = data[start : start + step] if rows is None else data.index_select(0, rows[start : start + step])
        if positions is not None:
            piece = piece.index_select(1, positions.flatten()).view(len(piece), size, -1)
        samples = piece.double().movedim(1, 2).reshape(-1, size)
        mean = samples.mean(0)
        samples = samples - mean
        added = torch.zeros_like(state)
        added[:-1, :-1] = samples.T @ samples
        added[-1, :-1] = mean
        added[-1, -1] = len(samples)
        state = merge(state, added)
    return state


def merge(one: Tensor, other: Tensor) -> Tensor:
    """The state of the data of both."""
    merged = one + other
    count = one[-1, -1] + other[-1, -1]
    share = other[-1, -1] / count.clamp(min=1)
    step = other[-1, :-1] - one[-1, :-1]
    merged[:-1, :-1] += torch.outer(step, step) * (one[-1, -1] * share)
    merged[-1, :-1] = one[-1, :-1] + step * share
    return merged


def merge_stacked(states: Tensor) -> Tensor:
    """The state of the data of all, from a stack of shape (ranks, n + 1, n + 1)."""
    merged = states[0]
    for state in states[1:]:
        merged = merge(merged, state)
    return merged


def correlation(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The correlation matrix (n, n) of a covariance matrix; zero for neurons that never vary."""
    deviation = np.sqrt(np.diag(covariance))
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    return np.clip(covariance * scale[:, None] * scale[None, :], -1.0, 1.0)


def redundant_pairs(correlations: NDArray[np.float64], threshold: float) -> list[tuple[int, int, float]]:
    """Pairs (i, j, correlation) with i < j whose correlation is beyond ±`threshold`, the closest first."""
    one, other = np.nonzero(np.triu(np.abs(correlations) > threshold, 1))
    values = correlations[one, other]
    order = np.argsort(-np.abs(values), kind="stable")
    return [(int(one[i]), int(other[i]), float(values[i])) for i in order]
