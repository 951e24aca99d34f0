"""What an entry of the zoo is, and where the entries come from. Libraries are imported only when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from benchmarks.zoo.randomise import in_dtype, randomise, uninitialised
from torch import nn

LIBRARIES = ("plain", "transformers", "torchvision", "timm")


@dataclass(frozen=True)
class Example:
    """A model with random weights, and a call of it."""

    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Entry:
    """One row of the table. `module` is the library's own file of the model, `given` says what it is called with."""

    library: str
    name: str
    build: Callable[[], Example]
    module: str = ""
    given: str = ""

    def fresh(self, dtype: torch.dtype | None = None) -> Example:
        """The model with random values everywhere, in evaluation mode, and its call; always the same ones.

        In a type of floating-point numbers, or in the model's own.
        """
        torch.manual_seed(0)
        with uninitialised():
            example = self.build()
        randomise(example.model.eval())
        if dtype is None:
            return example
        args, kwargs = in_dtype((example.args, dict(example.kwargs)), dtype)
        return Example(example.model.to(dtype), args, kwargs)

    @property
    def key(self) -> str:
        """What the stored results are filed under."""
        return f"{self.library}:{self.name}"


def entries_of(library: str) -> list[Entry]:
    """All entries of a library, in a fixed order; imports the library."""
    found: Iterator[Entry] = importlib.import_module(f"benchmarks.zoo.{library}_models").entries()
    return list(found)
