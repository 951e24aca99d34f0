"""The patterns in a weight matrix: where its zeros lie, how uneven its weights are, and how many directions it uses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEAR_ZERO = 1e-3
"""A weight is near zero below this share of the root mean square of its matrix."""
OUTLIER = 6.0
"""A column stands out when its norm is so many times the median column's (Dettmers et al. 2022 find such features)."""
_BLOCK = 4
_MOST_RANKED = 4096


@dataclass(frozen=True)
class Patterns:
    """Shares are from 0 to 1, of rows, columns, 4 × 4 blocks, or groups of four weights along a row.

    `gini` is 0 where all magnitudes are the same and near 1 where few hold everything (Hurley & Rickard 2009).
    `effective_rank` is exp of the entropy of the normalised singular values (Roy & Vetterli 2007), None where both
    sides exceed 4096. `outliers` are the columns whose norm is six times the median's, or more.
    """

    zero: float
    near_zero: float
    zero_rows: float
    zero_columns: float
    zero_blocks: float
    two_of_four: float
    gini: float
    effective_rank: float | None
    outliers: tuple[int, ...]


def patterns_of(weight: Tensor) -> Patterns:
    """The patterns of a matrix; the first dimension of larger weights is its rows."""
    matrix = weight.detach().float().flatten(1)
    zero = matrix == 0
    scale = matrix.square().mean().sqrt()
    norms = torch.linalg.vector_norm(matrix, dim=0)
    median = norms.median()
    outliers = (norms >= OUTLIER * median).nonzero().flatten().tolist() if median > 0 else []
    return Patterns(
        zero=_share(zero),
        near_zero=_share(matrix.abs() < NEAR_ZERO * scale),
        zero_rows=_share(zero.all(1)),
        zero_columns=_share(zero.all(0)),
        zero_blocks=_share(_blocks(zero)),
        two_of_four=_share(_fours(zero) >= 2),
        gini=_gini(matrix.abs().flatten()),
        effective_rank=_effective_rank(matrix),
        outliers=tuple(outliers),
    )


def _share(flags: Tensor) -> float:
    return float(flags.float().mean()) if flags.numel() else 0.0


def _blocks(zero: Tensor) -> Tensor:
    """Whether all of a block is zero; what is left over at the edges does not count."""
    rows, columns = (size // _BLOCK * _BLOCK for size in zero.shape)
    cut = zero[:rows, :columns]
    return cut.unflatten(0, (-1, _BLOCK)).unflatten(2, (-1, _BLOCK)).all(3).all(1) if cut.numel() else cut


def _fours(zero: Tensor) -> Tensor:
    columns = zero.shape[1] // 4 * 4
    counts: Tensor = zero[:, :columns].unflatten(1, (-1, 4)).sum(2)
    return counts


def _gini(magnitudes: Tensor) -> float:
    values = magnitudes.double().sort().values
    total = values.sum()
    if total == 0 or len(values) < 2:
        return 0.0
    n = len(values)
    place = torch.arange(1, n + 1, dtype=torch.float64, device=values.device)
    return float((2 * (place * values).sum() / (n * total)) - (n + 1) / n)


def _effective_rank(matrix: Tensor) -> float | None:
    if min(matrix.shape) == 0 or min(matrix.shape) > _MOST_RANKED:
        return None
    small = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    values = torch.linalg.eigvalsh(small.double()).clamp(min=0).sqrt()
    total = values.sum()
    if total == 0:
        return 0.0
    shares = values / total
    return float(torch.exp(-(shares * shares.clamp(min=1e-300).log()).sum()))
