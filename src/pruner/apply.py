"""The one function that changes a model: `prune_`, and `check`, the same path stopped before the commit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pruner.companions import Along, Companions
from pruner.equivalence import Agreement, Expected, batch_of, compare, expect, unproven
from pruner.masking import maskable, reads_after
from pruner.memory import check_alone
from pruner.plan import PruningPlan
from pruner.prune_result import IntegerChange, PruneResult
from pruner.repair import Repair, checked, give, give_change, tensors_of
from pruner.snapshot import Snapshot
from tracker import trial
from tracker.admission import admitted_for_change, unwrapped
from tracker.batches import Batch
from tracker.caches import filled
from tracker.discover import decide_caches, example_call, neurons_of
from tracker.errors import PlanError, VerificationError
from tracker.fingerprint import structure_fingerprint
from tracker.neuron_map import NeuronMap
from tracker.sizes import write_path

HISTORY = "_neuronscope_history"
_ALONE = Along()
_DENSE_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


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


def pruning_history(model: nn.Module) -> tuple[dict[str, Any], ...]:
    """What was removed from this model so far, oldest first: one JSON-ready record for every `prune_`.

    The model carries it, so copies of the model have it too. A record has the structure fingerprint before
    (`fingerprint`) and after (`result`), for every layer its size before and the indices removed (`layers`), the
    integers that changed (`integers`), the parameters before and after, the proof's numbers or None, the names
    of the tensors that were given new values (`repaired`), and the plan's provenance.
    """
    return tuple(json.loads(record) for record in vars(unwrapped(model)).get(HISTORY, ()))


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
        _slice(model, _cuts(model, neurons, others), _integers(model, neurons, others), snapshot)
        left = reads_after(neurons, others)
        return tuple(expect(model, left, masked, batch) for batch in batches)


class _Cut(NamedTuple):
    """A tensor and, for each dimension that shrinks, the indices that stay."""

    tensor: Tensor
    keep: Mapping[int, Tensor]


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
    _check_map(model, found)
    removed = plan.resolve(found)
    repaired = checked(model, repair)
    along = Along.of(model, optimizer)
    cuts = _cuts(model, found, removed, along)
    integers = _integers(model, found, removed)
    call = example_call(model)
    if call is not None:
        decide_caches(model, call)  # a forward since the discovery may have filled some
        failure = trial.run(model, found, removed, call)
        if failure is not None:
            raise PlanError(
                f"The pruned model would not run: {failure}.",
                hint="Nothing was changed. Leave out the layer it names, and please report the model.",
            )
    obstacle = unproven(model, found, removed, call) if proof else "it was not asked for"
    batch = batch_of(call, model) if call is not None and not obstacle else None
    before, parameters = structure_fingerprint(model), _count(model)
    with Snapshot() as snapshot, snapshot:  # twice: see its docstring
        for average in along.averages:
            give_change(average, model, repaired, snapshot)
        give(model, repaired, snapshot)
        expected = expect_exact(model, found, removed, [batch]) if batch is not None else ()
        if call is not None and batch is not None:
            decide_caches(model, call)  # likewise the forward of the proof
        _slice(model, cuts, integers, snapshot)
        for average in along.averages:
            _slice(average, (), integers, snapshot)
        agreement = compare(model, expected) if expected else None
        holds = agreement is None or agreement.holds
        result = PruneResult(
            neurons_before=found.neurons,
            neurons_after=found.neurons - sum(map(len, removed.values())),
            parameters_before=parameters,
            parameters_after=_count(model),
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


def _check_map(model: nn.Module, neurons: NeuronMap) -> None:
    now = structure_fingerprint(model)
    if neurons.fingerprint and neurons.fingerprint != now:
        raise PlanError(
            f"The neuron map was made for a {neurons.model or 'model'} of structure {neurons.fingerprint}; this "
            f"{type(model).__name__} has structure {now}.",
            hint="Discover the model again; a model that was pruned since needs a new map.",
        )


def _cuts(model: nn.Module, neurons: NeuronMap, removed: Mapping[str, Tensor], along: Along = _ALONE) -> list[_Cut]:
    """What has to shrink, each tensor once however many names it has: parameters, buffers, gradients, companions.

    Nothing is changed here, so that all that can be wrong is found before anything is.
    """
    named = tensors_of(model)
    gone: dict[int, dict[int, list[Tensor]]] = {}
    tensors: dict[int, Tensor] = {}
    for name, chosen in removed.items():
        for site, positions in neurons[name].slices(chosen).items():
            tensor = named.get(site.parameter)
            if tensor is None or not -tensor.dim() <= site.dim < tensor.dim():
                raise PlanError(
                    f"Layer '{name}' reaches into '{site.parameter}', dimension {site.dim}, which the model lacks.",
                    hint="Discover the model again: the neuron map belongs to another one.",
                )
            tensors[id(tensor)] = tensor
            gone.setdefault(id(tensor), {}).setdefault(site.dim % tensor.dim(), []).append(positions)
    cuts = [
        _Cut(tensor, {dim: _staying(tensor.shape[dim], parts) for dim, parts in gone[key].items()})
        for key, tensor in tensors.items()
    ]
    check_alone(named, tensors.values())
    names: dict[int, list[str]] = {}
    for name, tensor in named.items():
        names.setdefault(id(tensor), []).append(name)
    for cut in list(cuts):
        for follower in along.followers(names[id(cut.tensor)], cut.tensor, set(names)):
            keep = {own: cut.keep[dim] for own, dim in follower.dims.items() if dim in cut.keep}
            cuts.append(_Cut(follower.tensor, keep))
    return cuts


def _staying(size: int, gone: Sequence[Tensor]) -> Tensor:
    stays = np.ones(size, dtype=bool)
    for positions in gone:
        stays[positions.numpy()] = False
    return torch.from_numpy(np.flatnonzero(stays))


def _integers(model: nn.Module, neurons: NeuronMap, removed: Mapping[str, Tensor]) -> tuple[IntegerChange, ...]:
    return tuple(
        IntegerChange(module, tuple(path), old, new)
        for module, path, old, new in trial.integers_after(model, neurons, removed)
    )


def _slice(model: nn.Module, cuts: Iterable[_Cut], integers: Iterable[IntegerChange], snapshot: Snapshot) -> None:
    for cut in cuts:
        with torch.inference_mode(cut.tensor.is_inference()):  # so that it stays what it is, also in a block of that
            snapshot.replace(cut.tensor, _kept(cut))
    for change in integers:
        module = model.get_submodule(change.module)
        snapshot.hold(module, str(change.path[0]))
        write_path(module, change.path, change.new)
    for module, name in filled(model):
        snapshot.hold(module, name)
        vars(module)[name] = {}


def _kept(cut: _Cut) -> Tensor:
    """The part of a tensor that stays, as dense as the tensor was and in the same memory format."""
    data = cut.tensor.data
    for dim in sorted(cut.keep, key=lambda dim: len(cut.keep[dim]) / data.shape[dim]):  # the deepest cut first
        data = _selected(data, dim, cut.keep[dim])
    layout = _DENSE_LAYOUTS.get(cut.tensor.dim())
    if layout and cut.tensor.is_contiguous(memory_format=layout) and not cut.tensor.is_contiguous():
        return data.contiguous(memory_format=layout)
    return data


def _selected(data: Tensor, dim: int, keep: Tensor) -> Tensor:
    """`data.index_select(dim, keep)`; by NumPy where that is PyTorch's slowest: columns of two bytes an element."""
    if data.element_size() == 2 and dim == data.dim() - 1 and data.device.type == "cpu" and data.is_contiguous():
        made = data.new_empty((*data.shape[:-1], len(keep)))
        data.view(torch.int16).numpy().take(keep.numpy(), -1, out=made.view(torch.int16).numpy(), mode="clip")
        return made
    return data.index_select(dim, keep.to(data.device))


def _record(model: nn.Module, result: PruneResult, snapshot: Snapshot) -> None:
    """Add to the model's history, as text: discovery looks for integers in attributes, and this holds thousands."""
    record = {
        "fingerprint": result.plan.fingerprint,
        "result": result.fingerprint,
        "layers": {
            name: {"neurons": result.sizes[name], "removed": list(gone)} for name, gone in result.plan.remove.items()
        },
        "integers": result.to_json()["integers"],
        "parameters": [result.parameters_before, result.parameters_after],
        "proof": result.to_json()["proof"],
        "repaired": list(result.repaired),
        "provenance": dict(result.plan.provenance),
    }
    snapshot.hold(model, HISTORY)
    vars(model)[HISTORY] = (*vars(model).get(HISTORY, ()), json.dumps(record))


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
                _slice(model, _cuts(model, neurons, part), _integers(model, neurons, part), snapshot)
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


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
