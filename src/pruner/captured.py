"""What the proof has to know of a dense model, looked at before anything is removed from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor, nn

from pruner.apply import expect_exact
from pruner.equivalence import Expected, answers, batch_of
from pruner.lineage import pruning_history
from pruner.masking import NeverReadError, maskable, silenced
from pruner.plan import PruningPlan
from pruner.repair import Repair, checked, give, repaired_in
from pruner.skeleton import skeleton
from pruner.snapshot import Snapshot
from tracker.admission import unwrapped
from tracker.batches import Batch, iter_batches
from tracker.discover import example_call, neurons_of
from tracker.errors import DataError
from tracker.fingerprint import structure_fingerprint
from tracker.neuron_map import NeuronMap

BATCHES = 4
PROOF = "sliced equals masked"  # the check that makes the others a proof


@dataclass(frozen=True)
class Reference:
    """What `verify` has to know of the dense model: its bones, the plan, and its answers.

    `dense` are the answers of the dense model to each batch; `masked` what the pruned model has to answer (see
    `expect_exact`), None where no layer in the plan is exact. Where some layers in it are exact and some are not,
    `zeroed` are the answers with only the neurons of the exact ones zeroed. `skeleton` has the dense model's shapes and
    no weights.
    """

    skeleton: nn.Module
    neurons: NeuronMap | None
    removed: Mapping[str, Tensor]
    batches: tuple[Batch, ...]
    dense: tuple[Mapping[str, Tensor], ...]
    masked: tuple[Expected, ...] | None
    zeroed: tuple[Mapping[str, Tensor], ...] | None
    not_checked: tuple[str, ...]


def capture(
    model: nn.Module,
    plan: PruningPlan | None,
    neurons: NeuronMap | None = None,
    data_loader: Iterable[Any] | None = None,
    *,
    batches: int | None = BATCHES,
    repair: Repair | None = None,
) -> Reference:
    """Remember the dense model, before `plan` is carried out on it or on a copy.

    Args:
        model: the dense model.
        plan: what will be removed; None where it is not known, which leaves out what only a plan can tell.
        neurons: its neuron map; by default the one last discovered, else it is discovered now.
        data_loader: real data. Without it, the example inputs of the discovery.
        batches: how many batches of the loader to use; None for all. Their answers are kept in memory.
        repair: the new values of weights that `prune_` will be given: what is masked is the repaired model.

    Raises:
        PlanError: the plan does not fit the model.
        DataError: the loader is empty, or data or answers are not finite.
        VerificationError: a neuron to be masked is never read by these data.
    """
    model = unwrapped(model)
    found = None if plan is None and neurons is None else neurons_of(model, neurons, data_loader=data_loader)
    removed = plan.resolve(found) if plan is not None and found is not None else {}
    chosen = _batches(model, data_loader, batches)
    inexact = inexact_in(found, removed)
    exact = {name: gone for name, gone in removed.items() if name not in inexact}
    masked: tuple[Expected, ...] | None = None
    zeroed: tuple[Mapping[str, Tensor], ...] | None = None
    unmasked = {name: note for name, note in inexact.items() if found is None or not maskable(found[name])}
    not_checked = tuple(f"{PROOF}: layer '{name}' is not exact ({note})" for name, note in unmasked.items())
    if plan is None:
        not_checked = ("neuron counts: no plan was given", f"{PROOF}: no plan was given")
    elif found is not None and (len(unmasked) < len(removed) or not removed):
        with Snapshot() as snapshot:
            give(model, checked(model, repair), snapshot)
            try:
                masked = expect_exact(model, found, removed, chosen)
            except NeverReadError:
                chosen = _reaching(model, found, removed, chosen, data_loader)
                masked = expect_exact(model, found, removed, chosen)
            if inexact and exact:
                with silenced(model, found, exact):
                    zeroed = tuple(answers(model, batch) for batch in chosen)
    return Reference(
        skeleton=skeleton(model),
        neurons=found,
        removed=removed,
        batches=chosen,
        dense=tuple(answers(model, batch) for batch in chosen),
        masked=masked,
        zeroed=zeroed,
        not_checked=not_checked,
    )


def captured_for(
    pruned: nn.Module,
    dense: nn.Module,
    plan: PruningPlan | None,
    neurons: NeuronMap | None,
    data_loader: Iterable[Any] | None,
    batches: int | None,
) -> Reference:
    """What `capture` remembers of the dense model, with the repair that the pruned one says it has had since.

    The tensors that its record names are taken from it as they are; all others are held against the dense model's.
    """
    history = pruning_history(pruned)
    start = structure_fingerprint(unwrapped(dense))
    since = next((at for at, record in enumerate(history) if record["fingerprint"] == start), 0)
    names = {name for record in history[since:] for name in record.get("repaired", ())}
    if plan is None or not names:
        return capture(dense, plan, neurons, data_loader, batches=batches)
    bare = unwrapped(dense)
    found = neurons_of(bare, neurons, data_loader=data_loader)
    repair = repaired_in(pruned, bare, found, plan.resolve(found), names)
    return capture(dense, plan, found, data_loader, batches=batches, repair=repair)


def inexact_in(neurons: NeuronMap | None, removed: Mapping[str, Tensor]) -> dict[str, str]:
    """The layers that lose neurons and are not exact, and why they are not."""
    return {} if neurons is None else {name: neurons[name].note for name in removed if not neurons[name].exact}


def _reaching(
    model: nn.Module,
    neurons: NeuronMap,
    removed: Mapping[str, Tensor],
    chosen: tuple[Batch, ...],
    data_loader: Iterable[Any] | None,
) -> tuple[Batch, ...]:
    """The batches chosen, and those of the loader on which more runs that reads these neurons: experts, for example,
    run only where the model routes samples to them.
    """
    parts = {name: gone for name, gone in removed.items() if maskable(neurons[name])}
    never: set[str] | None = None
    found = list(chosen)
    for number, batch in enumerate(iter_batches(data_loader or (), model)):
        unread: set[str] = set()
        with silenced(model, neurons, parts, unread=unread):
            answers(model, batch)
        left = unread if never is None else never & unread
        if number >= len(chosen) and left != never:
            found.append(batch)
        never = left
        if not never:
            break
    return tuple(found)


def _batches(model: nn.Module, data_loader: Iterable[Any] | None, count: int | None) -> tuple[Batch, ...]:
    if data_loader is not None:
        return tuple(islice(iter_batches(data_loader, model), count))
    if example_call(model) is None:
        neurons_of(model)
    call = example_call(model)
    if call is None:
        raise DataError("There are no data to verify with.", hint="Pass a data_loader.")
    return (batch_of(call, model),)
