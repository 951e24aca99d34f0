"""Criteria that look at weights alone, and the floor under all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from pruner import scores
from pruner.criteria.evidence import Evidence, register
from pruner.scores import Scores


@register("producer")
def producer(evidence: Evidence) -> Scores:
    """L2 norm of the weights that make a neuron (Li et al. 2017, "Pruning Filters for Efficient ConvNets")."""
    return scores.magnitude(evidence.model, evidence.neurons)


@register("consumer")
def consumer(evidence: Evidence) -> Scores:
    """L2 norm of the weights that read a neuron."""
    named = dict(evidence.model.named_parameters(remove_duplicate=False))
    found: Scores = {}
    for group in evidence.neurons:
        squares = torch.zeros(group.size, dtype=torch.float64)
        seen: set[tuple[int, int]] = set()
        for site in group.consumers:
            weight = named[site.parameter].detach()
            key = (id(named[site.parameter]), site.dim % weight.dim())
            if key not in seen:  # a tied weight has several names
                seen.add(key)
                squares += _squares(weight, site.dim)[torch.from_numpy(group.members[site])].sum(1)
        found[group.name] = squares.sqrt()
    return found


@register("both")
def both(evidence: Evidence) -> Scores:
    """Geometric mean of "producer" and "consumer": it does not change when a neuron's scale moves from one side to the
    other, as it can behind a ReLU (Neyshabur et al. 2015, "Path-SGD").
    """
    made, read = producer(evidence), consumer(evidence)
    return {name: (made[name] * read[name]).sqrt() for name in made}


@register("random")
def random(evidence: Evidence) -> Scores:
    """Uniform in [0, 1): what every other criterion has to beat."""
    generator = torch.Generator().manual_seed(evidence.seed)
    return {g.name: torch.rand(g.size, generator=generator, dtype=torch.float64) for g in evidence.neurons}


def _squares(weight: Tensor, dim: int) -> Tensor:
    others = [d for d in range(weight.dim()) if d != dim % weight.dim()]
    squares = weight.double().square()
    return (squares.sum(others) if others else squares).cpu()
