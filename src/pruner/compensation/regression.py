"""The weights that stay take over from those that go: affine least squares, drawn towards the weights as they were.

For a consumer y = W x + b of which only the columns S are left, and y as the dense model wrote it:

    W̃ = W_S + (C_yx − W_S C_SS) (C_SS + λI)⁻¹,   b̃ = μ_y − W̃ μ_S,

the minimum of E‖y − W̃ x_S − b̃‖² + λ‖W̃ − W_S‖². With nothing removed and the same inputs it returns W itself; as λ grows
it becomes plain removal with the bias of FLAP (An et al. 2024, eq. 5). λ and whether to do it are decided on rows
that the solution has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pruner.compensation.moments import Moments

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""λ, relative to the mean diagonal of C_SS."""

Method = Literal["least squares", "bias", "none"]


@dataclass(frozen=True)
class Solution:
    """The weights of a consumer after a removal.

    `matrix` has the shape of the dense one, zero in the columns that are gone; `shift` is what to add to its bias
    (None where it has none). `errors` are the mean square errors of every method on rows held out, as a share of the
    variance of what is wanted, `ridge` the λ chosen, relative to the mean diagonal.
    """

    matrix: Tensor
    shift: Tensor | None
    method: Method
    ridge: float
    errors: dict[Method, float]
    rows: int


def solve(
    fit: Moments,
    held: Moments | None,
    matrix: Tensor,
    kept: Tensor,
    *,
    bias: bool,
    offset: Tensor | None = None,
    ridges: Sequence[float] = RIDGES,
    methods: Sequence[Method] = ("least squares", "bias", "none"),
) -> Solution:
    """What a consumer's weights should be when only the columns `kept` (indices) are left.

    Args:
        fit: moments to solve from: x as the consumer reads it now, y as the dense model wrote it.
        held: moments of other rows, to choose by; None: those of `fit` themselves, and the middle ridge.
        matrix: W, shape (rows, columns).
        bias: whether the consumer can take a constant. If not, everything is about zero instead of the means.
        offset: the constant that the consumer adds now, part of y; None for zero.
        ridges, methods: what to choose from.
    """
    fit = fit.double()
    judge = fit if held is None or held.count < 1 else held.double()
    w = matrix.double()
    constant = torch.zeros_like(fit.mean_y) if offset is None else offset.to(fit.mean_y)
    if not bias:
        fit, judge = (_about(moments, constant) for moments in (fit, judge))
    old = w[:, kept]
    scale = _scale(judge, constant)
    found: dict[Method, tuple[float, float]] = {}
    tried: dict[float, float] = {}
    if "least squares" in methods and len(kept):
        searched = ridges if held is not None else (1e-3,)
        tried = _search(fit, judge, old, kept, searched, bias)
        best = min(tried, key=tried.__getitem__)
        found["least squares"] = tried[best], best
    if "bias" in methods and bias:
        found["bias"] = _error(judge, old, fit.mean_y - old @ fit.mean_x[kept], kept), 0.0
    if "none" in methods or not found:
        found["none"] = _error(judge, old, constant if bias else torch.zeros_like(constant), kept), 0.0
    method = min(found, key=lambda name: found[name][0])
    new, shift = old, None
    if method == "least squares":
        new = _weights(fit, old, kept, found[method][1])
    if bias:
        shift = torch.zeros_like(constant) if method == "none" else fit.mean_y - new @ fit.mean_x[kept] - constant
    full = torch.zeros_like(w)
    full[:, kept] = new
    return Solution(
        matrix=full,
        shift=shift,
        method=method,
        ridge=found[method][1],
        errors={name: error / scale for name, (error, _) in found.items()},
        rows=int(fit.count),
    )


def _about(moments: Moments, constant: Tensor) -> Moments:
    """About zero, with the constant that the consumer goes on adding taken out of what is wanted."""
    shifted = Moments(moments.count, moments.mean_x, moments.mean_y - constant, moments.xx, moments.yx, moments.yy)
    return shifted.about_zero()


def _scale(moments: Moments, constant: Tensor) -> float:
    return max(moments.energy, 1e-12 * float((moments.mean_y + constant).square().sum()), 1e-300)


def _search(
    fit: Moments, judge: Moments, old: Tensor, kept: Tensor, ridges: Sequence[float], bias: bool
) -> dict[float, float]:
    """The error at each ridge: from the middle to where it falls, since it falls and then rises."""
    ordered = sorted(ridges)
    tried: dict[float, float] = {}

    def error(index: int) -> float:
        ridge = ordered[index]
        if ridge not in tried:
            new = _weights(fit, old, kept, ridge)
            shift = fit.mean_y - new @ fit.mean_x[kept] if bias else torch.zeros_like(fit.mean_y)
            tried[ridge] = _error(judge, new, shift, kept)
        return tried[ridge]

    at = len(ordered) // 2
    for step in (-1, 1):
        while 0 <= at + step < len(ordered) and error(at + step) < error(at):
            at += step
    error(at)
    return tried


def _weights(moments: Moments, old: Tensor, kept: Tensor, ridge: float) -> Tensor:
    xx = moments.xx[kept][:, kept]
    residual = moments.yx[:, kept] - old @ xx
    mean = float(xx.diagonal().mean())
    if mean <= 0 or not math.isfinite(mean):
        return old
    system = xx.clone()
    system.diagonal().add_(ridge * mean)
    factor, info = torch.linalg.cholesky_ex(system)
    if int(info):
        system.diagonal().add_(mean * 1e-2)
        factor = torch.linalg.cholesky(system)
    return old + torch.cholesky_solve(residual.T, factor).T


def _error(judge: Moments, new: Tensor, constant: Tensor, kept: Tensor) -> float:
    """E‖y − W̃ x_S − b̃‖² from moments alone."""
    xx, yx = judge.xx[kept][:, kept], judge.yx[:, kept]
    bias = judge.mean_y - new @ judge.mean_x[kept] - constant
    spread = judge.yy.sum() - 2 * (new * yx).sum() + ((new @ xx) * new).sum()
    return float((spread + bias.square().sum()).clamp(min=0))
