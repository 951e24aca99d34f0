"""The neurons of a model as people count them: by the number of the block, and by their number in it.

A layer here is a block's MLP, whatever its modules are called. The experts of a mixture lie side by side in their
block. A model without MLPs is counted by its other layers, and one without blocks by its layers in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from tracker.errors import DataError, UnknownLayerError
from tracker.neuron_map import NeuronGroup, NeuronMap


@dataclass(frozen=True)
class Layer:
    """The neurons of one block: `name` is that of the block, `groups` hold the neurons in order."""

    index: int
    name: str
    groups: tuple[NeuronGroup, ...]

    @property
    def size(self) -> int:
        """Number of neurons."""
        return sum(group.size for group in self.groups)

    @property
    def places(self) -> list[tuple[NeuronGroup, int]]:
        """Where each neuron is: its group, and its number in there."""
        return [(group, place) for group in self.groups for place in range(group.size)]

    def split(self, neurons: Iterable[int]) -> dict[str, list[int]]:
        """Neurons by group, each by its number in there.

        Raises `DataError` for an index that the layer does not have, or that is no whole number.
        """
        found: dict[str, list[int]] = {}
        for neuron in neurons:
            if type(neuron) is not int or not 0 <= neuron < self.size:
                raise DataError(
                    f"Layer {self.index} has {self.size} neurons; {neuron!r} is none of them.",
                    hint=f"Use indices from 0 to {self.size - 1}.",
                )
            place = neuron
            for group in self.groups:
                if place < group.size:
                    chosen = found.setdefault(group.name, [])
                    if place not in chosen:
                        chosen.append(place)
                    break
                place -= group.size
        return found

    def joined(self, values: Mapping[str, Tensor]) -> Tensor:
        """Values by group, each (size,), as one for every neuron of the layer."""
        return torch.cat([torch.as_tensor(values[group.name]) for group in self.groups])


@dataclass(frozen=True)
class Layers:
    """All layers of a model, in running order."""

    all: tuple[Layer, ...]

    @classmethod
    def of(cls, neurons: NeuronMap) -> Self:
        """The layers of a model's neuron map; raises `DataError` where it has no neurons."""
        exact = [group for group in neurons if group.exact]
        groups = [group for group in exact if group.kind == "mlp"] or exact
        if not groups:
            raise DataError(
                f"{neurons.model or 'The model'} has no neurons that could be looked at.",
                hint="Print the neuron map: it says what is frozen, and why.",
            )
        blocks: dict[str, list[NeuronGroup]] = {}
        for group in groups:
            blocks.setdefault(_block(group.name), []).append(group)
        return cls(tuple(Layer(index, name, tuple(own)) for index, (name, own) in enumerate(blocks.items())))

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, index: int) -> Layer:
        """Raises `UnknownLayerError` for a number that no layer has."""
        if type(index) is not int or not 0 <= index < len(self.all):
            raise UnknownLayerError(
                f"The model has {len(self.all)} layers; {index!r} is none of them.",
                hint=f"Use a number from 0 to {len(self.all) - 1}.",
            )
        return self.all[index]

    def split(self, chosen: Iterable[tuple[int, int]]) -> dict[str, list[int]]:
        """(layer, neuron) pairs by group."""
        by_layer: dict[int, list[int]] = {}
        for layer, neuron in chosen:
            by_layer.setdefault(layer, []).append(neuron)
        found: dict[str, list[int]] = {}
        for layer, neurons in by_layer.items():
            found |= self[layer].split(neurons)
        return found

    def index_of(self, module: str) -> int:
        """The number of the layer that a module belongs to, -1 for one that lies in none."""
        for layer in self.all:
            if module == layer.name or module.startswith(f"{layer.name}."):
                return layer.index
        return -1


def _block(name: str) -> str:
    """The name up to its first number: "transformer.h.3" of "transformer.h.3.mlp.c_fc"."""
    parts = name.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    return name if number is None else ".".join(parts[: number + 1])
