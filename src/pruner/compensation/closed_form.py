"""The closed form, block by block: neurons go, the others take over, and the next block sees what is left.

Every consumer is solved for what the *dense* model wrote, from what it reads in the model that has lost the neurons
before it: so an error that was made upstream is corrected as far as that is linear (as GPTQ, OSSCAR and GRAIL do in
part; here with the dense target). The work is done on a copy of dense shape in which neurons are removed by zeroing the
columns that read them, which is the same function. Nothing is sliced here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pruner.compensation.consumers import Consumer, Consumers
from pruner.compensation.elimination import Problem, eliminate, swapped
from pruner.compensation.moments import Moments
from pruner.compensation.observation import Observed, observe
from pruner.compensation.regression import Method, Solution, solve
from pruner.compensation.stages import Stages
from pruner.lengths import lengthened, norms
from tracker.neuron_map import NeuronMap
from tracker.progress import progress

METHODS: tuple[Method, ...] = ("least squares", "bias", "none")


@dataclass(frozen=True)
class SolvedLayer:
    """What became of one consumer. `errors` are shares of the variance of what the dense model wrote, on held-out rows,
    by method; `ridge` is λ over the mean diagonal.
    """

    consumer: str
    layers: tuple[str, ...]
    columns: int
    kept: int
    method: Method
    ridge: float
    errors: Mapping[Method, float]
    rows: int


@dataclass(frozen=True)
class Wanted:
    """What is to go: for every group either the neurons themselves, or how many of them."""

    neurons: Mapping[str, Tensor]
    counts: Mapping[str, int]

    @property
    def groups(self) -> tuple[str, ...]:
        """All groups that lose neurons."""
        return (*self.neurons, *(name for name, count in self.counts.items() if count))


def units(consumers: Sequence[Consumer], stages: Stages) -> Iterator[tuple[int, list[Consumer]]]:
    """The consumers stage by stage in running order; those that read the same neurons together."""
    for stage in range(len(stages)):
        block = stages.blocks[stage] if stages.blocks else ""
        inside = [c for c in consumers if not block or c.module == block or c.module.startswith(f"{block}.")]
        inside.sort(key=lambda c: stages.first_call.get(c.module, 0))
        while inside:
            first = inside[0]
            unit = [c for c in inside if c.columns.keys() == first.columns.keys()]
            inside = [c for c in inside if c not in unit]
            yield stage, unit


def walk(consumers: Sequence[Consumer], description: str, *together: Stages) -> Iterator[tuple[int, list[Consumer]]]:
    """The same, with all of these stages, of one course, advanced to the block whose turn it is."""
    done = -1
    for stage, unit in progress(list(units(consumers, together[0])), description):
        while done < stage - 1:
            done += 1
            for stages in together:
                stages.advance(done)
        yield stage, unit


def prune_in_order(
    dense: Stages,
    pruned: Stages,
    neurons: NeuronMap,
    consumers: Consumers,
    wanted: Wanted,
    *,
    methods: Sequence[Method] = METHODS,
) -> tuple[dict[str, Tensor], list[SolvedLayer]]:
    """Remove what is wanted from `pruned.model`, a copy of `dense.model`, by zeroing, and solve for what stays.

    Groups that are wanted by number are chosen when their first consumer's turn comes, from what it reads then. Returns
    the neurons that are gone, and what was done to each consumer.
    """
    gone: dict[str, Tensor] = {}
    solved: list[SolvedLayer] = []
    for group in neurons:  # those that nobody can be solved for
        if group.name in wanted.neurons and not consumers.reading(group.name):
            gone[group.name] = wanted.neurons[group.name]
            silence(pruned.model, neurons, group.name, gone[group.name])
    for stage, unit in walk(consumers.found, "Solving", dense, pruned):
        reads = [name for name in unit[0].columns if name in wanted.groups]
        if not reads:
            continue
        observed = observe(neurons, dense, pruned, stage, unit)
        ran = [consumer for consumer in unit if consumer.name in observed]
        for name in reads:
            if name not in gone:
                gone[name] = _chosen(pruned.model, name, wanted, ran, consumers, observed, gone)
        for consumer in ran:
            solved.append(solve_consumer(pruned.model, consumer, observed[consumer.name], gone, methods))
        for name in reads:
            silence(pruned.model, neurons, name, gone[name])
    return gone, solved


def _chosen(
    model: nn.Module,
    name: str,
    wanted: Wanted,
    unit: Sequence[Consumer],
    consumers: Consumers,
    observed: Mapping[str, Observed],
    gone: Mapping[str, Tensor],
) -> Tensor:
    """The neurons of a group that go: those named, or chosen now from what its consumers read."""
    if name in wanted.neurons:
        return wanted.neurons[name]
    count = wanted.counts[name]
    problems = problems_of(model, name, unit, observed, gone)
    order = eliminate(problems, count).order
    chosen, _, _ = swapped(problems, order[:count])
    return chosen.cpu()


def problems_of(
    model: nn.Module,
    name: str,
    unit: Sequence[Consumer],
    observed: Mapping[str, Observed],
    gone: Mapping[str, Tensor],
) -> list[Problem]:
    """What removing neurons of a group does to each consumer, as elimination takes it.

    An error counts as a share of what the consumer writes; of a stack, as a share of what all its matrices do.
    """
    found = []
    stacks: dict[str, list[float]] = {}
    for consumer in unit:
        if consumer.place is not None and consumer.name in observed:
            moments = observed[consumer.name].fit
            written = moments.count * _energy(consumer, moments, consumer.weight_in(model))
            stacks.setdefault(consumer.weight, []).append(written)
    for consumer in unit:
        if name not in consumer.columns or consumer.name not in observed:
            continue
        one = observed[consumer.name]
        moments = one.fit
        weight = consumer.weight_in(model)
        matrix = consumer.matrix(weight).double()
        about = moments if consumer.bias is not None else moments.about_zero()
        energy = _energy(consumer, moments, weight)
        if consumer.place is not None:
            energy = sum(stacks[consumer.weight]) / max(1, moments.count)
        columns = torch.from_numpy(consumer.columns[name]).to(matrix.device)
        xx = about.xx.double()
        for other, removed in gone.items():  # columns that are gone already are constants
            if other in consumer.columns and other != name:
                dead = torch.from_numpy(consumer.columns[other][removed.numpy()].ravel()).to(matrix.device)
                xx[dead] = 0
                xx[:, dead] = 0
        found.append(Problem(xx, matrix, columns, 1.0 / max(energy, 1e-300)))
    return found


def _energy(consumer: Consumer, moments: Moments, weight: Tensor) -> float:
    """The variance of what a consumer writes, summed over its outputs."""
    if consumer.form == "matrix":
        return float(moments.yy.double().sum())
    w = consumer.matrix(weight).double()
    return float(((w @ moments.xx.double()) * w).sum())


def solve_consumer(
    model: nn.Module,
    consumer: Consumer,
    observed: Observed,
    gone: Mapping[str, Tensor],
    methods: Sequence[Method] = METHODS,
) -> SolvedLayer:
    """Solve for what stays of a consumer, and write it into the model."""
    kept = kept_columns(consumer, gone)
    matrix = consumer.matrix(consumer.weight_in(model))
    own = torch.eye(matrix.shape[1], dtype=torch.float64, device=matrix.device) if consumer.form == "mixing" else matrix
    offset = None
    if consumer.form == "matrix" and consumer.bias is not None and consumer.bias.sign > 0:
        bias = model.get_parameter(consumer.bias.name).detach()
        offset = bias if consumer.outputs is None else bias[consumer.outputs[0] : consumer.outputs[1]]
    solution = solve(
        observed.fit,
        observed.held,
        own,
        kept.to(matrix.device),
        bias=consumer.bias is not None,
        offset=offset,
        methods=methods,
    )
    _write(model, consumer, matrix, solution)
    return SolvedLayer(
        consumer=consumer.name,
        layers=tuple(name for name in consumer.columns if name in gone),
        columns=own.shape[1],
        kept=len(kept),
        method=solution.method,
        ridge=solution.ridge,
        errors=solution.errors,
        rows=solution.rows,
    )


def _write(model: nn.Module, consumer: Consumer, matrix: Tensor, solution: Solution) -> None:
    weight = consumer.weight_in(model)
    if consumer.bias is not None and solution.shift is not None:
        tensor = model.get_submodule(consumer.bias.name.rpartition(".")[0])
        bias: Tensor = getattr(tensor, consumer.bias.name.rpartition(".")[2]).data
        part = bias if consumer.outputs is None else bias[consumer.outputs[0] : consumer.outputs[1]]
        part += (consumer.bias.sign * consumer.constant(weight, solution.shift)).to(bias.dtype)
    new = solution.matrix if consumer.form == "matrix" else matrix.double() @ solution.matrix
    consumer.put(weight, new.to(weight.dtype))
    consumer.give(model, weight)


def kept_columns(consumer: Consumer, gone: Mapping[str, Tensor]) -> Tensor:
    """The columns of a consumer that stay, ascending."""
    stays = np.ones(consumer.size, dtype=bool)
    for name, neurons in consumer.columns.items():
        if name in gone:
            stays[neurons[gone[name].numpy()].ravel()] = False
    return torch.from_numpy(np.flatnonzero(stays))


def silence(model: nn.Module, neurons: NeuronMap, group: str, gone: Collection[int] | Tensor) -> None:
    """Zero the weights that read these neurons: the same function as their removal."""
    slices = neurons[group].slices(gone)
    named = dict(model.named_parameters(remove_duplicate=False))
    lengths = {length.direction: length for length in neurons.lengths}
    for site in neurons[group].consumers:
        weight, length = named[site.parameter].data, lengths.get(site.parameter)
        places = slices[site].to(weight.device)
        if length is None:
            weight.index_fill_(site.dim, places, 0)
        elif site.dim == length.dim:  # a direction of zeros would be none
            named[length.length].data.index_fill_(site.dim, places, 0)
        else:
            before, value = norms(weight, length), named[length.length].data
            weight.index_fill_(site.dim, places, 0)
            value.copy_(lengthened(value, before, norms(weight, length)))
