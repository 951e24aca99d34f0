"""The models of a worker, and the jobs that are done with them."""

from __future__ import annotations

import base64
import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from neuronscope.ablation import ABLATIONS, by_neuron
from neuronscope.comparison import compare_models
from neuronscope.impact import PruningImpactAnalyzer
from neuronscope.inputs import batches_of
from neuronscope.judging import metric_of
from neuronscope.loader import MultiModelLoader
from neuronscope.samples import sample_inputs
from neuronscope.server.made import Made, MadeModels
from neuronscope.weights import WeightAnalyzer
from pruner import IntegratedTrackingPruningWorkflow, PruningPlan, create_default_config, optimize, recover, save_pruned
from pruner.checkpoint import load_pruned
from pruner.compensation.footprint import free_bytes
from pruner.compensation.targets import parameters_left
from pruner.metrics import count_parameters
from tracker import discover
from tracker.batches import Batch, evaluating, forward
from tracker.errors import DataError
from tracker.fingerprint import content_fingerprint
from tracker.neuron_map import NeuronGroup, Read
from tracker.progress import step
from tracker.taps import tap

KEPT = 2
"""So many models stay in memory."""
MOST_BINS = 40

_DTYPES = {"float32": "<f4", "int64": "<i8"}

Params = Mapping[str, Any]
Json = dict[str, Any]


@dataclass
class Loaded:
    """A model that was loaded, and what looks at it."""

    name: str
    model: nn.Module
    tokenizer: Any
    analyzer: PruningImpactAnalyzer
    weights: WeightAnalyzer
    fingerprint: str

    def inputs(self, params: Params) -> Any:
        """What the client gave, or real samples."""
        return params.get("input_texts") or sample_inputs(self.model, self.tokenizer)

    def data(self, params: Params, split: str = "train") -> list[dict[str, Any]]:
        """The same as batches that `pruner` takes, for language models with labels."""
        given = params.get("input_texts") or sample_inputs(self.model, self.tokenizer, 32, split)
        batches = batches_of(self.model, self.tokenizer, given, 8)
        return [_as_data(batch) for batch in batches]


class Session:
    """Runs jobs by their kind; the models that they are about are loaded when they are first needed."""

    def __init__(self, folder: Path, device: str | None) -> None:
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._made = MadeModels(folder)
        self._models: OrderedDict[str, Loaded] = OrderedDict()

    def run(self, kind: str, model: str, params: Params) -> Json:
        """The result of a job, as JSON-ready data; raises what is wrong with it."""
        work: Callable[[Loaded, Params], Json] = getattr(self, f"_{kind.replace('-', '_')}")
        return work(self._loaded(model), params)

    def _loaded(self, name: str) -> Loaded:
        if name not in self._models:
            with step(f"Loading {name}"):
                self._models[name] = self._load(name)
            while len(self._models) > KEPT:
                self._models.popitem(last=False)
        self._models.move_to_end(name)
        return self._models[name]

    def _load(self, name: str) -> Loaded:
        made = self._made.get(name)
        if made is None:
            model, tokenizer = MultiModelLoader().load_model(name)
        else:
            base, tokenizer = MultiModelLoader().load_model(made.base)
            model = load_pruned(made.checkpoint, base)
        model = model.to(self._device)
        neurons = discover(model)
        analyzer = PruningImpactAnalyzer(model, tokenizer, neurons)
        return Loaded(name, model, tokenizer, analyzer, WeightAnalyzer(model, neurons), content_fingerprint(model))

    # Kinds of jobs. Their names are those of the methods, without the underscore.

    def _load_model(self, it: Loaded, _: Params) -> Json:
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
            "device": self._device,
            "reads": "texts" if it.tokenizer is not None else "images",
            "writes": bool(getattr(it.model, "can_generate", lambda: False)()),
            "layer_names": [layer.name for layer in it.analyzer.layers.all],
            "layer_sizes": [layer.size for layer in it.analyzer.layers.all],
            "frozen": [{"name": entry.name, "size": entry.size, "reason": entry.reason} for entry in neurons.frozen],
            "weights": weights,
            "columns": {name: encoded(values) for name, values in columns.items()},
            "memory": _memory(self._device),
        }

    def _patterns(self, it: Loaded, _: Params) -> Json:
        layers = it.analyzer.layers
        return {
            "patterns": [
                {"layer_name": name, "layer_index": layers.index_of(name), **asdict(found)}
                for name, found in it.weights.get_sparsity_patterns().items()
            ]
        }

    def _impact(self, it: Loaded, params: Params) -> Json:
        impact = it.analyzer.simulate_neuron_pruning(
            params["layer_index"],
            params["neuron_indices"],
            params["input_text"],
            ablation=params.get("ablation", "zero"),
        )
        return impact.to_json()

    def _simulate(self, it: Loaded, params: Params) -> Json:
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

    def _importance(self, it: Loaded, params: Params) -> Json:
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

    def _metric(self, it: Loaded, params: Params) -> Json:
        """One number for every neuron of the model, in order."""
        name = params["metric"]
        method = {"first-order": "first-order"}.get(name, "second-order")
        found = it.analyzer.analyze_model_importance(it.inputs(params), method=method, sample=1)
        attribute = {"activity": "activation_magnitude", "variance": "activation_variance"}.get(name, "impact_score")
        values = np.array([getattr(entry, attribute) for layer in found for entry in layer], dtype=np.float32)
        return {"metric": name, "values": encoded(values)}

    def _batch(self, it: Loaded, params: Params) -> Json:
        return it.analyzer.batch_pruning_analysis(
            it.inputs(params),
            params["pruning_candidates"],
            params["batch_size"],
            approximate=params["approximate"],
        )

    def _safe_set(self, it: Loaded, params: Params) -> Json:
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

    def _neuron(self, it: Loaded, params: Params) -> Json:
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
            "impact": {
                how: it.analyzer.simulate([(layer, neuron)], inputs, ablation=how).to_json() for how in ABLATIONS
            },
        }

    def _compare(self, it: Loaded, params: Params) -> Json:
        names = [it.name, *[name for name in params["models"] if name != it.name]]
        loaded = {name: self._loaded(name) if name != it.name else it for name in names}
        inputs = it.inputs(params)
        tokenizers = {id(one.model): one.tokenizer for one in loaded.values()}

        def batches(model: nn.Module) -> Sequence[Batch]:
            return batches_of(model, tokenizers[id(model)], inputs)

        found: Json = {"selections": {}}
        if len(loaded) > 1:
            found |= compare_models({name: one.model for name, one in loaded.items()}, batches)
        sets = {name: [tuple(pair) for pair in pairs] for name, pairs in params["sets"].items() if pairs}
        return found | {"selections": it.analyzer.compare_sets(sets, inputs)}

    def _optimize(self, it: Loaded, params: Params) -> Json:
        """The front of sizes and quality; what a point removes is in its `neurons`."""
        learn, judge = it.data(params), it.data(params, "held-out")
        name, metric = metric_of(params.get("metric"), it.model, judge)
        found = optimize(
            _copied(it.model),
            learn,
            metric,
            tolerance=params.get("tolerance"),
            target=params.get("target"),
            kinds=("mlp",) if any(group.kind == "mlp" for group in it.analyzer.neurons) else (),
            effort=params["effort"],
            resolution=params["resolution"],
            dry_run=True,
        )["search"]
        points = [{**point, "neurons": _pairs(it, point["remove"])} for point in found["front"]]
        for point in points:
            del point["remove"]
        chosen = found["chosen"]
        return {
            "metric": name,
            "dense": found["dense"],
            "front": points,
            "chosen": None if chosen is None else next((i for i, p in enumerate(found["front"]) if p == chosen), None),
            "evaluations": found["evaluations"],
        }

    def _apply(self, it: Loaded, params: Params) -> Json:
        """Remove a selection from a copy, repair, verify and store it; the model itself stays."""
        chosen = it.analyzer.layers.split([tuple(pair) for pair in params["neurons"]])
        plan = PruningPlan(chosen, None, {"strategy": "chosen by hand"})
        config = create_default_config().update(
            repair={"enabled": params["repair"], "effort": params["effort"]},
            thresholds={"max_sparsity_per_layer": 0.99},
            validation={"max_pruning_ratio": 0.99},
            logging={"log_to_console": False},
        )
        workflow = IntegratedTrackingPruningWorkflow(config, self._made.outputs)
        base = made.base if (made := self._made.get(it.name)) else it.name
        results = workflow.run_complete_workflow(
            _copied(it.model), it.data(params), model_name=_file_name(it.name), plan=plan, base=base
        )
        outputs, summary = results["outputs"], results["verification_results"]["summary"]
        new = self._made.add(
            Made(
                id=results["run"]["name"],
                title=params["name"] or f"{it.name}, {plan.neurons} neurons fewer",
                base=base,
                checkpoint=Path(outputs["pruned_model"]),
                report=Path(results["report"]["html"]),
                plan=plan.to_json(),
            )
        )
        return {
            "model_name": new.name,
            "title": new.title,
            "neurons_pruned": plan.neurons,
            "verification": summary,
            "metrics": results["metrics"],
            "report": f"/api/report/{new.id}",
            "download": f"/api/downloads/{new.id}",
        }

    def _finetune(self, it: Loaded, params: Params) -> Json:
        """Train a copy of a model that was made here for a while, on labels or on its base's answers, and store it."""
        made = self._made.get(it.name)
        if made is None:
            raise DataError(f"{it.name} was not made here.", hint="Apply a selection first, and fine-tune the result.")
        twin, judge = _copied(it.model), it.data(params, "held-out")
        name, metric = metric_of(None, it.model, judge)
        teacher = self._loaded(made.base).model if params["distill"] else None
        found = recover(
            twin,
            it.data(params),
            steps=params["steps"],
            teacher=teacher,
            metric=metric,
            checks=min(10, params["steps"]),
            learning_rate=params.get("learning_rate"),
        )
        new_id = self._made.free(f"{made.id}-tuned")
        checkpoint = self._made.outputs / "pruned_models" / new_id
        save_pruned(twin, checkpoint, base=made.base)
        title = params["name"] or f"{made.title}, fine-tuned"
        new = self._made.add(Made(new_id, title, made.base, checkpoint, made.report, made.plan))
        return {
            "model_name": new.name,
            "title": new.title,
            "metric": name,
            "before": found.before,
            "after": found.after,
            "steps": found.steps,
            "checks": [asdict(check) for check in found.checks],
            "download": f"/api/downloads/{new.id}",
        }


def encoded(values: np.ndarray[Any, Any]) -> Json:
    """An array as plain data: floats of 4 bytes, integers of 8, little-endian, in base 64."""
    kind = "float32" if values.dtype.kind == "f" else "int64"
    data = np.ascontiguousarray(values.astype(_DTYPES[kind]))
    return {"dtype": kind, "data": base64.b64encode(data.tobytes()).decode()}


def decoded(value: Mapping[str, str]) -> np.ndarray[Any, Any]:
    """What `encoded` was given."""
    return np.frombuffer(base64.b64decode(value["data"]), dtype=_DTYPES[value["dtype"]])


def _as_data(batch: Batch) -> Any:
    if batch.kwargs:
        found = dict(batch.kwargs)
        ids = found.get("input_ids")
        if ids is not None and "decoder_input_ids" not in found:
            found["labels"] = ids.masked_fill(~batch.mask, -100) if batch.mask is not None else ids
        return found
    return batch.args[0]


def _copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def _pairs(it: Loaded, remove: Mapping[str, Sequence[int]]) -> list[list[int]]:
    """(layer, neuron) pairs of a plan; what lies in no layer of the analyzer is left out."""
    found = []
    for layer in it.analyzer.layers.all:
        start = 0
        for group in layer.groups:
            found += [[layer.index, start + neuron] for neuron in remove.get(group.name, ())]
            start += group.size
    return found


def _saved(it: Loaded, removed: Mapping[str, Sequence[int]]) -> Json:
    before = count_parameters(it.model)
    after = int(parameters_left(it.model, it.analyzer.neurons, {name: len(own) for name, own in removed.items()}))
    size = next(it.model.parameters()).element_size()
    return {"parameters_before": before, "parameters_after": after, "bytes_saved": (before - after) * size}


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


def _file_name(name: str) -> str:
    return name.rsplit("/", 1)[-1].replace(":", "-")
