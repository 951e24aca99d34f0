"""What the weights of a model say by themselves: how large they are, how many are zero, and in which patterns."""

from __future__ import annotations

import math
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
from neuronscope.quantized import dequantized
from pruner.current_map import current_map
from pruner.scores import mean_weight
from tracker.admission import admitted
from tracker.errors import DataError
from tracker.files import write_json
from tracker.neuron_map import NeuronMap
from tracker.progress import progress

VERY_LOW, LOW = 0.01, 0.05
"""Below these mean magnitudes a neuron's weights are very low, or low."""
MODERATE, HIGH = 0.05, 0.20
"""From these shares of zeros on, sparsity is moderate, or high."""


_PIECE = 2**18
"""So many weights at a time: they stay near the processor while all is found out about them."""


@dataclass(frozen=True)
class LayerWeights:
    """All weights and biases that one module owns; those that are shared count for the first that has them.

    `layer_index` is the number of the block that the module lies in, -1 outside of all.
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
        self.model = admitted(dequantized(model))
        self.neurons = neurons or current_map(self.model)
        self.layers = Layers.of(self.neurons)
        if any(parameter.is_meta for parameter in self.model.parameters()):
            raise DataError("The model is on the meta device: it has no weights.", hint="Load its weights first.")

    def extract_weight_stats(self) -> list[LayerWeights]:
        """One entry for every module that owns weights, in the model's order."""
        return [self._stats(name, own) for name, own in self._owned()]

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
        patterns = {name: asdict(found) for name, found in self.get_sparsity_patterns().items()}
        analysis = {"type": "weight", **self.get_sparsity_analysis(), "patterns": patterns}
        write_json(path, {**analysis, "candidates": candidates})
        return Path(path)

    def get_sparsity_patterns(self) -> dict[str, Patterns]:
        """What the first matrix of every module looks like, by the module's name; shared ones count for the first.

        The effective ranks take seconds for a large model.
        """
        return {
            name: patterns_of(matrix)
            for name, own in progress(self._owned(), "Looking for patterns")
            if (matrix := next((p.detach() for p in own if p.dim() >= 2), None)) is not None
        }

    def _owned(self) -> list[tuple[str, list[nn.Parameter]]]:
        """The modules that own weights, each with those that no module before it has."""
        seen: set[int] = set()
        found: list[tuple[str, list[nn.Parameter]]] = []
        for name, module in self.model.named_modules():
            own = [p for p in module._parameters.values() if p is not None and id(p) not in seen]
            seen |= set(map(id, own))
            if own:
                found.append((name, own))
        return found

    def _stats(self, name: str, own: list[nn.Parameter]) -> LayerWeights:
        total = alive = 0
        l1 = l2 = 0.0
        low, high = math.inf, 0.0
        for part in (part for p in own for part in p.detach().reshape(-1).split(_PIECE)):
            magnitudes = part.abs().float()
            square = float(magnitudes.square().sum(dtype=torch.float64))
            if not math.isfinite(square) and not torch.isfinite(magnitudes).all():
                raise DataError(f"The weights of '{name}' hold NaN or Inf.", hint="Mend the weights first.")
            least, most = torch.aminmax(magnitudes)
            total, alive = total + part.numel(), alive + int(torch.count_nonzero(part))
            l1, l2 = l1 + float(magnitudes.sum(dtype=torch.float64)), l2 + square
            low, high = min(low, float(least)), max(high, float(most))
        mean = l1 / total
        return LayerWeights(
            layer_name=name,
            layer_index=self.layers.index_of(name),
            total_parameters=total,
            non_zero_parameters=alive,
            sparsity=1 - alive / total,
            mean_magnitude=mean,
            std_magnitude=math.sqrt(max(0.0, l2 / total - mean**2)),
            min_magnitude=low,
            max_magnitude=high,
            l1_norm=l1,
            l2_norm=math.sqrt(l2),
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
                squares = named[site.parameter].detach().float().square()
                others = [dim for dim in range(squares.dim()) if dim != site.dim % squares.dim()]
                weight = (squares.sum(others) if others else squares).double().cpu()
                total += weight[torch.from_numpy(group.members[site])].sum(1)
        norms[group.name] = total.sqrt()
    return norms
