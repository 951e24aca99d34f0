"""What the weights of a model say by themselves: how large they are, how many are zero, and in which patterns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neuronscope.layers import Layers
from neuronscope.patterns import Patterns, patterns_of
from pruner.current_map import current_map
from pruner.scores import mean_weight
from tracker.admission import admitted
from tracker.errors import DataError
from tracker.files import write_json
from tracker.neuron_map import NeuronMap

VERY_LOW, LOW = 0.01, 0.05
"""Below these mean magnitudes a neuron's weights are very low, or low."""
MODERATE, HIGH = 0.05, 0.20
"""From these shares of zeros on, sparsity is moderate, or high."""


@dataclass(frozen=True)
class LayerWeights:
    """All weights and biases that one module owns; those that are shared count for the first that has them.

    `layer_index` is the number of the block that the module lies in, -1 outside of all. `patterns` is None for what is
    no matrix.
    """

    layer_name: str
    layer_index: int
    total_parameters: int
    non_zero_parameters: int
    sparsity: float
    mean_magnitude: float
    std_magnitude: float
    min_magnitude: float
    max_magnitude: float
    l1_norm: float
    l2_norm: float
    patterns: Patterns | None = None


@dataclass(frozen=True)
class PruningCandidate:
    """A neuron and how its weights compare with those of its layer.

    `weight_magnitude` is the mean |w| of the weights that write it; `weight_rank` its place in its layer by that, 1 for
    the largest; `pruning_score` is from 0 to 1, higher where removing it is safer. `band` is "very low", "low" or
    "normal". `consumer_norm` is the L2 norm of the weights that read it.
    """

    layer_index: int
    neuron_index: int
    weight_magnitude: float
    weight_rank: int
    is_pruning_candidate: bool
    pruning_score: float
    band: str
    consumer_norm: float


class WeightAnalyzer:
    """The weights of one model. It is only read; what was found is kept until the weights change.

    Args:
        model: any model that the tracker can map.
        neurons: its neuron map; by default the one known, else it is discovered.
    """

    def __init__(self, model: nn.Module, neurons: NeuronMap | None = None) -> None:
        self.model = admitted(model)
        self.neurons = neurons or current_map(self.model)
        self.layers = Layers.of(self.neurons)
        if any(parameter.is_meta for parameter in self.model.parameters()):
            raise DataError("The model is on the meta device: it has no weights.", hint="Load its weights first.")

    def extract_weight_stats(self) -> list[LayerWeights]:
        """One entry for every module that owns weights, in the model's order."""
        seen: set[int] = set()
        found: list[LayerWeights] = []
        for name, module in self.model.named_modules():
            own = [p for p in module._parameters.values() if p is not None and id(p) not in seen]
            seen |= set(map(id, own))
            if own:
                found.append(self._stats(name, own))
        return found

    def get_weight_magnitudes(self, layer_name: str) -> NDArray[np.float64]:
        """Mean |w| of every neuron of a layer of the neuron map, (neurons,); raises `UnknownLayerError`."""
        group = self.neurons[layer_name]
        return mean_weight(self.model, self.neurons)[group.name].numpy()

    def identify_pruning_candidates(self, threshold_percentile: float = 10.0) -> list[PruningCandidate]:
        """Every neuron of every layer, in order; of each layer the given per cent of lowest weights are flagged.

        Raises `DataError` for a threshold that is no percentage.
        """
        columns = self.neuron_columns()
        return list(map(PruningCandidate, *candidate_columns(columns, threshold_percentile).values()))

    def neuron_columns(self) -> dict[str, NDArray[Any]]:
        """Of every neuron of every layer, in order: `layer_index`, `neuron_index`, `weight_magnitude`, `weight_rank`,
        `pruning_score`, `consumer_norm`, each (all neurons,).
        """
        magnitudes, norms = mean_weight(self.model, self.neurons), _consumer_norms(self.model, self.neurons)
        parts: list[tuple[NDArray[Any], ...]] = []
        for layer in self.layers.all:
            values, norm = layer.joined(magnitudes).double().numpy(), layer.joined(norms).double().numpy()
            rank = np.empty(layer.size, dtype=np.int64)
            rank[np.argsort(-values, kind="stable")] = np.arange(1, layer.size + 1)
            score = (rank - 1) / max(1, layer.size - 1)
            parts.append((np.full(layer.size, layer.index), np.arange(layer.size), values, rank, score, norm))
        names = ("layer_index", "neuron_index", "weight_magnitude", "weight_rank", "pruning_score", "consumer_norm")
        return {name: np.concatenate(own) for name, own in zip(names, zip(*parts, strict=True), strict=True)}

    def get_sparsity_analysis(self) -> dict[str, Any]:
        """The whole model and each of its modules, as JSON-ready data."""
        stats = self.extract_weight_stats()
        total = sum(entry.total_parameters for entry in stats)
        alive = sum(entry.non_zero_parameters for entry in stats)
        sparsity = 1 - alive / total
        magnitudes = mean_weight(self.model, self.neurons)
        bands = [_band(value) for layer in self.layers.all for value in layer.joined(magnitudes).tolist()]
        return {
            "overall_sparsity": sparsity,
            "sparsity_band": "low" if sparsity < MODERATE else "moderate" if sparsity <= HIGH else "high",
            "total_parameters": total,
            "non_zero_parameters": alive,
            "layer_sparsity": {
                entry.layer_name: {
                    "sparsity": entry.sparsity,
                    "total_params": entry.total_parameters,
                    "non_zero_params": entry.non_zero_parameters,
                }
                for entry in stats
            },
            "layer_stats": [asdict(entry) for entry in stats],
            "neurons": {"total": len(bands)} | {band: bands.count(band) for band in ("very low", "low", "normal")},
            "layers": [{"index": layer.index, "name": layer.name, "neurons": layer.size} for layer in self.layers.all],
        }

    def export_weight_analysis(self, path: str | Path) -> Path:
        """Write the analysis and all candidates as JSON, whole or not at all; raises `StorageError`."""
        candidates = [asdict(candidate) for candidate in self.identify_pruning_candidates()]
        write_json(path, {"type": "weight", **self.get_sparsity_analysis(), "candidates": candidates})
        return Path(path)

    def _stats(self, name: str, own: list[nn.Parameter]) -> LayerWeights:
        magnitudes = torch.cat([p.detach().abs().flatten().double() for p in own])
        if not torch.isfinite(magnitudes).all():
            raise DataError(f"The weights of '{name}' hold NaN or Inf.", hint="Mend the weights first.")
        total, alive = magnitudes.numel(), int(torch.count_nonzero(magnitudes))
        matrix = next((p.detach() for p in own if p.dim() >= 2), None)
        return LayerWeights(
            layer_name=name,
            layer_index=self.layers.index_of(name),
            total_parameters=total,
            non_zero_parameters=alive,
            sparsity=1 - alive / total,
            mean_magnitude=float(magnitudes.mean()),
            std_magnitude=float(magnitudes.std(correction=0)),
            min_magnitude=float(magnitudes.min()),
            max_magnitude=float(magnitudes.max()),
            l1_norm=float(magnitudes.sum()),
            l2_norm=float(torch.linalg.vector_norm(magnitudes)),
            patterns=None if matrix is None else patterns_of(matrix),
        )


def candidate_columns(columns: Mapping[str, NDArray[Any]], threshold_percentile: float) -> dict[str, list[Any]]:
    """The fields of `PruningCandidate` for all neurons of `neuron_columns`, each a list.

    Raises `DataError` for a threshold that is no percentage.
    """
    if isinstance(threshold_percentile, bool) or not 0 <= threshold_percentile <= 100:
        raise DataError(
            f"threshold_percentile = {threshold_percentile!r} is no percentage.", hint="Give a number from 0 to 100."
        )
    layers, ranks, magnitudes = columns["layer_index"], columns["weight_rank"], columns["weight_magnitude"]
    sizes = np.bincount(layers)
    kept = sizes - np.floor(sizes * threshold_percentile / 100 + 1e-9).astype(np.int64)
    bands = np.array(["very low", "low", "normal"])[(magnitudes >= VERY_LOW).astype(int) + (magnitudes > LOW)]
    return {
        "layer_index": layers.tolist(),
        "neuron_index": columns["neuron_index"].tolist(),
        "weight_magnitude": magnitudes.tolist(),
        "weight_rank": ranks.tolist(),
        "is_pruning_candidate": (ranks > kept[layers]).tolist(),
        "pruning_score": columns["pruning_score"].tolist(),
        "band": bands.tolist(),
        "consumer_norm": columns["consumer_norm"].tolist(),
    }


def _band(magnitude: float) -> str:
    return "very low" if magnitude < VERY_LOW else "low" if magnitude <= LOW else "normal"


def _consumer_norms(model: nn.Module, neurons: NeuronMap) -> Mapping[str, Tensor]:
    """L2 norm of the weights that read each neuron, (size,) by group."""
    named = dict(model.named_parameters(remove_duplicate=False))
    norms: dict[str, Tensor] = {}
    for group in neurons:
        total = torch.zeros(group.size, dtype=torch.float64)
        for site in group.consumers:
            if site.parameter in named:
                weight = named[site.parameter].detach().double().movedim(site.dim, 0).flatten(1).square().sum(1).cpu()
                total += weight[torch.from_numpy(group.members[site])].sum(1)
        norms[group.name] = total.sqrt()
    return norms
