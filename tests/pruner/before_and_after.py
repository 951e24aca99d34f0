"""Everything about a model that must not change, and Ctrl-C at any line of the code under test."""

import sys
from collections.abc import Callable
from itertools import chain
from types import FrameType
from typing import Any

import torch
from torch import nn


def everything(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """All that a failed pruning could have changed: objects by identity, tensors by bits."""
    found: dict[str, Any] = {}

    def add(name: str, tensor: torch.Tensor) -> None:
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        found[name] = (id(tensor), tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.requires_grad, raw)

    for name, tensor in chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    ):
        add(name, tensor)
        if tensor.grad is not None:
            add(f"{name}.grad", tensor.grad)
    for name, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if not k.startswith(("_parameters", "_buffers", "_modules"))}
        found[f"{name}/attributes"] = repr(sorted(plain.items(), key=str))
    for index, state in enumerate(optimizer.state.values() if optimizer else ()):
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                add(f"optimizer {index} {key}", value)
    found["random"] = torch.get_rng_state().numpy().tobytes()
    return found


class Interrupter:
    """Raises `KeyboardInterrupt` at the n-th line that is executed in some files."""

    def __init__(self, line: int, files: tuple[str, ...]) -> None:
        self.left, self.files, self.at = line, files, ""

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.endswith(self.files):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                self.at = frame.f_code.co_name
                raise KeyboardInterrupt
        return self


def interrupted(line: int, files: tuple[str, ...], action: Callable[[], Any]) -> str | None:
    """Where the action was interrupted; None when it was done before."""
    interrupter = Interrupter(line, files)
    before = sys.gettrace()
    try:
        sys.settrace(interrupter)
        action()
    except KeyboardInterrupt:
        return interrupter.at
    finally:
        sys.settrace(before)
    return None
