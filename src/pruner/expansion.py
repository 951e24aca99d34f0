"""`expand_`: more neurons in a layer, and the model still the same function, which is proven before it is kept.

New neurons are made of those that are there. "split" (Chen, Goodfellow & Shlens 2016, Net2Net): a copy that shares with
its original what both say to the next layer. "grow": incoming weights of its own, those of the original shuffled, and
no say yet in the next layer, as RigL (Evci et al. 2020) lets connections grow back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruner.companions import Along, Companions
from pruner.equivalence import Agreement, batch_of, compare, expect, unproven
from pruner.expansion_plan import ExpansionPlan
from pruner.lineage import recorded
from pruner.prune_result import IntegerChange
from pruner.slicing import Cut, check_map, cut_to_size, integer_changes, parameters_of, touched, with_followers
from pruner.snapshot import Snapshot
from tracker import trial
from tracker.admission import admitted_for_change
from tracker.discover import decide_caches, example_call, neurons_of
from tracker.errors import PlanError, VerificationError
from tracker.fingerprint import structure_fingerprint
from tracker.neuron_map import NeuronMap, Positions

Way = Literal["split", "grow"]


@dataclass(frozen=True)
class ExpansionResult:
    """What an expansion did, or would do.

    `plan` is under the groups' own names. `proof` is the comparison with the model before, or None where none was made;
    `unproven` says why.
    """

    neurons_before: int
    neurons_after: int
    parameters_before: int
    parameters_after: int
    added: Mapping[str, int]
    sizes: Mapping[str, int]
    integers: tuple[IntegerChange, ...]
    plan: ExpansionPlan
    fingerprint: str
    proof: Agreement | None
    unproven: str = ""


def expand_(
    model: nn.Module,
    plan: ExpansionPlan,
    neurons: NeuronMap | None = None,
    *,
    optimizer: Companions | None = None,
    way: Way = "split",
    noise: float = 0.0,
    proof: bool = True,
    dry_run: bool = False,
    seed: int = 0,
) -> ExpansionResult:
    """Add the neurons of `plan` to `model`, in place; all of it happens or nothing.

    Parameters stay the same objects. Gradients, the optimizer's state and averages of the weights grow along, each as
    it would be had the model been that large: of a neuron and its copy each has its share of the gradient. A new neuron
    comes right after the one it is made of.

    Args:
        model: the model; a neuron map and example inputs are known from `discover`, or found now.
        plan: which neurons get another one beside them.
        neurons, optimizer, proof: as for `prune_`.
        way: "split" or "grow"; see the module.
        noise: with "split", what is added to the incoming weights of the copies once all is proven, as a share of
            their standard deviation. Copies without noise learn the same for long, unless there is dropout.
        dry_run: do all of it, and put everything back.
        seed: of the shuffling and the noise.

    Raises:
        PlanError: the plan does not fit, or the larger model would not run.
        VerificationError: the larger model gives other outputs than the model before.
        And what `prune_` raises. After any error, `KeyboardInterrupt` included, the model is as it was, bit for bit.
    """
    if way not in ("split", "grow"):
        raise PlanError(f"way = {way!r} is neither 'split' nor 'grow'.", hint="Name one of them.")
    if not 0 <= noise < 1 or (noise and way == "grow"):
        raise PlanError(
            f"noise = {noise!r} is no share from 0 to 1, or is of no use to 'grow'.", hint="Give 0.01, or leave it out."
        )
    bare = admitted_for_change(model)
    found = neurons_of(bare, neurons)
    check_map(bare, found)
    copied = plan.resolve(found)
    counts = {name: sum(times.values()) for name, times in copied.items()}
    along = Along.of(bare, optimizer)
    cuts, fresh = _cuts(bare, found, copied, along, way, seed)
    fewer = {name: -count for name, count in counts.items()}
    integers = integer_changes(bare, found, fewer)
    call = example_call(bare)
    decide_caches(bare, call)
    if call is not None:
        failure = trial.run(bare, found, fewer, call)
        if failure is not None:
            raise PlanError(
                f"The larger model would not run: {failure.replace('without some of them', 'with more of them')}.",
                hint="Nothing was changed. Leave out the layer it names.",
            )
    nothing = {name: torch.zeros(0, dtype=torch.int64) for name in copied}
    obstacle = unproven(bare, found, nothing, call) if proof else "it was not asked for"
    batch = batch_of(call, bare) if call is not None and not obstacle else None
    before, parameters = structure_fingerprint(bare), parameters_of(bare)
    with Snapshot() as snapshot, snapshot:  # twice: see its docstring
        expected = (expect(bare, found, nothing, batch),) if batch is not None else ()
        if call is not None and batch is not None:
            decide_caches(bare, call)
        cut_to_size(bare, cuts, integers, snapshot)
        for average in along.averages:
            cut_to_size(average, (), integers, snapshot)
        agreement = compare(bare, expected) if expected else None
        if agreement is not None and not agreement.holds:
            raise VerificationError(
                f"The larger model is not the model before: its {agreement.output} differs by {agreement.error:.1e} of "
                f"the largest value, where rounding allows {agreement.tolerance:.1e}.",
                hint="Nothing was changed. Expand fewer layers to find the one at fault, and please report the model.",
            )
        _shake(fresh, noise, seed, snapshot)
        sources = {name: list(Counter(times).elements()) for name, times in copied.items()}
        result = ExpansionResult(
            neurons_before=found.neurons,
            neurons_after=found.neurons + sum(counts.values()),
            parameters_before=parameters,
            parameters_after=parameters_of(bare),
            added=counts,
            sizes={name: found[name].size for name in copied},
            integers=integers,
            plan=ExpansionPlan(sources, before, plan.provenance),
            fingerprint=structure_fingerprint(bare),
            proof=agreement,
            unproven=obstacle,
        )
        if not dry_run:
            for one in (bare, *along.averages):
                recorded(one, _record(result, noise), snapshot)
            snapshot.commit()
    return result


class _Grown(NamedTuple):
    """One dimension of a tensor that grows: for each new index where it is read from, whether it is a copy, and the
    share of the original that it is.
    """

    source: Tensor
    new: Tensor
    share: Tensor


def _cuts(
    model: nn.Module,
    neurons: NeuronMap,
    copied: Mapping[str, Mapping[int, int]],
    along: Along,
    way: Way,
    seed: int,
) -> tuple[list[Cut], list[tuple[Cut, int, Tensor]]]:
    """What has to grow, and where the incoming weights of new neurons lie: cut, dimension, indices there."""
    tensors: dict[int, Tensor] = {}
    runs: dict[int, dict[int, list[tuple[Positions, NDArray[np.int64]]]]] = {}
    reads: dict[int, set[int]] = {}
    positions = {name: {site: torch.zeros(0) for site in neurons[name].members} for name in copied}
    for tensor, dim, name, site, _ in touched(model, neurons, positions):
        times = np.zeros(neurons[name].size, dtype=np.int64)
        times[list(copied[name])] = list(copied[name].values())
        tensors[id(tensor)] = tensor
        runs.setdefault(id(tensor), {}).setdefault(dim, []).append((neurons[name].members[site], times))
        if site in neurons[name].consumers:
            reads.setdefault(id(tensor), set()).add(dim)
    grown = {
        key: {dim: _grown(tensor.shape[dim], runs[key][dim]) for dim in runs[key]} for key, tensor in tensors.items()
    }
    keep = {key: {dim: one.source for dim, one in dims.items()} for key, dims in grown.items()}
    cuts = with_followers(model, neurons.lengths, tensors, keep, along)
    by_name = {cut.names[0]: cut for cut in cuts if id(cut.tensor) in grown}
    fresh: list[tuple[Cut, int, Tensor]] = []
    for cut in cuts:
        own = by_name.get(cut.names[0])
        if own is None:  # a length that only changes its values
            continue
        key = id(own.tensor)
        for dim in cut.keep:
            one, consumed = grown[key][_dim_of(cut, own, dim)], _dim_of(cut, own, dim) in reads.get(key, ())
            factor = _factor(one, consumed, cut.degree, way)
            if factor is not None:
                cut.edits.append(partial(_scaled, dim=dim, factor=factor))
            elif not consumed and cut.degree is None and cut.tensor.is_floating_point():
                where = one.new.nonzero().flatten()
                fresh.append((cut, dim, where))
                if way == "grow" and cut.tensor.dim() > 1:
                    random = torch.Generator().manual_seed(seed + list(by_name).index(cut.names[0]))
                    cut.edits.append(partial(_shuffled, dim=dim, where=where, state=random.get_state()))
    return cuts, fresh


def _dim_of(cut: Cut, own: Cut, dim: int) -> int:
    """Which dimension of the model's tensor a dimension of its follower is: the one with the same indices."""
    return next(other for other, index in own.keep.items() if index is cut.keep[dim])


def _factor(one: _Grown, consumed: bool, degree: int | None, way: Way) -> Tensor | None:
    """What the values on a dimension are multiplied by; None where they stay.

    Half of what a neuron said is said by each of two, so half of the gradient comes back to each; what reads them has
    the same gradient as before. A neuron that has no say yet gets no gradient, and what will read it starts anew.
    """
    if way == "grow":
        return (~one.new).double() if consumed or degree is not None else None
    if consumed:
        return one.share if degree is None else None
    return one.share**degree if degree else None


def _grown(size: int, groups: list[tuple[Positions, NDArray[np.int64]]]) -> _Grown:
    """Each copied neuron's indices once more, run by run right behind its own, whatever else lies on the dimension."""
    behind: dict[int, NDArray[np.int64]] = {}
    share = np.ones(size)
    for positions, times in groups:
        for neuron in np.flatnonzero(times):
            places = np.sort(positions[neuron])
            share[places] = 1 / (1 + times[neuron])
            for run in np.split(places, np.flatnonzero(np.diff(places) != 1) + 1):
                behind[int(run[-1])] = np.tile(run, times[neuron])
    parts: list[NDArray[np.int64]] = []
    new: list[NDArray[np.bool_]] = []
    start = 0
    for last in sorted(behind):
        parts += [np.arange(start, last + 1), behind[last]]
        new += [np.zeros(last + 1 - start, np.bool_), np.ones(len(behind[last]), np.bool_)]
        start = last + 1
    parts.append(np.arange(start, size))
    new.append(np.zeros(size - start, np.bool_))
    source = np.concatenate(parts)
    return _Grown(torch.from_numpy(source), torch.from_numpy(np.concatenate(new)), torch.from_numpy(share[source]))


def _scaled(data: Tensor, *, dim: int, factor: Tensor) -> Tensor:
    shape = [1] * data.dim()
    shape[dim] = -1
    return data * factor.to(data.device, data.dtype).reshape(shape)


def _shuffled(data: Tensor, *, dim: int, where: Tensor, state: Tensor) -> Tensor:
    """New neurons' incoming weights in another order, each its own: as large as the original's, and not the same."""
    random = torch.Generator()
    random.set_state(state)
    data = data.clone()
    for index in where.tolist():
        values = data.select(dim, index)
        order = torch.randperm(values.numel(), generator=random).to(values.device)
        values.copy_(values.flatten()[order].view_as(values))
    return data


def _shake(fresh: list[tuple[Cut, int, Tensor]], noise: float, seed: int, snapshot: Snapshot) -> None:
    """Add the noise, the same to a weight, its master and its averages."""
    if not noise:
        return
    drawn: dict[tuple[str, int], Tensor] = {}
    for cut, dim, where in fresh:
        data = cut.tensor.data.clone()
        key = (cut.names[0], dim)
        part = data.index_select(dim, where.to(data.device))
        if key not in drawn:
            random = torch.Generator().manual_seed(seed + 1 + len(drawn))
            values = torch.randn(part.shape, generator=random, dtype=torch.float64)
            drawn[key] = values * noise * (float(part.double().std(correction=0)) or 1.0)
        part += drawn[key].to(part)
        snapshot.replace(cut.tensor, data.index_copy(dim, where.to(data.device), part))


def _record(result: ExpansionResult, noise: float) -> dict[str, Any]:
    proof = result.proof
    return {
        "fingerprint": result.plan.fingerprint,
        "result": result.fingerprint,
        "layers": {
            name: {"neurons": result.sizes[name], "removed": [], "copied": list(sources)}
            for name, sources in result.plan.copy.items()
        },
        "integers": [
            {"module": change.module, "path": list(change.path), "old": change.old, "new": change.new}
            for change in result.integers
        ],
        "parameters": [result.parameters_before, result.parameters_after],
        "proof": None
        if proof is None
        else {"output": proof.output, "error": proof.error, "tolerance": proof.tolerance},
        "repaired": [],
        "provenance": {**result.plan.provenance, **({"noise": noise} if noise else {})},
    }
