"""The one function that changes a model: `prune_`, and `check`, the same path stopped before the commit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from pruner.companions import Along, Companions
from pruner.equivalence import Agreement, Expected, batch_of, compare, expect, expect_all, unproven
from pruner.lineage import recorded
from pruner.masking import maskable, reads_after
from pruner.plan import PruningPlan
from pruner.prune_result import PruneResult
from pruner.repair import Repair, checked, give, give_change
from pruner.slicing import check_map, cut_to_size, cuts_without, integer_changes, parameters_of
from pruner.snapshot import Snapshot
from tracker import trial
from tracker.admission import admitted_for_change
from tracker.batches import Batch
from tracker.discover import decide_caches, example_call, neurons_of
from tracker.errors import PlanError, VerificationError
from tracker.fingerprint import structure_fingerprint
from tracker.neuron_map import NeuronMap


def prune_(
    model: nn.Module,
    plan: PruningPlan,
    neurons: NeuronMap | None = None,
    *,
    optimizer: Companions | None = None,
    proof: bool = True,
    repair: Repair | None = None,
) -> PruneResult:
    """Remove the neurons of `plan` from `model`, in place; all of it happens or nothing.

    Every parameter and buffer object stays the same object with less in it, so that optimizers, tied weights and
    anything else that refers to it stay valid. Gradients and the optimizer's state are sliced along; devices, dtypes,
    `requires_grad`, training flags and hooks stay as they are. The old tensors are held until the end by reference:
    memory peaks at the model, plus what is kept of it, plus the largest single tensor that is cut.

    Args:
        model: the model, of any device and dtype, also on the meta device.
        plan: the neurons to remove.
        neurons: the model's neuron map; by default the one last discovered for this model, else it is discovered now.
        optimizer: what is trained along with the model and shrinks with it: its optimizer (moments, momentum, master
            weights), or a list of optimizers and of averages of the weights (`AveragedModel`, EMA). A repair changes an
            average by as much as it changes the weights.
        proof: whether to demand that the sliced model gives the outputs of the masked one before keeping the change.
            It is made where example inputs are known (from discovery), the weights are real, and a layer in the plan
            is exact; those that are not are taken out of both models. `PruneResult.proof` tells.
        repair: new values of weights that stay, by name and in the shapes from before the removal (see
            `pruner.compensation`). They are written first: the proof is about the repaired model.

    Raises:
        DiscoveryError: the model is of a kind that cannot be cut, such as one with quantised or sharded weights.
        PlanError: the plan does not fit, the pruned model would not run, an optimizer keeps state that cannot be
            sliced, or belongs to another model.
        VerificationError: the sliced model differs from the masked one; names the layers.
        DataError: the model's outputs are not finite, so nothing can be proven.

    After any error, `KeyboardInterrupt` included, the model and the optimizer are as they were, bit for bit.
    """
    return _operate(model, plan, neurons, optimizer, repair, proof=proof, commit=True)


def check(
    model: nn.Module,
    plan: PruningPlan,
    neurons: NeuronMap | None = None,
    *,
    optimizer: Companions | None = None,
    proof: bool = True,
    repair: Repair | None = None,
) -> PruneResult:
    """A dry run: `prune_` up to the commit, then everything is put back. Raises and returns what `prune_` would."""
    return _operate(model, plan, neurons, optimizer, repair, proof=proof, commit=False)


def expect_exact(
    model: nn.Module, neurons: NeuronMap, removed: Mapping[str, Tensor], batches: Iterable[Batch]
) -> tuple[Expected, ...]:
    """What a model that lost `removed` has to answer, by masking; see `expect`. The model is as before afterwards.

    Zeroing does not stand for the removal of layers that are not exact. Those are taken out for the while: the neurons
    of the exact ones then are zeroed in a model which has lost the others already. Experts are masked by what they
    would be after a removal: never chosen.
    """
    masked = {name: chosen for name, chosen in removed.items() if maskable(neurons[name])}
    others = {name: chosen for name, chosen in removed.items() if name not in masked}
    with Snapshot() as snapshot, snapshot:  # twice: see its docstring
        cut_to_size(model, cuts_without(model, neurons, others), integer_changes(model, neurons, others), snapshot)
        left = reads_after(neurons, others)
        return expect_all(model, left, masked, batches)


def _operate(
    wrapped: nn.Module,
    plan: PruningPlan,
    neurons: NeuronMap | None,
    optimizer: Companions | None,
    repair: Repair | None,
    *,
    proof: bool,
    commit: bool,
) -> PruneResult:
    model = admitted_for_change(wrapped)
    found = neurons_of(model, neurons)
    check_map(model, found)
    removed = plan.resolve(found)
    repaired = checked(model, repair)
    along = Along.of(model, optimizer)
    cuts = cuts_without(model, found, removed, along)
    integers = integer_changes(model, found, removed)
    call = example_call(model)
    decide_caches(model, call)  # a forward since the discovery may have filled some
    if call is not None:
        failure = trial.run(model, found, removed, call)
        if failure is not None:
            raise PlanError(
                f"The pruned model would not run: {failure}.",
                hint="Nothing was changed. Leave out the layer it names, and please report the model.",
            )
    obstacle = unproven(model, found, removed, call) if proof else "it was not asked for"
    batch = batch_of(call, model) if call is not None and not obstacle else None
    before, parameters = structure_fingerprint(model), parameters_of(model)
    with Snapshot() as snapshot, snapshot:  # twice: see its docstring
        for average in along.averages:
            give_change(average, model, repaired, snapshot)
        give(model, repaired, snapshot)
        expected = expect_exact(model, found, removed, [batch]) if batch is not None else ()
        if call is not None and batch is not None:
            decide_caches(model, call)  # likewise the forward of the proof
        cut_to_size(model, cuts, integers, snapshot)
        for average in along.averages:
            cut_to_size(average, (), integers, snapshot)
        agreement = compare(model, expected) if expected else None
        holds = agreement is None or agreement.holds
        result = PruneResult(
            neurons_before=found.neurons,
            neurons_after=found.neurons - sum(map(len, removed.values())),
            parameters_before=parameters,
            parameters_after=parameters_of(model),
            removed={name: len(chosen) for name, chosen in removed.items()},
            sizes={name: found[name].size for name in removed},
            integers=integers,
            plan=PruningPlan(removed, before, plan.provenance),
            fingerprint=structure_fingerprint(model),
            proof=agreement,
            unproven=obstacle,
            repaired=tuple(sorted(repaired)),
        )
        if holds and commit:
            for one in (model, *along.averages):
                _record(one, result, snapshot)
            snapshot.commit()
    if batch is not None and agreement is not None and not agreement.holds:
        with Snapshot() as undone:
            give(model, repaired, undone)
            error = _disproved(model, found, removed, batch, agreement)
        raise error
    return result


def _record(model: nn.Module, result: PruneResult, snapshot: Snapshot) -> None:
    record = {
        "fingerprint": result.plan.fingerprint,
        "result": result.fingerprint,
        "layers": {
            name: {"neurons": result.sizes[name], "removed": list(gone), "copied": []}
            for name, gone in result.plan.remove.items()
        },
        "integers": result.to_json()["integers"],
        "parameters": [result.parameters_before, result.parameters_after],
        "proof": result.to_json()["proof"],
        "repaired": list(result.repaired),
        "provenance": dict(result.plan.provenance),
    }
    recorded(model, record, snapshot)


def _disproved(
    model: nn.Module, neurons: NeuronMap, removed: Mapping[str, Tensor], batch: Batch, agreement: Agreement
) -> VerificationError:
    """The error for a sliced model that differs from the masked one, naming the layer at fault, found by halving."""
    guilty = [name for name in removed if maskable(neurons[name])]
    while len(guilty) > 1:
        middle = len(guilty) // 2
        for half in (guilty[:middle], guilty[middle:]):
            part = {name: removed[name] for name in half}
            expected = expect(model, neurons, part, batch)
            with Snapshot() as snapshot:
                cut_to_size(model, cuts_without(model, neurons, part), integer_changes(model, neurons, part), snapshot)
                holds = compare(model, [expected]).holds
            if not holds:
                guilty = half
                break
        else:
            break
    return VerificationError(
        f"The sliced model is not the masked one: its {agreement.output} differs by {agreement.error:.1e} of the "
        f"largest value, where rounding allows {agreement.tolerance:.1e}. The layer at fault is "
        f"{' together with '.join(repr(name) for name in guilty)}.",
        hint="Nothing was changed. Leave this layer out of the plan and please report the model; if it is in low "
        "precision, prove it in a wider type first (model.float()).",
    )
