"""Weights kept as a direction and a length (weight norm): `length · direction / ‖direction‖`.

Where some of a direction goes, or more of it comes, its norm changes, and with it all of the weight that stays. The
length makes up for that: it is multiplied by what became of the norm. So what the other indices weigh stays as it was.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracker.neuron_map import Length


def norms(direction: Tensor, length: Length) -> Tensor:
    """The norms over all dimensions but that of the length, which stays as (1, …, size, …, 1); in double precision."""
    others = [dim for dim in range(direction.dim()) if dim != length.dim]
    found: Tensor = torch.linalg.vector_norm(direction.detach(), dim=others, keepdim=True, dtype=torch.float64)
    return found


def lengthened(value: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """A length for a direction whose norms were `before` and are `after`; as it is where there was none."""
    factor = torch.where(before > 0, after / before, 1.0)
    return (value.double() * factor.to(value.device)).to(value.dtype)
