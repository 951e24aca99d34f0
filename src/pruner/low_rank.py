"""Adapters of low rank (Hu et al. 2021, LoRA) for a while: put in by peft, trained instead of the weights, merged back.

peft comes with the extra "lora".
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tracker.errors import PlanError
from tracker.extras import require

_ADAPTER = "recovery"


class Adapters:
    """The adapters of a model. `parameters` are theirs; `merge` adds what they learned to the weights."""

    def __init__(self, tuner: Any) -> None:
        self._tuner = tuner

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [p for p in self._tuner.model.parameters() if p.requires_grad]

    def merge(self) -> None:
        """Take the adapters out, and add what they learned to the weights."""
        self._tuner.merge_and_unload(safe_merge=True)


@contextmanager
def adapted(model: nn.Module, rank: int) -> Iterator[Adapters]:
    """Within the block, the linear layers of `model` carry adapters, and nothing else takes gradients.

    What is not merged by the end of the block is gone. Modules, parameters and `requires_grad` then are as before.
    Raises `PlanError` where no layer can carry one, or some carry others already.
    """
    lora = require("peft.tuners.lora", "lora")
    _check_free(model)
    targets = list(_targets(model))
    if not targets:
        raise PlanError(
            f"{type(model).__name__} has no linear layer that could carry an adapter.",
            hint="Leave `lora` out: all weights are trained then.",
        )
    required = [(p, p.requires_grad) for p in model.parameters()]
    places = [(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in targets]
    modules = [getattr(parent, child) for parent, child in places]
    attributes, fast = set(vars(model)), torch.backends.mha.get_fastpath_enabled()
    config = lora.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, bias="none")
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # reads weights past the adapters
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it finds out by itself how GPT-2 stores its weights, and says so
            adapters = Adapters(lora.LoraModel(model, {_ADAPTER: config}, _ADAPTER))
        yield adapters
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for (parent, child), module in zip(places, modules, strict=True):
            setattr(parent, child, module)
        for parameter, before in required:
            parameter.requires_grad_(before)
        for name in set(vars(model)) - attributes:  # peft leaves its configuration there
            delattr(model, name)


def _check_free(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if hasattr(type(module), "merged_adapters"):
            raise PlanError(
                f"'{name}' carries adapters already.",
                hint="Leave `lora` out: what takes gradients is trained, and that is those adapters.",
            )


def _targets(model: nn.Module) -> Iterator[str]:
    """Linear layers whose weights are their own, and whose forward really runs."""
    seen = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for name, module in model.named_modules():
        linear = type(module) is nn.Linear or type(module).__name__ == "Conv1D"
        if linear and seen[id(module.weight)] == 1 and name:
            yield name
