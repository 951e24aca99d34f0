"""What every layer pays for losing 1, 2, 3 … neurons, in one currency: the distance of the model's answers.

A layer's curve is the greedy elimination's cumulative error at its consumers, once the others have taken over. Errors
at different layers do different harm, so each curve is scaled by what was measured: some of the layer's neurons are
removed from the dense model, its consumers solved for, and the answers compared with the dense ones on samples held
out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruner.compensation.bench import Bench
from pruner.compensation.closed_form import METHODS, problems_of, silence, solve_consumer
from pruner.compensation.consumers import Consumer
from pruner.compensation.elimination import Elimination, eliminate
from pruner.compensation.observation import Observed
from pruner.compensation.survey import survey
from pruner.repair import tensors_of


@dataclass(frozen=True)
class Curve:
    """A layer's costs after 0, 1, 2 … removals: shape (neurons + 1,), float64.

    `order` are its neurons, those that go first in front. `errors` is the cost at the layer's own consumers, as a share
    of the variance of what they write; `costs` is the same in units of the distance of the model's answers.
    `measured_at` neurons removed alone took the answers `distance` away.
    """

    order: Tensor
    errors: Tensor
    costs: Tensor
    measured_at: int
    distance: float

    def to_json(self, points: int = 21) -> dict[str, Any]:
        """The curve at some evenly spaced shares, as JSON-ready data."""
        at = torch.linspace(0, len(self.costs) - 1, points).round().long()
        return {
            "neurons": len(self.order),
            "removed": at.tolist(),
            "errors": self.errors[at].tolist(),
            "costs": self.costs[at].tolist(),
            "measured_at": self.measured_at,
            "distance": self.distance,
        }


def curves_of(bench: Bench, share: float) -> dict[str, Curve]:
    """The curves of a bench's groups, measured with a `share` of each one's neurons removed.

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
    count = max(1, min(bench.neurons[name].size - 1, round(share * bench.neurons[name].size)))
    gone = elimination.order[:count].cpu()
    for consumer in readers:
        solve_consumer(work, consumer, observed[consumer.name], {name: gone}, METHODS)
    silence(work, bench.neurons[name], gone)
    distance = bench.near(work)
    theirs = tensors_of(bench.model)
    for own, tensor in tensors_of(work).items():
        tensor.data.copy_(theirs[own].data)
    scale = distance / float(errors[count]) if float(errors[count]) > 0 else 0.0
    return Curve(elimination.order.cpu(), errors, errors * scale, count, distance)
