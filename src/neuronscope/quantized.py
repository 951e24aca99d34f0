"""Weights of 8 bits: made while a model is loaded, and read as the numbers that they stand for."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

from torch import Tensor, nn

from tracker.extras import require


def quantize(model: nn.Module) -> nn.Module:
    """Store the weights of all linear layers in 8 bits, a scale a row, in place; sums are still made in full precision.

    What is shared between layers, such as an embedding that is also the output layer, stays as it is. Raises
    `MissingExtraError` without torchao.
    """
    torchao = require("torchao.quantization", "quantization")
    uses = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    torchao.quantize_(
        model,
        torchao.Int8WeightOnlyConfig(),
        filter_fn=lambda module, _: isinstance(module, nn.Linear) and uses[id(module.weight)] == 1,
    )
    return model


def dequantized(model: nn.Module) -> nn.Module:
    """The model as it is where its weights are plain numbers; else a copy with the numbers that they stand for.

    The copy computes what the quantised model computes, but for the order of sums.
    """
    if not any(map(_quantized, model.parameters())):
        return model
    twin = copy.deepcopy(model)
    for module in twin.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and _quantized(parameter):
                plain: Any = parameter
                setattr(module, name, nn.Parameter(plain.dequantize(), requires_grad=False))
    return twin


def _quantized(tensor: Tensor) -> bool:
    return type(tensor).__module__.startswith("torchao") and hasattr(tensor, "dequantize")
