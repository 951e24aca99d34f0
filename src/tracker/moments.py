"""Blocks of statistics, and how two become one.

A *block* is a float64 tensor of shape (7, n): one column a neuron, one row a statistic. Blocks of different data merge
exactly (Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances",
eq. 2.1), so streams, batches and ranks all add up the same way.
"""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor


class Row(IntEnum):
    """What each row of a block holds."""

    COUNT = 0
    MEAN = 1
    M2 = 2  # sum of squared deviations from the mean
    LOW = 3
    HIGH = 4
    MAGNITUDE = 5  # sum of magnitudes
    FIRED = 6  # number of values that fired


def empty(size: int) -> Tensor:
    """The block of no data: merging it with another gives the other."""
    block = torch.zeros(len(Row), size, dtype=torch.float64)
    block[Row.LOW] = math.inf
    block[Row.HIGH] = -math.inf
    return block


def merge(one: Tensor, other: Tensor) -> Tensor:
    """The block of the data of both, shape (7, n)."""
    added = one + other  # right for the counts and sums; the other rows are set below
    share = other[Row.COUNT] / added[Row.COUNT].clamp(min=1)
    step = other[Row.MEAN] - one[Row.MEAN]
    added[Row.MEAN] = one[Row.MEAN] + step * share
    added[Row.M2] += step.square() * one[Row.COUNT] * share
    torch.minimum(one[Row.LOW], other[Row.LOW], out=added[Row.LOW])
    torch.maximum(one[Row.HIGH], other[Row.HIGH], out=added[Row.HIGH])
    return added


def merge_stacked(blocks: Tensor) -> Tensor:
    """The block of the data of all, from a stack of shape (ranks, 7, n): the reduction over ranks."""
    merged = blocks[0]
    for block in blocks[1:]:
        merged = merge(merged, block)
    return merged


def pool(block: Tensor, positions: Tensor) -> Tensor:
    """A block over neurons, from a block over channels: `positions` (size, k) are the channels of each neuron."""
    size, k = positions.shape
    gathered = block.index_select(1, positions.flatten())
    if k == 1:
        return gathered
    gathered = gathered.view(len(Row), size, k)
    pooled = gathered.sum(2)
    pooled[Row.MEAN] /= k  # all channels of one tensor have the same count
    deviation = gathered[Row.MEAN] - pooled[Row.MEAN].unsqueeze(1)
    pooled[Row.M2] += (gathered[Row.COUNT] * deviation.square()).sum(1)
    pooled[Row.LOW] = gathered[Row.LOW].amin(1)
    pooled[Row.HIGH] = gathered[Row.HIGH].amax(1)
    return pooled
