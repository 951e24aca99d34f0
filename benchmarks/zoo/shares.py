"""How much of a model lies in prunable groups, and what is left."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from tracker import NeuronMap

_OUTSIDE = ("is the model's output", "is the model's input")
_EMBEDDINGS = ("embed", "token", "pos")


@dataclass(frozen=True)
class Shares:
    """Parameters by where they lie; the five numbers add up to the model.

    `prunable`: in an exact group by one of their dimensions at least. `residual`: in none, and all of their neurons
    belong to inexact groups of the residual width (kinds "residual" and "other") or to the model's inputs or outputs.
    `output`: the same, in a layer that writes the model's output. `embedding`: tables, position and class tokens.
    `refused`: the rest.
    """

    prunable: int
    residual: int
    refused: int
    output: int
    embedding: int

    @property
    def share(self) -> float:
        """Prunable parameters over all but embeddings and the output layer."""
        return self.prunable / max(1, self.prunable + self.residual + self.refused)

    @property
    def share_beside_residual(self) -> float:
        """The same, not counting what belongs to nothing but the residual width."""
        return self.prunable / max(1, self.prunable + self.refused)

    def to_json(self) -> dict[str, Any]:
        """All numbers."""
        return {**asdict(self), "share": self.share, "share_beside_residual": self.share_beside_residual}


def shares(model: nn.Module, neurons: NeuronMap) -> Shares:
    """Count the parameters of a dense model."""
    exact, streams, reasons = _by_dimension(neurons)
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module.parameters(recurse=False)
    }
    counts = dict.fromkeys(Shares.__dataclass_fields__, 0)
    for name, parameter in model.named_parameters():
        last = name.rpartition(".")[2]
        if id(parameter) in tables or any(word in last for word in _EMBEDDINGS):
            counts["embedding"] += parameter.numel()
            continue
        uncovered, dimensions = 1, []
        for dim, size in enumerate(parameter.shape):
            site = (name, dim)
            uncovered *= size - len(exact[site])
            if size > 1:
                dimensions.append(_what_is_left(size, exact[site], streams[site], reasons[site]))
        counts["prunable"] += parameter.numel() - uncovered
        if any(left == "refused" for left in dimensions):
            counts["refused"] += uncovered
        elif len(parameter.shape) > 1 and "output" in dimensions:
            counts["output"] += uncovered
        else:
            counts["residual"] += uncovered
    return Shares(**counts)


def _by_dimension(neurons: NeuronMap) -> tuple[Any, Any, Any]:
    """For every dimension of every parameter: positions in exact groups, in inexact ones, and reasons of the rest."""
    exact: dict[tuple[str, int], set[int]] = defaultdict(set)
    streams: dict[tuple[str, int], set[int]] = defaultdict(set)
    reasons: dict[tuple[str, int], set[str]] = defaultdict(set)
    for group in neurons:
        for site, positions in group.members.items():
            if group.exact:
                exact[site].update(np.ravel(positions).tolist())
            elif group.kind in ("residual", "other"):
                streams[site].update(np.ravel(positions).tolist())
            else:
                reasons[site].add(group.note)
    for entry in neurons.frozen:
        for site in entry.sites:
            reasons[site].add(entry.reason)
    return exact, streams, reasons


def _what_is_left(size: int, exact: set[int], streams: set[int], reasons: set[str]) -> str:
    """What the positions of a dimension are that no exact group holds."""
    if size == len(exact):
        return "prunable"
    if any(not reason.startswith(_OUTSIDE) for reason in reasons):
        return "refused"
    if size == len(exact | streams):
        return "residual"
    return "output" if any(reason.startswith(_OUTSIDE[0]) for reason in reasons) else "kernel"
