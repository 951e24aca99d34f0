"""Transforms of whole axes: Fourier transforms and what is computed from matrices as such."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from tracker.operators.registry import operator_rule

if TYPE_CHECKING:
    from tracker.flow import Flow

_OF_A_MATRIX = (
    "_linalg_det _linalg_slogdet linalg_inv_ex linalg_cholesky_ex _linalg_svd _linalg_eigh linalg_eig _linalg_eigvals "
    "linalg_qr linalg_lu linalg_lu_factor_ex linalg_matrix_exp linalg_pinv cholesky cholesky_inverse"
).split()


@operator_rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier(flow: Flow, out: Tensor, x: Tensor, dims: Sequence[int], *args: Any, **kwargs: Any) -> None:
    """A Fourier transform over `dims`; the other axes pass."""
    for dim in dims:
        flow.fix(x, dim, "is Fourier-transformed")
    flow.put(out, flow.blocks(x))


@operator_rule(*_OF_A_MATRIX)
def of_a_matrix(flow: Flow, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """What is computed from each matrix in a batch as a whole."""
    for axis in (-2, -1):
        flow.fix(x, axis, "is an axis of a matrix that is taken as a whole")
    _pass_leading(flow, out, x)


@operator_rule("linalg_solve_triangular", "triangular_solve", "cholesky_solve", "_linalg_solve_ex", "linalg_lstsq")
def system(flow: Flow, out: Any, x: Tensor, y: Tensor, *args: Any, **kwargs: Any) -> None:
    """The solution of a system of equations for each pair of matrices in a batch."""
    if x.dim() != y.dim():
        for tensor in (x, y):
            flow.freeze(tensor, "is a system of equations")
        return
    for tensor in (x, y):
        for axis in (-2, -1):
            flow.fix(tensor, axis, "is an axis of a system of equations")
    for axis in range(x.dim() - 2):
        flow.tie_axes(x, axis, y, axis, "is in a system of equations with what has no neurons")
    _pass_leading(flow, out, x if flow.blocks(x) else y)


def _pass_leading(flow: Flow, out: Any, x: Tensor) -> None:
    for tensor in tree_leaves(out):
        if isinstance(tensor, Tensor):
            flow.put(tensor, [block for block in flow.blocks(x) if tensor.shape[: x.dim() - 2] == x.shape[:-2]])
