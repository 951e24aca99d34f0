"""How much of a model lies in prunable groups, and what is left."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from benchmarks.zoo.forward import Seen
from torch import nn

from tracker import NeuronMap

_OUTPUT = "is the model's output"
_STREAMS = ("residual", "other")
_EMBEDDINGS = ("embed", "token", "pos")


@dataclass(frozen=True)
class Shares:
    """Parameters by where they lie; the numbers add up to the model.

    `prunable`: in an exact group by one of their dimensions at least. `residual`: in none, and all of their neurons
    belong to inexact groups of the residual width (kinds "residual" and "other") or to the model's inputs or outputs.
    `output`: the same, in a layer that writes the model's output. `embedding`: tables, position and class tokens.
    `unused`: what no operator reads, such as classifiers for training only. `refused`: the rest.
    """

    prunable: int
    residual: int
    refused: int
    output: int
    embedding: int
    unused: int

    @property
    def share(self) -> float:
        """Prunable parameters over all but embeddings, the output layer and what is not used."""
        return self.prunable / max(1, self.prunable + self.residual + self.refused)

    @property
    def share_beside_residual(self) -> float:
        """The same, not counting what belongs to nothing but the residual width."""
        return self.prunable / max(1, self.prunable + self.refused)

    def to_json(self) -> dict[str, Any]:
        """All numbers."""
        return {**asdict(self), "share": self.share, "share_beside_residual": self.share_beside_residual}


def shares(model: nn.Module, neurons: NeuronMap, seen: Seen) -> Shares:
    """Count the parameters of a dense model that was `seen` running."""
    classes = _Classes(neurons, {name for name, module in model.named_modules() if module in seen.reading_inputs})
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module.parameters(recurse=False)
    }
    counts = dict.fromkeys(Shares.__dataclass_fields__, 0)
    for name, parameter in model.named_parameters():
        last = name.rpartition(".")[2]
        if parameter.untyped_storage().data_ptr() not in seen.used:
            counts["unused"] += parameter.numel()
            continue
        if id(parameter) in tables or any(word in last for word in _EMBEDDINGS):
            counts["embedding"] += parameter.numel()
            continue
        uncovered = math.prod(size - len(classes.exact[name, dim]) for dim, size in enumerate(parameter.shape))
        counts["prunable"] += parameter.numel() - uncovered
        dimensions = {classes.of(name, dim, size) for dim, size in enumerate(parameter.shape) if size > 1}
        left = "refused" if "refused" in dimensions else "residual"
        if left == "residual" and parameter.dim() > 1 and "output" in dimensions:
            left = "output"
        counts[left] += uncovered
    return Shares(**counts)


class _Classes:
    """What the positions of a dimension are that no exact group holds."""

    def __init__(self, neurons: NeuronMap, reading_inputs: Collection[str]) -> None:
        self.exact: dict[tuple[str, int], set[int]] = defaultdict(set)
        self._streams: dict[tuple[str, int], set[int]] = defaultdict(set)
        self._reasons: dict[tuple[str, int], set[str]] = defaultdict(set)
        self._reading_inputs = reading_inputs
        for group in neurons:
            kept = self.exact if group.exact else self._streams if group.kind in _STREAMS else None
            for site, positions in group.members.items():
                if kept is None:
                    self._reasons[site].add(group.note)
                else:
                    kept[site].update(np.ravel(positions).tolist())
        for entry in neurons.frozen:
            for site in entry.sites:
                self._reasons[site].add(entry.reason)

    def of(self, name: str, dim: int, size: int) -> str:
        """One of prunable, residual, output, kernel, input and refused, which is also what nothing is known of."""
        site = (name, dim)
        module, _, last = name.rpartition(".")
        if size == len(self.exact[site]):
            return "prunable"
        if size == len(self.exact[site] | self._streams[site]):
            return "residual"
        if self._reasons[site]:
            return "output" if all(reason.startswith(_OUTPUT) for reason in self._reasons[site]) else "refused"
        if dim > 1:
            return "kernel"
        if dim == 1 and module in self._reading_inputs:
            return "input"
        return self.of(name.removesuffix("bias") + "weight", 0, size) if last == "bias" else "refused"
