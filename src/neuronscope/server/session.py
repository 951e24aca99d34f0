"""The models of a worker, and the jobs that can be done with them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from neuronscope.impact import PruningImpactAnalyzer
from neuronscope.loader import MultiModelLoader
from neuronscope.server import jobs_looking, jobs_making
from neuronscope.server.loaded import Json, Loaded, Params
from neuronscope.server.made import MadeModels
from neuronscope.weights import WeightAnalyzer
from pruner.checkpoint import load_pruned
from tracker import discover
from tracker.fingerprint import content_fingerprint
from tracker.progress import step

KEPT = 2
"""So many models stay in memory."""


class Session:
    """Runs jobs by their kind; the models that they are about are loaded when they are first needed."""

    def __init__(self, folder: Path, device: str | None) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.made = MadeModels(folder)
        self.tell: Callable[[Json], None] = lambda partial: None
        """Takes what a job has found so far; the worker that runs it sets this."""
        self._models: OrderedDict[str, Loaded] = OrderedDict()

    def run(self, kind: str, model: str, params: Params) -> Json:
        """The result of a job, as JSON-ready data; raises what is wrong with it."""
        it = self.loaded(model)
        return LOOKING[kind](it, params) if kind in LOOKING else MAKING[kind](self, it, params)

    def loaded(self, name: str) -> Loaded:
        """The model called `name`; the ones that were used last stay in memory."""
        if name not in self._models:
            with step(f"Loading {name}"):
                self._models[name] = self._load(name)
            while len(self._models) > KEPT:
                self._models.popitem(last=False)
        self._models.move_to_end(name)
        return self._models[name]

    def _load(self, name: str) -> Loaded:
        made = self.made.get(name)
        if made is None:
            model, tokenizer = MultiModelLoader().load_model(name)
        else:
            base, tokenizer = MultiModelLoader().load_model(made.base)
            model = load_pruned(made.checkpoint, base)
        model = model.to(self.device)
        neurons = discover(model)
        analyzer = PruningImpactAnalyzer(model, tokenizer, neurons)
        return Loaded(name, model, tokenizer, analyzer, WeightAnalyzer(model, neurons), content_fingerprint(model))


LOOKING: Mapping[str, Callable[[Loaded, Params], Json]] = {
    "load-model": jobs_looking.load_model,
    "latency": jobs_looking.latency,
    "patterns": jobs_looking.patterns,
    "impact": jobs_looking.impact,
    "simulate": jobs_looking.simulate,
    "importance": jobs_looking.importance,
    "metric": jobs_looking.metric,
    "batch": jobs_looking.batch,
    "safe-set": jobs_looking.safe_set,
    "neuron": jobs_looking.neuron,
}
MAKING: Mapping[str, Callable[[Session, Loaded, Params], Json]] = {
    "compare": jobs_making.compare,
    "optimize": jobs_making.optimize,
    "apply": jobs_making.apply,
    "finetune": jobs_making.finetune,
}
