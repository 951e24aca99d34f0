"""Which neurons go: an immutable value that can be compared, saved, sent elsewhere and read again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from os import PathLike
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import torch

from tracker.errors import PlanError
from tracker.files import read_json, write_json
from tracker.neuron_map import NeuronGroup, NeuronMap

FORMAT = "neuronscope/pruning-plan"
FORMAT_VERSION = 1
_KEYS = {"format", "version", "fingerprint", "remove", "provenance"}


@dataclass(frozen=True)
class PruningPlan:
    """The neurons to remove, by layer.

    Args:
        remove: for every layer, the indices of the neurons that go: any iterable of integers, a NumPy array or a
            tensor. A layer is named as in the neuron map, or by any module that produces its neurons. They are kept as
            ascending tuples.
        fingerprint: structure of the model the plan was made for; a plan that has one fits no other structure.
        provenance: how the plan came about, as JSON-ready data. It never changes what the plan does.

    Raises:
        PlanError: an index is no integer, is negative, or is listed twice; or the provenance is not JSON.

    >>> PruningPlan({"conv1": [5, 0]}).remove["conv1"]
    (0, 5)
    """

    remove: Mapping[str, tuple[int, ...]]
    fingerprint: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __init__(
        self,
        remove: Mapping[str, Iterable[int] | torch.Tensor],
        fingerprint: str | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(remove, Mapping):
            raise PlanError(
                f"A plan's neurons are {type(remove).__name__}, not a mapping of layers to indices.",
                hint='Write PruningPlan(remove={"conv1": [0, 5]}).',
            )
        normal = {_layer(layer): _indices(layer, neurons) for layer, neurons in remove.items()}
        object.__setattr__(self, "remove", MappingProxyType(normal))
        object.__setattr__(self, "fingerprint", fingerprint)
        object.__setattr__(self, "provenance", MappingProxyType(_plain(provenance or {})))

    def __reduce__(self) -> tuple[type[PruningPlan], tuple[dict[str, tuple[int, ...]], str | None, dict[str, Any]]]:
        """Copy and pickle by value: a read-only view of a dictionary can do neither itself."""
        return PruningPlan, (dict(self.remove), self.fingerprint, dict(self.provenance))

    @property
    def neurons(self) -> int:
        """Number of neurons the plan removes, over all layers."""
        return sum(map(len, self.remove.values()))

    def resolve(self, neurons: NeuronMap) -> dict[str, torch.Tensor]:
        """The plan on one model: for every group that loses neurons its own name and their indices, ascending int64.

        Raises:
            PlanError: the plan was made for another structure, an index is out of range, two names in the plan mean
                the same layer, or a layer would be left without neurons, with fewer than it needs, or with a number
                that an operator does not take.
            UnknownLayerError: the model has no such layer, or it is frozen; names the nearest.
        """
        self.check_fingerprint(neurons)
        named: dict[str, str] = {}
        resolved: dict[str, torch.Tensor] = {}
        for layer, indices in self.remove.items():
            group = neurons[layer]
            if group.name in named:
                raise PlanError(
                    f"The plan lists one layer twice: '{named[group.name]}' and '{layer}' are the same neurons.",
                    hint=f"Put all of its neurons under '{group.name}'.",
                )
            named[group.name] = layer
            chosen = group.indices(indices)
            if len(chosen):
                _check_left(layer, group, group.size - len(chosen))
                resolved[group.name] = torch.from_numpy(chosen)
        return resolved

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON-ready data; `from_json` is its inverse."""
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "remove": {layer: list(indices) for layer, indices in self.remove.items()},
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Rebuild a plan; raises `PlanError` where the data is not one of this version."""
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise PlanError(
                f"Not a pruning plan: the format is {_short(data.get('format') if isinstance(data, Mapping) else data)}"
                f", not '{FORMAT}'.",
                hint="Give a file written by PruningPlan.save.",
            )
        if data.get("version") != FORMAT_VERSION:
            raise PlanError(
                f"The pruning plan has version {_short(data.get('version'))}; this release reads {FORMAT_VERSION}.",
                hint="Make the plan again with this release.",
            )
        if unknown := sorted(set(data) - _KEYS):
            raise PlanError(f"The pruning plan has an unknown key {_short(unknown[0])}.", hint="Remove the key.")
        fingerprint, provenance = data.get("fingerprint"), data.get("provenance", {})
        if not isinstance(fingerprint, str | None) or not isinstance(provenance, Mapping):
            raise PlanError(
                "The pruning plan's fingerprint must be a string or null, and its provenance an object.",
                hint="Write the plan again with PruningPlan.save.",
            )
        return cls(data.get("remove"), fingerprint, provenance)  # type: ignore[arg-type]  # checked by __init__

    def save(self, path: str | PathLike[str]) -> None:
        """Write the plan as JSON, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a plan written by `save`; raises `StorageError` if it is missing, `PlanError` if it is malformed."""
        return cls.from_json(read_json(path, what="a pruning plan", error=PlanError))

    def check_fingerprint(self, neurons: NeuronMap) -> None:
        """Raise `PlanError` where the plan was made for another structure than the map is of."""
        if not self.fingerprint or not neurons.fingerprint or self.fingerprint == neurons.fingerprint:
            return
        misfits = [
            f"it has no layer '{layer}'"
            if layer not in neurons
            else f"layer '{layer}' has {neurons[layer].size} neurons and the plan removes number {max(indices)}"
            for layer, indices in self.remove.items()
            if layer not in neurons or (indices and max(indices) >= neurons[layer].size)
        ]
        seen = f" ({'; '.join(misfits[:3])})" if misfits else " (its layers exist, but sizes elsewhere differ)"
        raise PlanError(
            f"The plan was made for a model of structure {self.fingerprint}; this {neurons.model or 'model'} has "
            f"structure {neurons.fingerprint}{seen}.",
            hint="Make the plan again for this model; one that was pruned since has other neurons under the same "
            "numbers.",
        )


def _check_left(layer: str, group: NeuronGroup, left: int) -> None:
    needed = group.minimum
    if not left:
        raise PlanError(
            f"The plan removes all {group.size} neurons of layer '{layer}'.",
            hint="Keep at least one: without it the model has no path through the layer.",
        )
    if left < needed:
        raise PlanError(
            f"The plan leaves {left} of the {group.size} neurons of layer '{layer}', which needs {needed}.",
            hint=f"Keep at least {needed}: the model chooses so many of them at a time.",
        )
    if left % group.multiple:
        raise PlanError(
            f"The plan leaves {left} of the {group.size} neurons of layer '{layer}'; only multiples of "
            f"{group.multiple} run.",
            hint=f"Keep {left - left % group.multiple or group.multiple}: an operator that reads them takes no other "
            f"width.",
        )


def _plain(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that nobody else can change, and that can be written to a file for certain."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(provenance), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise PlanError(
            f"The plan's provenance cannot be written as JSON: {error}.", hint="Use strings, numbers, lists and dicts."
        ) from error
    return copy


def _layer(name: object) -> str:
    if isinstance(name, str):
        return name
    raise PlanError(f"A layer is named {name!r}, which is no string.", hint="Name layers as the neuron map does.")


def _indices(layer: str, neurons: Iterable[int] | torch.Tensor) -> tuple[int, ...]:
    """Ascending, distinct, non-negative integers; a mask of booleans is refused, for it would read as 0 and 1."""
    raw: Any = neurons.tolist() if isinstance(neurons, torch.Tensor | np.ndarray) else neurons
    if isinstance(raw, str | bytes | Mapping) or not isinstance(raw, Iterable):
        raise PlanError(
            f"Layer '{layer}': the neurons to remove are {_short(raw)}, not a list of indices.",
            hint="Give the indices of the neurons to remove, such as [0, 5].",
        )
    values = list(raw)
    for value in values:
        if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
            raise PlanError(
                f"Layer '{layer}': neuron {_short(value)} is not an integer index.",
                hint="Give the indices of the neurons to remove, such as [0, 5]; for a mask, mask.nonzero().flatten().",
            )
        if value < 0:
            raise PlanError(f"Layer '{layer}': neuron {value} is negative.", hint="Indices count from 0.")
    ordered = sorted(map(int, values))
    for one, other in pairwise(ordered):
        if one == other:
            raise PlanError(f"Layer '{layer}': neuron {one} is listed more than once.", hint="List every neuron once.")
    return tuple(ordered)


def _short(value: object) -> str:
    """A value from outside, never longer than a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
