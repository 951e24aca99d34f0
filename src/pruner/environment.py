"""Where, with what and on what a run happened: what somebody needs to get the same numbers again."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruner.results import Environment
from tracker.batches import Batch

_PACKAGES = ("neuronscope", "torch", "numpy", "scipy", "safetensors", "torchmetrics", "transformers", "timm")


def environment_of(model: nn.Module, batch: Batch, config: dict[str, Any]) -> Environment:
    """The environment of a run of `model` on batches like `batch`, under `config`."""
    tensors = [*model.parameters(), *model.buffers()]
    first = next((tensor for tensor in tensors if tensor.is_floating_point()), tensors[0])
    return {
        "versions": {"python": platform.python_version()} | {name: v for name in _PACKAGES if (v := _version(name))},
        "platform": platform.platform(),
        "processor": _processor(first.device),
        "device": str(first.device),
        "dtype": str(first.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "seed": torch.initial_seed(),
        "batch": [*map(_shape, batch.args), *(f"{name}: {_shape(value)}" for name, value in batch.kwargs.items())],
        "config": config,
    }


def _version(package: str) -> str:
    """The installed version of a package that this process uses, or "" otherwise."""
    if package != "neuronscope" and package not in sys.modules:
        return ""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _shape(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__
