"""Groups of neurons whose readers cannot be solved for: which go first, and what that costs.

A weight that is computed from others (masked, scaled, tied) cannot be given the values that a solution has. Its neurons
go by what the answers say of each (`pruner.criteria.gradients.taylor`), and nobody takes over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from pruner.compensation.bench import Bench
from pruner.compensation.curves import Curve, scaled, shares_measured
from pruner.criteria import Evidence
from pruner.criteria.gradients import taylor
from pruner.masking import silenced
from pruner.scores import Scores


def unsolved_scores(bench: Bench, seed: int) -> Scores:
    """What every neuron is worth of the groups that no consumer can be solved for; the lowest go first."""
    groups = tuple(g for g in bench.neurons if g.name in bench.groups and not bench.consumers.reading(g.name))
    if not groups:
        return {}
    return taylor(Evidence(bench.model, replace(bench.neurons, groups=groups), bench.raw, seed))


def unsolved_curves(bench: Bench, scores: Scores, share: float) -> Mapping[str, Curve]:
    """Their cost curves, like those of `curves_of`, with the neurons silenced in the dense model."""
    return {name: _curve(bench, name, scores[name], share) for name in scores}


def _curve(bench: Bench, name: str, scores: torch.Tensor, share: float) -> Curve:
    values, order = scores.double().sort()
    errors = torch.cat([values.new_zeros(1), values.cumsum(0)]) / values.sum().clamp(min=1e-300)
    measured = {}
    for count in shares_measured(share, len(order)):
        with silenced(bench.model, bench.neurons, {name: order[:count]}):
            measured[count] = bench.near(bench.model)
    return Curve(order, errors, scaled(errors, measured), measured)
