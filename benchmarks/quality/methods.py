"""How neurons are chosen and what is done to the weights that stay: the field's ways, and ours.

The field's selectors take the same share of every layer (FLAP and ours divide it themselves). Each is run alone, as its
authors publish it, and with our closed form behind it, which is what a user of ours would get from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from benchmarks.quality.torch_pruning_masks import masks
from torch import Tensor, nn

import pruner
from pruner import criteria
from pruner.compensation.bench import Bench
from pruner.compensation.budgets import Layer, uniform
from pruner.compensation.closed_form import (
    METHODS,
    Wanted,
    problems_of,
    prune_in_order,
    silence,
    solve_consumer,
    walk,
)
from pruner.compensation.elimination import eliminate, swapped
from pruner.compensation.observation import observe
from pruner.compensation.survey import survey
from pruner.criteria import Evidence
from pruner.criteria_strategies import standardised
from pruner.plan import PruningPlan
from tracker.batches import evaluating, iter_batches
from tracker.discover import discover
from tracker.neuron_map import NeuronMap


@dataclass(frozen=True)
class Task:
    """A model to be pruned in place, the groups that lose `ratio` of their neurons, and data."""

    model: nn.Module
    data: list[Any]
    kind: str
    ratio: float
    seed: int

    def neurons(self) -> NeuronMap:
        """The model's map."""
        return discover(self.model, data_loader=self.data)

    def groups(self, neurons: NeuronMap) -> list[str]:
        """The groups of the kind, all exact."""
        return [g.name for g in neurons if g.kind == self.kind and g.exact]


Method = Callable[[Task], None]


def methods() -> dict[str, Method]:
    """All of them, by the name in the table; the first word is the selector."""
    found: dict[str, Method] = {}
    for name in ("random", "producer", "consumer", "both", "taylor", "wanda", "obs"):
        found[name] = _selected(name, repair=())
        found[f"{name} + closed form"] = _selected(name, repair=METHODS)
    found["flap"] = _flap(("bias", "none"))
    found["flap + closed form"] = _flap(METHODS)
    found["obs + least squares"] = _selected("obs", repair=("least squares",), in_order=False)
    found["wanda + least squares"] = _selected("wanda", repair=("least squares",), in_order=False)
    for name in ("magnitude", "taylor"):
        found[f"torch-pruning {name}"] = _torch_pruning(name, repair=())
        found[f"torch-pruning {name} + closed form"] = _torch_pruning(name, repair=METHODS)
    found["osscar"] = _osscar
    found["modegpt-I"] = _modegpt
    found["ours low"] = _ours("low")
    found["ours low, uniform"] = _ours("low", budgets="uniform")
    found["ours default"] = _ours("default")
    found["ours high"] = _ours("high")
    return found


def _ours(effort: str, budgets: str = "measured") -> Method:
    def run(task: Task) -> None:
        kinds = {task.kind}
        config = pruner.create_default_config().update(
            thresholds={"max_sparsity_per_layer": 0.95}, logging={"log_to_console": False}
        )
        pruner.compress(
            task.model,
            task.data,
            ratio=task.ratio,
            kinds=kinds,
            effort=effort,
            budgets=budgets,
            seed=task.seed,
            config=config,
        )

    return run


def _selected(name: str, repair: tuple[Any, ...], in_order: bool = True) -> Method:
    def run(task: Task) -> None:
        neurons = task.neurons()
        with evaluating(task.model):
            batches = list(iter_batches(task.data, task.model))
            scores = criteria.find(name)(Evidence(task.model, neurons, batches, task.seed))
            gone = {group: scores[group].argsort()[:count] for group, count in _uniform(task, neurons).items()}
            _finish(task, neurons, batches, gone, repair, in_order)

    return run


def _torch_pruning(criterion: str, repair: tuple[Any, ...]) -> Method:
    """Torch-Pruning's masks; the repair then is ours."""

    def run(task: Task) -> None:
        neurons = task.neurons()
        with evaluating(task.model):
            batches = list(iter_batches(task.data, task.model))
            groups = task.groups(neurons)
            gone = masks(task.model, neurons, groups, batches, task.ratio, criterion, task.seed)
            _finish(task, neurons, batches, gone, repair)

    return run


def _flap(repair: tuple[Any, ...]) -> Method:
    """Scores in standard deviations compete over the layers (An et al. 2024); the bias takes over the mean."""

    def run(task: Task) -> None:
        neurons = task.neurons()
        with evaluating(task.model):
            batches = list(iter_batches(task.data, task.model))
            scores = criteria.find("flap")(Evidence(task.model, neurons, batches, task.seed))
            groups = task.groups(neurons)
            own = {name: standardised(scores[name].numpy()) for name in groups}
            total = sum(_uniform(task, neurons).values())
            pairs = sorted((value, name, i) for name in groups for i, value in enumerate(own[name]))
            gone: dict[str, list[int]] = {}
            left = {name: neurons[name].size - 1 for name in groups}
            for _, name, index in pairs:
                if total and left[name]:
                    gone.setdefault(name, []).append(index)
                    left[name] -= 1
                    total -= 1
            _finish(task, neurons, batches, {n: torch.tensor(g) for n, g in gone.items()}, repair)

    return run


def _osscar(task: Task) -> None:
    """OSSCAR (Meng et al. 2024): removal and local search on the layer's quadratic, then its exact least squares; one
    layer after the other, each on what the pruned ones before it hand on, for what its own weights make of that.
    """
    neurons = task.neurons()
    with evaluating(task.model):
        batches = list(iter_batches(task.data, task.model))
        counts = _uniform(task, neurons)
        bench = Bench.of(task.model, neurons, task.groups(neurons), batches)
        work = bench.copy()
        stages = bench.stages(work)
        gone: dict[str, Tensor] = {}
        for stage, unit in walk(bench.consumers.found, "OSSCAR", stages):
            observed = observe(neurons, stages, stages, stage, unit)
            ran = [consumer for consumer in unit if consumer.name in observed]
            for name in unit[0].columns:
                if name in counts and name not in gone:
                    problems = problems_of(work, name, ran, observed, gone)
                    gone[name] = swapped(problems, eliminate(problems, counts[name]).order[: counts[name]])[0].cpu()
            for consumer in ran:
                solve_consumer(work, consumer, observed[consumer.name], gone, ("least squares",))
        # Only now: a layer that reads the same neurons later must still find its own weights, which are its target.
        for name, chosen in gone.items():
            silence(work, neurons, name, chosen)
        _take_over(task, neurons, bench, work, gone)


def _modegpt(task: Task) -> None:
    """MoDeGPT type I (Lin et al. 2024): keep the largest ridge leverage scores, and give the consumer the Nyström
    weights W C S (Sᵀ C S)⁻¹, from uncentred moments of the dense model.
    """
    neurons = task.neurons()
    with evaluating(task.model):
        batches = list(iter_batches(task.data, task.model))
        counts = _uniform(task, neurons)
        bench = Bench.of(task.model, neurons, task.groups(neurons), batches)
        work = bench.copy()
        gone: dict[str, Tensor] = {}
        for name, readers, observed in survey(bench):
            device = next(work.parameters()).device
            leverage = torch.zeros(neurons[name].size, dtype=torch.float64, device=device)
            for consumer in readers:
                c = observed[consumer.name].fit.about_zero().xx.double()
                ridge = 1e-3 * float(c.diagonal().mean())
                scores = torch.linalg.solve(c + ridge * torch.eye(len(c), dtype=c.dtype, device=device), c).diagonal()
                leverage += scores[torch.from_numpy(consumer.columns[name]).to(device)].sum(1)
            gone[name] = leverage.argsort()[: counts[name]].cpu()
            for consumer in readers:
                c = observed[consumer.name].fit.about_zero().xx.double()
                out = torch.zeros(len(c), dtype=torch.bool)
                out[torch.from_numpy(consumer.columns[name])[gone[name]].flatten()] = True
                s = (~out).nonzero().flatten()
                weight = work.get_parameter(consumer.weight).data
                w = consumer.matrix(weight).double()
                small = c[s][:, s] + 1e-6 * float(c.diagonal().mean()) * torch.eye(len(s), dtype=c.dtype, device=device)
                new = torch.zeros_like(w)
                new[:, s] = torch.linalg.solve(small, c[s] @ w.T).T
                consumer.put(weight, new.to(weight.dtype))
            silence(work, neurons, name, gone[name])
        _take_over(task, neurons, bench, work, gone)


def _uniform(task: Task, neurons: NeuronMap) -> dict[str, int]:
    layers = {
        name: Layer(np.arange(neurons[name].size + 1.0), neurons[name].size - 1, 1) for name in task.groups(neurons)
    }
    return uniform(layers, task.ratio)


def _finish(
    task: Task,
    neurons: NeuronMap,
    batches: list[Any],
    gone: Mapping[str, Tensor] | Wanted,
    repair: tuple[Any, ...],
    in_order: bool = True,
) -> None:
    wanted = gone if isinstance(gone, Wanted) else Wanted(gone, {})
    if not repair:
        pruner.prune_(task.model, PruningPlan(wanted.neurons), neurons, proof=False)
        return
    bench = Bench.of(task.model, neurons, wanted.groups, batches)
    work = bench.copy()
    if in_order:
        chosen, _ = prune_in_order(bench.stages(), bench.stages(work), neurons, bench.consumers, wanted, methods=repair)
    else:
        chosen = wanted.neurons
        _apart(bench, work, chosen, repair)
    _take_over(task, neurons, bench, work, chosen)


def _apart(bench: Bench, work: nn.Module, gone: Mapping[str, Tensor], repair: tuple[Any, ...]) -> None:
    """Every layer solved for on what it reads in the dense model."""
    stages = bench.stages()
    for stage, unit in walk(bench.consumers.found, "Solving", stages):
        observed = observe(bench.neurons, stages, stages, stage, unit)
        for consumer in unit:
            if consumer.name in observed and consumer.columns.keys() & gone.keys():
                solve_consumer(work, consumer, observed[consumer.name], gone, repair)
    for name, chosen in gone.items():
        silence(work, bench.neurons, name, chosen)


def _take_over(task: Task, neurons: NeuronMap, bench: Bench, work: nn.Module, gone: Mapping[str, Tensor]) -> None:
    theirs = dict(work.state_dict())
    pruner.prune_(task.model, PruningPlan(gone), neurons, proof=False, repair=_same_shapes(task.model, theirs))


def _same_shapes(model: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: values[name] for name, tensor in own.items() if tensor.is_floating_point() and name in values}
