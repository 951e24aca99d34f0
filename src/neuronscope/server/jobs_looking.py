"""Jobs that look at a model: its card, its weights, and what would happen without some neurons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from neuronscope.ablation import ABLATIONS, by_neuron
from neuronscope.inputs import batches_of
from neuronscope.server.arrays import encoded
from neuronscope.server.loaded import Json, Loaded, Params
from pruner.compensation.footprint import free_bytes
from pruner.compensation.targets import parameters_left
from pruner.metrics import count_flops, count_parameters, latencies_ms
from tracker.batches import Batch, evaluating, forward
from tracker.errors import DataError
from tracker.neuron_map import NeuronGroup, Read
from tracker.progress import step
from tracker.taps import tap

MOST_BINS = 40


def load_model(it: Loaded, _: Params) -> Json:
    """Everything about the model that its weights alone say."""
    neurons, config = it.analyzer.neurons, getattr(it.model, "config", None)
    with step("Reading the weights"):
        columns = it.weights.neuron_columns()
        weights = it.weights.get_sparsity_analysis()
    unique = {id(p): p for p in it.model.parameters()}.values()
    kinds = list(dict.fromkeys(str(p.dtype).removeprefix("torch.") for p in unique))
    return {
        "name": it.name,
        "fingerprint": it.fingerprint,
        "class": type(it.model).__name__,
        "family": getattr(config, "model_type", type(it.model).__name__),
        "layers": len(it.analyzer.layers),
        "hidden_size": _hidden_size(config, neurons.groups),
        "parameters": count_parameters(it.model),
        "bytes": sum(p.numel() * p.element_size() for p in unique),
        "dtypes": kinds,
        "device": str(next(it.model.parameters()).device),
        "reads": "texts" if it.tokenizer is not None else "images",
        "writes": bool(getattr(it.model, "can_generate", lambda: False)()),
        "layer_names": [layer.name for layer in it.analyzer.layers.all],
        "layer_sizes": [layer.size for layer in it.analyzer.layers.all],
        "frozen": [{"name": entry.name, "size": entry.size, "reason": entry.reason} for entry in neurons.frozen],
        "weights": weights,
        "columns": {name: encoded(values) for name, values in columns.items()},
        "memory": _memory(str(next(it.model.parameters()).device)),
    }


def latency(it: Loaded, params: Params) -> Json:
    """How long one forward over the first batch of the inputs takes, measured for about a second.

    `neuron_shares`: for every layer the share of all operations of a forward that are one neuron's, so that the time
    without some neurons can be estimated at once.
    """
    batch = next(iter(batches_of(it.model, it.tokenizer, it.inputs(params))))
    first = next((x for x in (*batch.args, *batch.kwargs.values()) if isinstance(x, torch.Tensor)), None)
    (found,) = latencies_ms([it.model], [batch])
    shape = None if first is None else list(first.shape)
    return {"latency_ms": found, "input_shape": shape, "neuron_shares": _neuron_shares(it, batch)}


def patterns(it: Loaded, _: Params) -> Json:
    """What every matrix looks like."""
    layers = it.analyzer.layers
    return {
        "patterns": [
            {"layer_name": name, "layer_index": layers.index_of(name), **asdict(found)}
            for name, found in it.weights.get_sparsity_patterns().items()
        ]
    }


def impact(it: Loaded, params: Params) -> Json:
    """Some neurons of one layer."""
    impact = it.analyzer.simulate_neuron_pruning(
        params["layer_index"],
        params["neuron_indices"],
        params["input_text"],
        ablation=params.get("ablation", "zero"),
    )
    return impact.to_json()


def simulate(it: Loaded, params: Params) -> Json:
    """A set of neurons of any layers: the impact, what is saved, and what the model then says."""
    chosen = [tuple(pair) for pair in params["neurons"]]
    inputs = it.inputs(params)
    impact = it.analyzer.simulate(chosen, inputs, ablation=params["ablation"], batch_size=params["batch_size"])
    layers = it.analyzer.layers.split(chosen)
    saved = _saved(it, layers)
    said = None
    if params["continuations"] and all(isinstance(text, str) for text in inputs):
        said = it.analyzer.continuations(
            chosen, inputs[:4], ablation=params["ablation"], tokens=params["continuations"]
        )
    return {**impact.to_json(), "neurons": len(set(chosen)), "saved": saved, "continuations": said}


def importance(it: Loaded, params: Params) -> Json:
    """Every neuron of a layer, or of the model."""
    options = {key: params[key] for key in ("method", "probes") if params.get(key) is not None}
    layer, inputs = params.get("layer_index"), it.inputs(params)
    if layer is not None:
        found = [it.analyzer.analyze_neuron_importance(inputs, layer, **options)]
    else:
        found = it.analyzer.analyze_model_importance(inputs, **options)
    entries = [asdict(entry) for layer_found in found for entry in layer_found]
    return {
        "importance_scores": entries,
        "total_neurons": len(entries),
        "critical_neurons": sum(entry["is_critical"] for entry in entries),
        "method": found[0].method,
        "rank_correlation": [_number(one.rank_correlation) for one in found],
    }


def metric(it: Loaded, params: Params) -> Json:
    """One number for every neuron of the model, in order."""
    name = params["metric"]
    method = {"first-order": "first-order"}.get(name, "second-order")
    found = it.analyzer.analyze_model_importance(it.inputs(params), method=method, sample=0)
    attribute = {"activity": "activation_magnitude", "variance": "activation_variance"}.get(name, "impact_score")
    values = np.array([getattr(entry, attribute) for layer in found for entry in layer], dtype=np.float32)
    return {"metric": name, "values": encoded(values)}


def batch(it: Loaded, params: Params) -> Json:
    """Many neurons, each alone and all together."""
    return it.analyzer.batch_pruning_analysis(
        it.inputs(params),
        params["pruning_candidates"],
        params["batch_size"],
        approximate=params["approximate"],
    )


def safe_set(it: Loaded, params: Params) -> Json:
    """The largest set found that is safe together."""
    candidates = params.get("candidates")
    found = it.analyzer.safe_set(
        it.inputs(params),
        candidates=None if candidates is None else [tuple(pair) for pair in candidates],
        threshold=params["threshold"],
        ablation=params["ablation"],
    )
    return {
        "neurons": [list(pair) for pair in sorted(found.neurons)],
        "impact_score": found.impact_score,
        "evaluations": found.evaluations,
    }


def neuron(it: Loaded, params: Params) -> Json:
    """One neuron: its weights, what it does on the inputs, and what its absence does."""
    layer, neuron, inputs = params["layer_index"], params["neuron_index"], it.inputs(params)
    texts = [text for text in inputs if isinstance(text, str)]
    activations = _activations(it, layer, inputs)
    own = activations[:, neuron]
    counts, edges = np.histogram(own, bins=min(MOST_BINS, max(5, len(own) // 5)))
    centred = activations - activations.mean(0)
    norms = np.maximum(np.sqrt((centred**2).sum(0)), 1e-300)
    correlation = centred.T @ centred[:, neuron] / (norms * norms[neuron])
    correlation[neuron] = 0
    closest = np.argsort(-np.abs(correlation))[:10]
    return {
        "layer_index": layer,
        "neuron_index": neuron,
        "activations": {"counts": counts.tolist(), "edges": edges.tolist(), "places": len(own)},
        "correlated": [{"neuron_index": int(n), "correlation": float(correlation[n])} for n in closest],
        "top_tokens": it.analyzer.top_tokens(layer, neuron, texts) if texts and it.tokenizer else [],
        "impact": {how: it.analyzer.simulate([(layer, neuron)], inputs, ablation=how).to_json() for how in ABLATIONS},
    }


def _saved(it: Loaded, removed: Mapping[str, Sequence[int]]) -> Json:
    before = count_parameters(it.model)
    after = int(parameters_left(it.model, it.analyzer.neurons, {name: len(own) for name, own in removed.items()}))
    size = next(it.model.parameters()).element_size()
    return {"parameters_before": before, "parameters_after": after, "bytes_saved": (before - after) * size}


def _neuron_shares(it: Loaded, batch: Batch) -> list[float]:
    """Two operations for each of a neuron's weights at every place that is read, over all that PyTorch counts."""
    places: dict[str, int] = {}
    layers = it.analyzer.layers

    def visit(group: NeuronGroup, read: Read, x: torch.Tensor) -> None:
        places[group.name] = max(places.get(group.name, 0), x.numel() // x.shape[read.axis])

    with evaluating(it.model), tap(it.model, [group for layer in layers.all for group in layer.groups], visit):
        forward(it.model, batch)
    everything = count_flops(it.model, batch)
    dense = count_parameters(it.model)
    found = []
    for layer in layers.all:
        weights = [
            dense - int(parameters_left(it.model, it.analyzer.neurons, {group.name: 1})) for group in layer.groups
        ]
        own = sum(
            2 * one * places.get(group.name, 0) * group.size for one, group in zip(weights, layer.groups, strict=True)
        )
        found.append(min(own / max(everything, 1), 1.0) / max(layer.size, 1))
    return found


def _activations(it: Loaded, layer: int, inputs: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What is read of a layer's neurons, (places, neurons)."""
    heard: dict[str, list[torch.Tensor]] = {}
    groups = it.analyzer.layers[layer].groups
    with evaluating(it.model):
        for batch in batches_of(it.model, it.tokenizer, inputs):

            def visit(group: NeuronGroup, read: Read, x: torch.Tensor, batch: Batch = batch) -> None:
                heard.setdefault(group.name, []).append(by_neuron(x, read, group, batch))

            with tap(it.model, groups, visit):
                forward(it.model, batch)
    parts = [torch.cat(heard[group.name]) for group in groups if group.name in heard]
    if len(parts) != len(groups) or len({len(part) for part in parts}) != 1:
        raise DataError(
            f"The neurons of layer {layer} are not read at the same places.", hint="Ask for the impact instead."
        )
    return torch.cat(parts, 1).double().cpu().numpy()


def _hidden_size(config: Any, groups: Sequence[NeuronGroup]) -> int:
    found = getattr(config, "hidden_size", None) or getattr(config, "n_embd", None)
    return int(found) if isinstance(found, int) else max((group.size for group in groups), default=0)


def _memory(device: str) -> Json:
    return {"device": device, "free_bytes": free_bytes(torch.device(device))}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
