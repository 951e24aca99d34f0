"""Models that `torch.compile` made fast: run as they are written, and recompiled after they changed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def as_written() -> Iterator[None]:
    """Within the block nothing runs compiled.

    Compiled code does not see hooks that came after it, and each of them it did see would be compiled in turn, until
    the limit is reached from which on PyTorch runs the model uncompiled for good.
    """
    if "torch._dynamo" not in sys.modules:  # nothing was compiled in this process
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def is_compiled(model: nn.Module) -> bool:
    """Whether the model or a part of it goes through `torch.compile`, by its wrapper or in place."""
    return any(
        getattr(module, "_compiled_call_impl", None) is not None or "_orig_mod" in module._modules
        for module in model.modules()
    )


def drop_compiled_code(model: nn.Module) -> None:
    """Have a compiled model compiled anew at its next call.

    Its guards would notice the new shapes, but old code keeps its memory and counts towards PyTorch's limit on
    recompilations. PyTorch drops the code of all models at once, so that others compile again too.
    """
    if is_compiled(model):
        torch.compiler.reset()
