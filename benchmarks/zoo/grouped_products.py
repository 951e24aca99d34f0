"""The grouped product of a mixture of experts in float64, which PyTorch's own operator refuses on processors."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("aten", "IMPL")


def accept_float64() -> None:
    """Let `aten::_grouped_mm` take every type, for the rest of this process."""
    _LIBRARY.impl("_grouped_mm", _grouped_product, "CPU", allow_override=True)


def _grouped_product(
    a_MK: Tensor, b_EKN: Tensor, offs: Tensor | None = None, bias: Tensor | None = None, out_dtype: Any = None
) -> Tensor:
    """Rows up to `offs[0]` times the first matrix, those up to `offs[1]` times the second, and so on."""
    if a_MK.dim() != 2 or b_EKN.dim() != 3 or offs is None or bias is not None:
        raise NotImplementedError("only rows in groups times a matrix for every group")
    starts = [0, *offs.tolist()]
    product = a_MK.new_zeros(a_MK.shape[0], b_EKN.shape[-1])
    for expert, (start, end) in enumerate(pairwise(starts)):
        product[start:end] = a_MK[start:end] @ b_EKN[expert]
    return product if out_dtype is None else product.to(out_dtype)
