"""Jobs that make models: found, cut, repaired, trained and compared; the one they start from stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from neuronscope.comparison import compare_models
from neuronscope.inputs import batches_of
from neuronscope.judging import metric_of
from neuronscope.server.loaded import Json, Loaded, Params
from neuronscope.server.made import Made
from pruner import IntegratedTrackingPruningWorkflow, PruningPlan, create_default_config, recover, save_pruned
from pruner import optimize as smallest
from pruner.metrics import count_parameters
from tracker.batches import Batch
from tracker.errors import DataError

if TYPE_CHECKING:
    from neuronscope.server.session import Session


def compare(session: Session, it: Loaded, params: Params) -> Json:
    """Models held against this one, and plans (`sets`) against each other."""
    names = [it.name, *[name for name in params["models"] if name != it.name]]
    loaded = {name: session.loaded(name) if name != it.name else it for name in names}
    inputs = it.inputs(params)
    tokenizers = {id(one.model): one.tokenizer for one in loaded.values()}

    def batches(model: nn.Module) -> Sequence[Batch]:
        return batches_of(model, tokenizers[id(model)], inputs)

    found: Json = {"selections": {}}
    if len(loaded) > 1:
        found |= compare_models({name: one.model for name, one in loaded.items()}, batches)
    sets = {name: [tuple(pair) for pair in pairs] for name, pairs in params["sets"].items() if pairs}
    return found | {"selections": it.analyzer.compare_sets(sets, inputs)}


def optimize(session: Session, it: Loaded, params: Params) -> Json:
    """The front of sizes and quality; what a point removes is in its `neurons`. Each try is told as it is judged."""
    learn, judge = it.data(params), it.data(params, "held-out")
    name, metric = metric_of(params.get("metric"), it.model, judge)
    dense = count_parameters(it.model)

    def judged(model: nn.Module) -> float:
        value = metric(model)
        session.tell({"name": name, "parameters": count_parameters(model) / dense, "metric": value})
        return value

    found = smallest(
        copy.deepcopy(it.model),
        learn,
        judged,
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


def apply(session: Session, it: Loaded, params: Params) -> Json:
    """Remove a selection from a copy, repair, verify and store it; the model itself stays."""
    chosen = it.analyzer.layers.split([tuple(pair) for pair in params["neurons"]])
    plan = PruningPlan(chosen, None, {"strategy": "chosen by hand"})
    config = create_default_config().update(
        repair={"enabled": params["repair"], "effort": params["effort"]},
        thresholds={"max_sparsity_per_layer": 0.99},
        validation={"max_pruning_ratio": 0.99},
        logging={"log_to_console": False},
    )
    workflow = IntegratedTrackingPruningWorkflow(config, session.made.outputs)
    base = made.base if (made := session.made.get(it.name)) else it.name
    results = workflow.run_complete_workflow(
        copy.deepcopy(it.model), it.data(params), model_name=_file_name(it.name), plan=plan, base=base
    )
    outputs, summary = results["outputs"], results["verification_results"]["summary"]
    new = session.made.add(
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


def finetune(session: Session, it: Loaded, params: Params) -> Json:
    """Train a copy of a model that was made here for a while, on labels or on its base's answers, and store it."""
    made = session.made.get(it.name)
    if made is None:
        raise DataError(f"{it.name} was not made here.", hint="Apply a selection first, and fine-tune the result.")
    twin, judge = copy.deepcopy(it.model), it.data(params, "held-out")
    name, metric = metric_of(None, it.model, judge)
    teacher = session.loaded(made.base).model if params["distill"] else None
    found = recover(
        twin,
        it.data(params),
        steps=params["steps"],
        teacher=teacher,
        metric=metric,
        checks=min(10, params["steps"]),
        learning_rate=params.get("learning_rate"),
    )
    new_id = session.made.free(f"{made.id}-tuned")
    checkpoint = session.made.outputs / "pruned_models" / new_id
    save_pruned(twin, checkpoint, base=made.base)
    title = params["name"] or f"{made.title}, fine-tuned"
    new = session.made.add(Made(new_id, title, made.base, checkpoint, made.report, made.plan))
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


def _pairs(it: Loaded, remove: Mapping[str, Sequence[int]]) -> list[list[int]]:
    """(layer, neuron) pairs of a plan; what lies in no layer of the analyzer is left out."""
    found = []
    for layer in it.analyzer.layers.all:
        start = 0
        for group in layer.groups:
            found += [[layer.index, start + neuron] for neuron in remove.get(group.name, ())]
            start += group.size
    return found


def _file_name(name: str) -> str:
    return name.rsplit("/", 1)[-1].replace(":", "-")
