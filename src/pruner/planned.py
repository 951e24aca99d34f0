"""A plan that somebody made by hand, carried out as any other: limits, repair, proof, and back if it is not right."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from pruner.companions import Companions
from pruner.config import PruningConfig
from pruner.decision import Candidate, Decision
from pruner.execution import Execution, Results, carry_out, check_weights
from pruner.limits import Limits
from pruner.plan import PruningPlan
from pruner.repairing import repair_for
from tracker.errors import PlanError
from tracker.neuron_map import NeuronMap


def prune_by_plan(
    model: nn.Module,
    neurons: NeuronMap,
    plan: PruningPlan,
    config: PruningConfig,
    *,
    data_loader: Iterable[Any] | None = None,
    dry_run: bool = False,
    optimizer: Companions | None = None,
    store: Callable[[nn.Module], Path] | None = None,
) -> Results:
    """Remove exactly what the plan names, in place; the results are those of `PruningEngine`, with `repair`.

    With data, the weights that stay take over (`repair` in the configuration). Raises `PlanError` for a plan of another
    model, an empty one, or one that breaks the limits of the configuration; the model then is as it was.
    """
    check_weights(model)
    removed = plan.resolve(neurons)
    if not removed:
        raise PlanError("The plan removes nothing.", hint="Choose at least one neuron.")
    limits = Limits.of(neurons, neurons, config, removed.keys())
    limits.check({name: range(len(gone)) for name, gone in removed.items()})
    repair = repair_for(model, neurons, plan, data_loader, config)
    decision = Decision(
        plan=replace(plan, provenance={"strategy": "chosen by hand", **plan.provenance}),
        candidates=tuple(
            Candidate(name, int(n), "chosen by hand", None) for name, gone in removed.items() for n in gone
        ),
        limits=limits,
        warnings=(),
        notes=(),
    )
    how = Execution(config, dry_run, data_loader, optimizer, store, None if repair is None else repair.tensors)
    return carry_out(model, neurons, decision, how) | ({} if repair is None else {"repair": repair.to_json()})
