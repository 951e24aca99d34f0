"""Models that `torch.compile` made fast: run as they are written, and recompiled after they changed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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


def drop_compiled_code() -> None:
    """Have what was compiled so far compiled anew at its next call, as it must be once a model has changed.

    Guards would notice most changes, but not those of weights that were compiled in as constants (inductor's
    `freezing`), and old code keeps its memory and counts towards PyTorch's limit on recompilations. Which code belongs
    to which model cannot be known, so the code of all goes.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
