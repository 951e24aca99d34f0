"""Every builder of torchvision.models."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from benchmarks.zoo.entries import Entry, Example
from torchvision import models


def entries() -> Iterator[Entry]:
    """All of them."""
    for name in ("resnet18", "convnext_tiny"):
        yield Entry(
            "torchvision",
            name,
            lambda name=name: Example(models.get_model(name, weights=None), (torch.randn(2, 3, 64, 64),)),
        )
