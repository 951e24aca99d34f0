"""Weights of 8 bits: made while a model is loaded, and read as the numbers that they stand for.

torchao keeps them on the CPU, bitsandbytes on a CUDA device, where it also rounds what a layer reads (LLM.int8,
Dettmers et al. 2022).
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from tracker.extras import require


def quantize(model: nn.Module) -> nn.Module:
    """Store the weights of all linear layers in 8 bits, a scale a row, in place; on a CUDA device where there is one.

    What is shared between layers, such as an embedding that is also the output layer, stays as it is. Raises
    `MissingExtraError` without torchao, or bitsandbytes where there is a CUDA device.
    """
    uses = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())

    def own(module: nn.Module, _: str = "") -> bool:
        return isinstance(module, nn.Linear) and uses[id(module.weight)] == 1

    if torch.cuda.is_available():
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if own(child):
                    setattr(parent, name, _in_8_bits(child))
        return model.to("cuda")
    torchao = require(*BACKENDS["cpu"])
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig(), filter_fn=own)
    return model


BACKENDS = {"cpu": ("torchao.quantization", "quantization"), "cuda": ("bitsandbytes", "quantization")}
"""The module that quantises on a device, and the extra that brings it."""


def _in_8_bits(linear: Any) -> nn.Module:
    layers = require(*BACKENDS["cuda"]).nn
    made = layers.Linear8bitLt(
        linear.in_features, linear.out_features, bias=linear.bias is not None, has_fp16_weights=False
    )
    made.weight = layers.Int8Params(linear.weight.detach(), requires_grad=False, has_fp16_weights=False)
    made.bias = linear.bias
    layer: nn.Module = made.train(linear.training)
    return layer


def dequantized(model: nn.Module) -> nn.Module:
    """The model as it is where its weights are plain numbers; else a copy with the numbers that they stand for.

    The copy computes what the quantised model computes, but for the order of sums, and where bitsandbytes rounds what
    a layer reads.
    """
    if not any(map(_quantized, model.parameters())):
        return model
    twin = copy.deepcopy(model)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point() and not _quantized(p)), torch.float32)
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if "bitsandbytes" in type(child).__module__ and isinstance(child, nn.Linear):
                setattr(parent, name, _plain(child, dtype))
    for module in twin.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and _quantized(parameter):
                plain: Any = parameter
                setattr(module, name, nn.Parameter(plain.dequantize(), requires_grad=False))
    return twin


def _plain(layer: Any, dtype: torch.dtype) -> nn.Linear:
    """A layer of bitsandbytes, of 8 or of 4 bits, as one with plain weights."""
    weight = layer.weight
    if hasattr(weight, "quant_state"):
        values = require(*BACKENDS["cuda"]).functional.dequantize_4bit(weight.data, weight.quant_state)
    elif weight.dtype == torch.int8:
        scales = weight.SCB if weight.SCB is not None else layer.state.SCB  # a first run takes them along
        values = weight.data.float() * (scales.float().unsqueeze(1) / 127)
    else:  # not on a CUDA device yet: as it was
        values = weight.data
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(values.to(dtype), requires_grad=False)
    plain.bias = layer.bias
    return plain.train(layer.training)


def _quantized(tensor: Tensor) -> bool:
    module = type(tensor).__module__
    return "bitsandbytes" in module or (module.startswith("torchao") and hasattr(tensor, "dequantize"))
