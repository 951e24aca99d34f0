"""The neuron map of a model as it is now, also right after it was pruned."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from tracker.discover import discover, example_call, last_discovered, neurons_of
from tracker.neuron_map import NeuronMap


def current_map(model: nn.Module, data_loader: Iterable[Any] | None = None) -> NeuronMap:
    """The map last discovered, if it still fits; else the model is discovered again with the inputs it was seen with.

    For a model that was never discovered, inputs come from `data_loader`, from the model itself, or are guessed. Raises
    `DiscoveryError` if none work.
    """
    call = example_call(model)
    if last_discovered(model) is None and call is not None:
        return discover(model, call.args, call.kwargs)
    return neurons_of(model, data_loader=data_loader)
