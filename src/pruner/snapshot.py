"""What was there before a change, held by reference, so that leaving the block without a commit puts all of it back."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from tracker.compiled import drop_compiled_code

_ABSENT = object()


class Snapshot:
    """A journal of replaced tensor data and replaced module attributes.

    Nothing is copied: a replaced tensor's old storage is kept alive until the block ends, so the most memory held is
    the old tensors plus the new ones. Every entry is written *before* its change, and undoing is idempotent, so an
    exception at any point, Ctrl-C included, ends in the old state. (One that strikes at the very entrance of the
    undoing is only caught by another block around it: enter the same snapshot twice where that matters.)

    >>> model = nn.Linear(4, 2)
    >>> with Snapshot() as snapshot:
    ...     snapshot.replace(model.weight, model.weight.data[:1])
    >>> model.weight.shape
    torch.Size([2, 4])
    """

    def __init__(self) -> None:
        self._tensors: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._attributes: list[tuple[nn.Module, str, Any]] = []
        self._classes: list[tuple[nn.Module, type]] = []
        self._settled = False

    def replace(self, tensor: torch.Tensor, data: torch.Tensor) -> None:
        """Give `tensor` other data of any shape; the tensor object itself stays, and with it every reference to it."""
        self._tensors.append((tensor, tensor.data))
        _give(tensor, data)

    def hold(self, module: nn.Module, name: str) -> None:
        """Remember an attribute and the class of a module, which are about to be replaced (not changed in place)."""
        self._classes.append((module, type(module)))
        self._attributes.append((module, name, vars(module).get(name, _ABSENT)))

    def commit(self) -> None:
        """Keep the changes."""
        drop_compiled_code()
        self._settled = True

    def restore(self) -> None:
        """Put back what was there, last change first."""
        for module, name, value in reversed(self._attributes):
            if value is _ABSENT:
                vars(module).pop(name, None)
            else:
                vars(module)[name] = value
        for module, kind in reversed(self._classes):
            if type(module) is not kind:
                module.__class__ = kind
        for tensor, data in reversed(self._tensors):
            _give(tensor, data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        interrupt: KeyboardInterrupt | None = None
        while not self._settled:
            try:
                self.restore()
                self._settled = True
            except KeyboardInterrupt as again:  # must not leave half of each state: first undo, then obey
                interrupt = again
        torch.clear_autocast_cache()  # it holds weights by their tensor, in whatever shape that had
        if interrupt is not None and error is None:
            raise interrupt


def _give(tensor: torch.Tensor, data: torch.Tensor) -> None:
    """Replace a tensor's data.

    A parameter's gradient accumulator remembers the shape it was made for and lives as long as any earlier loss does;
    PyTorch makes a new one only when dtype or device change. Hence the detour over an empty tensor of another dtype:
    without it, the first backward pass after pruning fails wherever a training loop still holds its last loss.
    """
    with torch.inference_mode(tensor.is_inference()):
        if isinstance(tensor, nn.Parameter):
            other = torch.float16 if tensor.dtype == torch.float32 else torch.float32
            tensor.data = torch.empty(0, dtype=other, device=tensor.device)
        tensor.data = data
