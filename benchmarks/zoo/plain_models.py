"""Plain PyTorch that people write."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from benchmarks.zoo.entries import Entry, Example
from torch import nn

_ENTRIES: list[Entry] = []


def entry(build: Callable[[], Example]) -> Callable[[], Example]:
    """Enter the model that a function makes, under the function's name."""
    _ENTRIES.append(Entry("plain", build.__name__, build, given=(build.__doc__ or "").rstrip(".")))
    return build


def entries() -> Iterator[Entry]:
    """All of them."""
    yield from _ENTRIES


@entry
def mlp() -> Example:
    """Three linear layers."""
    return Example(
        nn.Sequential(nn.Linear(20, 64), nn.GELU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)),
        (torch.randn(4, 20),),
    )


@entry
def transformer_encoder() -> Example:
    """`nn.TransformerEncoder`, batch first."""
    layer = nn.TransformerEncoderLayer(64, 8, 128, batch_first=True)
    return Example(nn.TransformerEncoder(layer, 2), (torch.randn(2, 9, 64),))
