"""What every layer pays for losing 1, 2, 3 … neurons, in one currency: the distance of the model's answers.

A layer's curve is the greedy elimination's cumulative error at its consumers, once the others have taken over. Errors
at different layers do different harm, and more of the harm for the same error where little is left, so each curve is
scaled by what was measured: some of the layer's neurons are removed from the dense model, then more, its consumers
solved for, and the answers compared with the dense ones on samples held out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruner.compensation.bench import Bench
from pruner.compensation.closed_form import METHODS, problems_of, silence, solve_consumer
from pruner.compensation.consumers import Consumer
from pruner.compensation.elimination import Elimination, eliminate
from pruner.compensation.observation import Observed
from pruner.compensation.survey import survey
from pruner.repair import tensors_of

_NOTHING = 1e-7  # a share of a variance that single precision cannot tell from none


@dataclass(frozen=True)
class Curve:
    """A layer's costs after 0, 1, 2 … removals: shape (neurons + 1,), float64.

    `order` are its neurons, those that go first in front. `errors` is the cost at the layer's own consumers, as a share
    of the variance of what they write; `costs` is the same in units of the distance of the model's answers. `measured`
    says how far the answers moved when so many neurons were removed of this layer alone.
    """

    order: Tensor
    errors: Tensor
    costs: Tensor
    measured: Mapping[int, float]

    def to_json(self, points: int = 21) -> dict[str, Any]:
        """The curve at some evenly spaced shares, as JSON-ready data."""
        at = torch.linspace(0, len(self.costs) - 1, points).round().long()
        return {
            "neurons": len(self.order),
            "removed": at.tolist(),
            "errors": self.errors[at].tolist(),
            "costs": self.costs[at].tolist(),
            "measured": [{"removed": count, "distance": distance} for count, distance in self.measured.items()],
        }


def curves_of(bench: Bench, share: float) -> dict[str, Curve]:
    """The curves of a bench's groups, measured around a `share` of each one's neurons, and where hardly any are left.

    Groups without a consumer that can be solved for have none.
    """
    work = bench.copy()
    return {name: _curve(bench, work, name, readers, observed, share) for name, readers, observed in survey(bench)}


def _curve(
    bench: Bench,
    work: nn.Module,
    name: str,
    readers: Sequence[Consumer],
    observed: Mapping[str, Observed],
    share: float,
) -> Curve:
    elimination: Elimination = eliminate(problems_of(bench.model, name, readers, observed, {}))
    errors = torch.cummax(elimination.curve.cpu(), 0).values
    measured: dict[int, float] = {}
    for count in shares_measured(share, bench.neurons[name].size):
        gone = elimination.order[:count].cpu()
        for consumer in readers:
            solve_consumer(work, consumer, observed[consumer.name], {name: gone}, METHODS)
        silence(work, bench.neurons, name, gone)
        measured[count] = bench.near(work)
        theirs = tensors_of(bench.model)
        for own, tensor in tensors_of(work).items():
            tensor.data.copy_(theirs[own].data)
    return Curve(elimination.order.cpu(), errors, scaled(errors, measured), measured)


def shares_measured(share: float, size: int) -> list[int]:
    """How many neurons of a layer are removed to measure its curve: the share in question, more, and all but one."""
    return sorted({min(max(1, round(part * size)), size - 1) for part in (share, (1 + share) / 2, 1.0)})


def scaled(errors: Tensor, measured: Mapping[int, float]) -> Tensor:
    """Errors in units of what was measured after some removals; in between, the ratio grows at a constant rate.

    Nothing is learned where there is no error yet, as when only dead neurons went. The ratio never falls: a distance is
    bounded, and that answers which are lost move no further does not make a layer worth less.

    >>> scaled(torch.arange(5.0), {2: 2.0, 4: 16.0})
    tensor([ 0.,  1.,  2.,  6., 16.])
    """
    at = [count for count in sorted(measured) if float(errors[count]) > _NOTHING]
    if not at:
        return torch.zeros_like(errors)
    ratios = np.maximum.accumulate([max(measured[count], _NOTHING**2) / float(errors[count]) for count in at])
    scale = np.exp(np.interp(np.arange(len(errors)), at, np.log(ratios)))
    return torch.cummax(errors * torch.from_numpy(scale).to(errors.dtype), 0).values
