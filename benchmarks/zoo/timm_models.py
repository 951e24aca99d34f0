"""Models of timm: at least one of every module, and the odd ones."""

from __future__ import annotations

from collections.abc import Iterator

import timm
import torch
from benchmarks.zoo.entries import Entry, Example


def entries() -> Iterator[Entry]:
    """All of them."""
    for name in ("vit_tiny_patch16_224",):
        yield Entry(
            "timm",
            name,
            lambda name=name: Example(timm.create_model(name, num_classes=10), (torch.randn(2, 3, 224, 224),)),
        )
