"""Small models for tests: any forward over any parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tracker import NeuronMap


class Sample(nn.Module):
    """A model of `parts` (modules, parameters, numbers) whose forward is `compute(model, *inputs)`."""

    def __init__(self, compute: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.compute = compute
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.compute(self, *args, **kwargs)


def between(compute: Callable[..., Any], width: int = 8, read: int | None = None, **parts: Any) -> Sample:
    """`compute(model, hidden)` between a linear layer `a` of `width` neurons and `b`, which reads `read`."""
    return Sample(
        lambda model, x: model.b(compute(model, model.a(x))),
        a=nn.Linear(6, width),
        b=nn.Linear(width if read is None else read, 3),
        **parts,
    )


def convolved(compute: Callable[..., Any], width: int = 8, read: int | None = None, **parts: Any) -> Sample:
    """The same between two 1 × 1 convolutions."""
    return Sample(
        lambda model, x: model.b(compute(model, model.a(x))),
        a=nn.Conv2d(3, width, 1),
        b=nn.Conv2d(width if read is None else read, 2, 1),
        **parts,
    )


def rows() -> torch.Tensor:
    """Input for `between`: 4 samples."""
    return torch.randn(4, 6)


def image() -> torch.Tensor:
    """Input for `convolved`: 2 images of 8 × 8."""
    return torch.randn(2, 3, 8, 8)


def sizes(found: NeuronMap) -> dict[str, int]:
    """Number of neurons of every exact group."""
    return {group.name: group.size for group in found if group.exact}


def reason(found: NeuronMap, name: str) -> str:
    """Why `name` is frozen, or why its group is not exact."""
    frozen = [entry.reason for entry in found.frozen if name in (entry.name, *(site.module for site in entry.sites))]
    return "; ".join([*frozen, *(group.note for group in found if group.name == name and not group.exact)])
