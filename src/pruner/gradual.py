"""Pruning while a model trains: what goes after which step, and going on after the process was killed.

Framework-free: call `step` once after every step of the optimizer. The callbacks for trainers (`pruner.trainers`) do
nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from pruner import schedule as schedules
from pruner.apply import prune_
from pruner.companions import Companions
from pruner.compensation.budgets import searched
from pruner.compensation.targets import checked_target, parameters_left
from pruner.config import PruningConfig, create_default_config
from pruner.current_map import current_map
from pruner.engine import PruningEngine
from pruner.execution import Results
from pruner.expansion import expand_
from pruner.expansion_plan import ExpansionPlan
from pruner.limits import checked_share
from pruner.lineage import pruning_history
from pruner.metrics import count_parameters
from pruner.plan import PruningPlan
from tracker.activity import ActivityStats
from tracker.admission import admitted_for_change
from tracker.errors import DataError, PlanError
from tracker.neuron_tracker import NeuronTracker

FORMAT_VERSION = 1

Log = Callable[[Mapping[str, float], int], None]


class GradualPruning:
    """Removes more and more neurons of a model in training, by a schedule, with the optimizer that trains it.

    >>> model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> pruning = GradualPruning(model, 0.5, begin=2, every=2, end=6, optimizer=optimizer, config=quiet,
    ...                          example=torch.randn(8, 4))
    >>> for step in range(1, 9):
    ...     loss = model(torch.randn(8, 4)).square().mean()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    ...     results = pruning.step(step)
    >>> model[0].out_features, pruning.finished
    (16, True)

    Args:
        model: the model that is trained; dense, or as `reshape` made it.
        sparsity: the share of its neurons, in the layers and of the kinds in scope, that is gone in the end.
        target: instead, the share of its parameters to keep in the end: {"params": 0.5}.
        begin, every, end: neurons go after step `begin`, the warm-up, then every so many steps, and last after `end`.
        schedule: "cubic", "linear", "cosine" or "exponential"; see `pruner.schedule`.
        strategy: what chooses; any name of `PruningEngine.prune_by_strategy`. Those that need data take `data_loader`.
        optimizer: what is trained along; see `prune_`.
        watch: so many steps before each removal, what the neurons do in training is watched, and counts for the scores
            as the configuration says. The other steps cost nothing.
        data_loader: real data to verify with, and by which the weights that stay are repaired (`repair.enabled`).
        example: a call's inputs, by which the neurons are found where the model does not have any of its own.
        config: limits, kinds, weights of the scores; by default `create_default_config()`, without the dry run that
            precedes every removal.
        log: gets the numbers of every removal, by name, and its step.

    Raises `PlanError` for a schedule that makes no sense.
    """

    def __init__(
        self,
        model: nn.Module,
        sparsity: float | None = None,
        *,
        target: Mapping[str, float] | None = None,
        begin: int,
        every: int,
        end: int,
        schedule: str = "cubic",
        strategy: str = "gradual",
        optimizer: Companions | None = None,
        watch: int = 0,
        data_loader: Iterable[Any] | None = None,
        example: Any = None,
        config: PruningConfig | None = None,
        log: Log | None = None,
    ) -> None:
        for name, value in (("begin", begin), ("every", every), ("end", end), ("watch", watch)):
            if type(value) is not int or value < (1 if name == "every" else 0):
                raise PlanError(f"{name} = {value!r} is no number of steps.", hint="Give a whole number.")
        if end < begin:
            raise PlanError(f"end = {end} is before begin = {begin}.", hint="Give the last step that removes neurons.")
        if (sparsity is None) == (target is None):
            raise PlanError("Give either a sparsity or a target.", hint='sparsity=0.5, or target={"params": 0.6}.')
        what, keep = checked_target(target) if target is not None else ("", 0.0)
        if what not in ("", "params"):
            raise PlanError(f"A target of {what} is not for training.", hint='Give target={"params": 0.6}.')
        final = 1 - keep if sparsity is None else checked_share(sparsity, "sparsity")
        self.model = admitted_for_change(model)
        self.events = [*range(begin, end, every), end]
        self.targets = schedules.gradual_targets(0.0, final, len(self.events) + 1, schedule)[1:]
        self.optimizer = optimizer
        self.data_loader = data_loader
        self.log = log
        self.engine = PruningEngine(
            config=config or create_default_config().update(validation={"dry_run_first": False})
        )
        self.tracker = NeuronTracker(self.model)
        self.done = 0
        self._by_parameters, self._strategy, self._watch, self._example = bool(what), strategy, watch, example
        self._stack: ExitStack | None = None
        self._pending: dict[str, Any] | None = None
        self._parameters = count_parameters(self.model)

    @property
    def finished(self) -> bool:
        """Whether the last removal is done."""
        return self.done == len(self.events)

    def step(self, step: int) -> Results | None:
        """Say that step number `step`, counted from 1, has been taken: neurons go where it is their turn.

        Returns the results of `PruningEngine` where neurons went, with `sparsity_target`, the share that was to be gone
        by then; None otherwise. Raises what `PruningEngine` raises; model and optimizer then are as they were.
        """
        results: Results | None = None
        while not self.finished and self.events[self.done] <= step:
            results = self._remove(self.targets[self.done], step)
            self.done += 1
        watching = not self.finished and self._watch and self.events[self.done] - step <= self._watch
        if watching and self._stack is None:
            self._begin_watching()
        return results

    def start(self) -> None:
        """Say that training begins or goes on: finds the neurons, and watches them if that is due from the start."""
        self._look()
        if self._watch and not self.finished and (self._pending or self.events[self.done] <= self._watch):
            self._begin_watching()

    def close(self) -> None:
        """Say that training ends: nothing is watched any more."""
        if self._stack is not None:
            self._stack.close()
        self._stack = None

    # --- going on after the process was killed

    def state_dict(self) -> dict[str, Any]:
        """All that going on needs beside the model's weights and the optimizer's state, as JSON-ready data."""
        seen = self.tracker.so_far() if self._stack is not None else None
        return {
            "version": FORMAT_VERSION,
            "events": self.events,
            "targets": self.targets,
            "done": self.done,
            "parameters": self._parameters,
            "history": self._history(),
            "watched": None if seen is None else [seen[0], seen[1].nan_to_num().tolist()],  # JSON has no infinity
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another process was: the model, dense as it is built, gets the shapes it had there.

        Load the model's weights and the optimizer's state afterwards, as they were saved there. A model that has lost
        the same neurons already keeps its shapes. Raises `PlanError` for a state of another schedule, and for a model
        that has lost others.
        """
        _check_version(state)
        if state["events"] != self.events or state["targets"] != self.targets:
            raise PlanError(
                "The checkpoint is of another schedule: its last step that removes neurons is "
                f"{state['events'][-1]}, its first {state['events'][0]}, to {state['targets'][-1]:g}.",
                hint="Give begin, every, end and the sparsity as they were.",
            )
        self._look()
        if self._history() != state["history"]:
            reshape(self.model, state, self.optimizer)
        self.done = state["done"]
        self._parameters = state["parameters"]
        watched = state.get("watched")
        self._pending = None if watched is None else {"batches": watched[0], "block": torch.tensor(watched[1])}

    # --- inside

    def _look(self) -> None:
        """Find the neurons, if that was not done yet."""
        self.engine.see(self.model, self.data_loader, self._example)

    def _history(self) -> list[dict[str, dict[str, list[int]]]]:
        """What each step so far took from which layer, or added to it."""
        return [
            {name: {"removed": layer["removed"], "copied": layer["copied"]} for name, layer in layers.items()}
            for layers in (record["layers"] for record in pruning_history(self.model))
        ]

    def _begin_watching(self) -> None:
        self._look()
        self._stack = ExitStack()
        current_map(self.model, self.data_loader)
        self._stack.enter_context(self.tracker.tracking(data_loader=self.data_loader))
        if self._pending is not None:
            self.tracker.go_on(self._pending["batches"], self._pending["block"].double())
            self._pending = None

    def _remove(self, target: float, step: int) -> Results:
        self._look()
        activity = self._seen()
        share = self._share(target, activity) if self._by_parameters else target
        results = self.engine.prune_by_strategy(
            self.model,
            self._strategy,
            share,
            activity=activity,
            data_loader=self.data_loader,
            optimizer=self.optimizer,
        )
        results |= {"sparsity_target": target}
        if self.log is not None:
            self.log(self._numbers(results), step)
        return results

    def _seen(self) -> ActivityStats | None:
        if self._stack is None:
            return None
        self.close()
        try:
            return self.tracker.stats
        except DataError:
            return None  # no whole forward in training mode was seen; the tracker has said so

    def _share(self, target: float, activity: ActivityStats | None) -> float:
        """The share of neurons whose removal leaves 1 − `target` of the parameters the model had at first."""
        neurons = current_map(self.model, self.data_loader)

        def left(share: float) -> float:
            plan = self.engine.plan_by_strategy(
                self.model, self._strategy, share, activity=activity, data_loader=self.data_loader
            )
            counts = {name: len(gone) for name, gone in plan.remove.items()}
            return parameters_left(self.model, neurons, counts) / self._parameters

        return searched(left, 1 - target)

    def _numbers(self, results: Results) -> dict[str, float]:
        numbers = {
            "sparsity_target": float(results["sparsity_target"]),
            "sparsity": self.engine.share_gone(self.model, results["neurons_after"]),
            "neurons": float(results["neurons_after"]),
            "parameters": float(results["parameters_after"]),
        }
        return {f"pruning/{name}": value for name, value in numbers.items()}


def reshape(model: nn.Module, state: Mapping[str, Any], optimizer: Companions | None = None) -> nn.Module:
    """Give `model`, dense as it is built, the shapes that the model of a saved `state` had; its weights do not matter.

    Raises `PlanError` where the state belongs to another model.
    """
    _check_version(state)
    if pruning_history(model):
        raise PlanError(
            "The model has lost neurons already.", hint="Build it anew; a state gives a dense model its shapes."
        )
    for layers in state["history"]:
        neurons = current_map(model)
        added = {name: layer["copied"] for name, layer in layers.items() if layer["copied"]}
        if added:
            expand_(model, ExpansionPlan(added), neurons, optimizer=optimizer, proof=False)
        else:
            gone = {name: layer["removed"] for name, layer in layers.items()}
            prune_(model, PruningPlan(gone), neurons, optimizer=optimizer, proof=False)
    return model


def _check_version(state: Mapping[str, Any]) -> None:
    if state.get("version") != FORMAT_VERSION:
        raise PlanError(
            f"The state of the pruning has version {state.get('version')!r}, not {FORMAT_VERSION}.",
            hint="Go on with the version of NeuronScope that wrote it.",
        )
