"""What the server knows of the current model by heart, so that reading needs no worker."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronscope.server.arrays import decoded
from neuronscope.server.problems import Problem
from neuronscope.weights import candidate_columns

METRICS = {
    "magnitude": "weight_magnitude",
    "rank": "weight_rank",
    "score": "pruning_score",
    "consumer_norm": "consumer_norm",
}
"""Metrics of neurons that the weights alone tell, and their columns."""
KEPT = 8


class Atlas:
    """One model: its card, its weights, and its neurons in columns. It is never changed."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self.card = {name: value for name, value in told.items() if name not in ("weights", "columns")}
        self.name: str = told["name"]
        self.fingerprint: str = told["fingerprint"]
        self.sizes: list[int] = told["layer_sizes"]
        self.weights: dict[str, Any] = told["weights"]
        self.columns: dict[str, NDArray[Any]] = {name: decoded(value) for name, value in told["columns"].items()}
        self.weights_json = json.dumps(self.weights, allow_nan=False).encode()
        self._candidates: OrderedDict[float, bytes] = OrderedDict()

    def candidates(self, threshold: float) -> bytes:
        """The answer about all candidates, as JSON."""
        known = self._candidates.get(threshold)
        if known is None:
            rows = self.candidate_rows(threshold)
            flagged = sum(row["is_pruning_candidate"] for row in rows)
            known = json.dumps(
                {
                    "candidates": rows,
                    "total_candidates": len(rows),
                    "flagged_candidates": flagged,
                    "threshold_percentile": threshold,
                }
            ).encode()
            self._candidates[threshold] = known
            while len(self._candidates) > KEPT:
                self._candidates.popitem(last=False)
        return known

    def candidate_rows(self, threshold: float) -> list[dict[str, Any]]:
        """Every neuron as a candidate."""
        columns = candidate_columns(self.columns, threshold)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def neuron(self, layer: int, neuron: int, threshold: float = 10.0) -> dict[str, Any]:
        """What the weights say of one neuron."""
        self.check([[layer, neuron]])
        at = sum(self.sizes[:layer]) + neuron
        own = slice(sum(self.sizes[:layer]), sum(self.sizes[: layer + 1]))
        columns = candidate_columns(
            {name: values[own] * (name != "layer_index") for name, values in self.columns.items()}, threshold
        )
        found = {name: values[neuron] for name, values in columns.items()}
        return {**found, "layer_index": layer, "layer_name": self.card["layer_names"][layer], "position": at}

    def metric(self, name: str) -> bytes:
        """A number for every neuron in order, float32, little-endian."""
        return np.ascontiguousarray(self.columns[METRICS[name]].astype("<f4")).tobytes()

    def check(self, pairs: list[list[int]]) -> None:
        """Raise `Problem` 404 for a (layer, neuron) pair that the model does not have."""
        for layer, neuron in pairs:
            if layer >= len(self.sizes):
                raise Problem(
                    404,
                    f"The model has {len(self.sizes)} layers; {layer} is none of them.",
                    f"Use a number from 0 to {len(self.sizes) - 1}.",
                )
            if neuron >= self.sizes[layer]:
                raise Problem(
                    422,
                    f"Layer {layer} has {self.sizes[layer]} neurons; {neuron} is none of them.",
                    f"Use indices from 0 to {self.sizes[layer] - 1}.",
                )
