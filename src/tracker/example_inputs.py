"""One call of a model to look at: given, taken from its data, named by the model itself, or guessed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from tracker.errors import DiscoveryError

HOW_TO_GIVE_INPUTS = (
    "Pass them: discover(model, example_inputs) with a tensor or a tuple of positional arguments, "
    "and example_kwargs={...} for keyword arguments."
)


@dataclass(frozen=True)
class Call:
    """The arguments of one forward."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def given_call(model: nn.Module, example_inputs: Any, example_kwargs: Mapping[str, Any] | None) -> Call | None:
    """The call that the caller describes, or None."""
    if example_inputs is None and example_kwargs is None:
        return None
    if isinstance(example_inputs, Mapping):
        raise DiscoveryError(
            "example_inputs is a mapping.", hint="Pass keyword arguments as example_kwargs, positional ones as a tuple."
        )
    args = () if example_inputs is None else example_inputs
    args = tuple(args) if isinstance(args, tuple | list) else (args,)
    return where_the_model_is(model, _without_cache(model, Call(args, dict(example_kwargs or {}))))


def first_batch_call(model: nn.Module, data_loader: Any) -> Call:
    """The call that the first batch of a loader makes."""
    from tracker.batches import iter_batches

    batch = next(iter(iter_batches(data_loader, model)))
    return _without_cache(model, Call(batch.args, dict(batch.kwargs)))


def candidate_calls(model: nn.Module) -> Iterator[Call]:
    """Calls worth trying, the most certain first."""
    for call in _named_by_the_model(model):
        yield where_the_model_is(model, _without_cache(model, call))
    for call in _guessed(model):
        yield where_the_model_is(model, call)


def where_the_model_is(model: nn.Module, call: Call) -> Call:
    """The call with its tensors on the model's device; as it is for a model on several, or on none."""
    devices = {parameter.device for parameter in model.parameters()} - {torch.device("meta")}
    if len(devices) != 1:
        return call
    (device,) = devices
    return Call(*tree_map_only(Tensor, lambda x: x if x.is_meta else x.to(device), (call.args, call.kwargs)))


def _named_by_the_model(model: nn.Module) -> Iterator[Call]:
    array = getattr(model, "example_input_array", None)  # Lightning
    if isinstance(array, Tensor):
        yield Call((array,))
    elif isinstance(array, tuple):
        yield Call(array)
    elif isinstance(array, dict):
        yield Call((), array)
    config = getattr(model, "default_cfg", None)  # timm
    if isinstance(config, Mapping) and "input_size" in config:
        yield Call((torch.zeros(2, *config["input_size"], device="cpu"),))
    if hasattr(model, "config") and hasattr(model, "main_input_name"):  # transformers
        yield from _of_transformers(model)


def _of_transformers(model: Any) -> Iterator[Call]:
    config, main = model.config, model.main_input_name
    if main == "pixel_values":
        size = getattr(config, "image_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        channels = getattr(config, "num_channels", 3)
        yield Call((), {"pixel_values": torch.zeros(2, channels, height, width, device="cpu")})
    ids = _token_ids(int(getattr(config, "vocab_size", 2)))
    if getattr(config, "is_encoder_decoder", False):
        yield Call((), {"input_ids": ids, "decoder_input_ids": ids})
    yield Call((), {"input_ids": ids})
    dummy = getattr(model, "dummy_inputs", None)
    if isinstance(dummy, Mapping):
        yield Call((), dict(dummy))


def _guessed(model: nn.Module) -> Iterator[Call]:
    """Shapes that the first layers read."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    for module in model.modules():
        shapes: list[tuple[int, ...]] = []
        if isinstance(module, nn.Embedding):
            yield Call((_token_ids(module.num_embeddings),))
        elif isinstance(module, nn.Conv1d):
            shapes = [(2, module.in_channels, size) for size in (64, 1024)]
        elif isinstance(module, nn.Conv2d):
            shapes = [(2, module.in_channels, size, size) for size in (32, 224, 28, 8, 64, 16)]
        elif isinstance(module, nn.Conv3d):
            shapes = [(2, module.in_channels, 16, 16, 16)]
        elif isinstance(module, nn.Linear | nn.LSTM | nn.GRU | nn.RNN):
            width = module.in_features if isinstance(module, nn.Linear) else module.input_size
            shapes = [(2, width), (2, 8, width)]
        else:
            continue
        for shape in shapes:
            yield Call((torch.zeros(shape, dtype=dtype, device="cpu"),))
        return


def _token_ids(vocabulary: int) -> torch.Tensor:
    """Two texts of eight tokens, all different where there are enough: on equal ones most mistakes cannot be seen."""
    return torch.arange(16, device="cpu").remainder(max(1, vocabulary)).reshape(2, 8)


def _without_cache(model: nn.Module, call: Call) -> Call:
    """Language models return their keys and values unless asked not to; those are not what the model answers."""
    if "use_cache" in call.kwargs or not hasattr(model, "config"):
        return call
    try:
        parameters = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return call
    return Call(call.args, {**call.kwargs, "use_cache": False}) if "use_cache" in parameters else call
