"""Experts stacked in one parameter lose neurons by number, the same of each: so each first lines up its own.

One removal takes the neuron at a position from every expert. Within an expert the order of neurons says nothing, so
each is put in the order in which it can spare its own (see `elimination`). The model stays the same function, and that
is measured: where neurons at one position belong together after all, as taps of one kernel do, they stay as they were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pruner.compensation.bench import Bench, copied
from pruner.compensation.closed_form import problems_of
from pruner.compensation.consumers import Consumer
from pruner.compensation.elimination import eliminate
from pruner.compensation.observation import Observed
from pruner.compensation.survey import survey
from pruner.repair import tensors_of
from tracker.neuron_map import NeuronGroup


def lined_up(bench: Bench) -> Bench:
    """A bench whose model is the same function with the neurons of stacked experts in order, those that can go first.

    The bench itself where there are none. Otherwise its model is a copy, which shares with the first one all that is
    not in another order, and `rearranged` holds what is.
    """
    places = {group.name: _places(bench, group) for group in bench.neurons if group.name in bench.groups}
    if not any(places.values()):
        return bench
    moving = {id(bench.model.get_parameter(name)) for sites in places.values() for name in sites}
    model = copied(bench.model, [x for x in tensors_of(bench.model).values() if id(x) not in moving])
    rearranged: dict[str, Tensor] = {}
    for name, readers, observed in survey(bench):
        sites = places[name]
        if not sites:
            continue
        orders = _orders(bench, name, readers, observed, len(bench.model.get_parameter(next(iter(sites)))))
        before = {parameter: model.get_parameter(parameter).detach().clone() for parameter in sites}
        for parameter, (dim, positions) in sites.items():
            _reorder(model.get_parameter(parameter).data, dim, positions, orders)
        if bench.near(model) <= _unchanged(before):
            rearranged |= {parameter: model.get_parameter(parameter).detach() for parameter in sites}
        else:
            for parameter, value in before.items():
                model.get_parameter(parameter).data.copy_(value)
    return replace(bench, model=model, rearranged=rearranged)


def _places(bench: Bench, group: NeuronGroup) -> Mapping[str, tuple[int, Tensor]]:
    """Where the neurons of every expert are, by parameter: the dimension, and their positions (neurons, k).

    Nothing where they are not stacked, or not in all their parameters.
    """
    readers = bench.consumers.reading(group.name)
    if not readers or any(consumer.place is None for consumer in readers):
        return {}
    named = dict(bench.model.named_parameters(remove_duplicate=False))
    found: dict[str, tuple[int, Tensor]] = {}
    for site, positions in group.members.items():
        stack = named.get(site.parameter)
        if stack is None or site.dim == 0 or len(stack) != len(readers) or site.parameter in found:
            return {}
        found[site.parameter] = site.dim, torch.from_numpy(positions)
    return found


def _orders(
    bench: Bench, name: str, readers: Sequence[Consumer], observed: Mapping[str, Observed], count: int
) -> Tensor:
    """The neurons of every expert, those that go first in front: (experts, neurons).

    An expert that was not chosen once goes by the size of its weights.
    """
    ran = {consumer.place: consumer for consumer in readers}
    weights = {c.place: c.matrix(c.weight_in(bench.model)) for c in bench.consumers.reading(name)}
    orders = []
    for place in range(count):
        if place in ran:
            orders.append(eliminate(problems_of(bench.model, name, [ran[place]], observed, {})).order)
        else:
            columns = torch.from_numpy(bench.consumers.reading(name)[0].columns[name]).to(weights[place].device)
            orders.append(weights[place].float().square().sum(0)[columns].sum(1).argsort())
    return torch.stack(orders)


def _reorder(stack: Tensor, dim: int, positions: Tensor, orders: Tensor) -> None:
    """Put the neurons of every matrix of a stack in another order, in place."""
    for matrix, order in zip(stack, orders, strict=True):
        places = positions.to(stack.device)
        old = matrix.index_select(dim - 1, places[order.to(stack.device)].flatten())
        matrix.index_copy_(dim - 1, places.flatten(), old)


def _unchanged(values: Mapping[str, Tensor]) -> float:
    """The distance of answers that rounding alone may make: sums run in another order."""
    return math.sqrt(max(torch.finfo(value.dtype).eps for value in values.values()))
