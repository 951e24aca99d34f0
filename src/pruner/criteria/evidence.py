"""What criteria decide from, and how they are found by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from pruner.compensation.bench import Bench
from pruner.compensation.consumers import Consumer
from pruner.compensation.moments import Moments
from pruner.compensation.survey import survey
from pruner.registry import Registry
from pruner.scores import Scores
from tracker.batches import Batch
from tracker.errors import DataError
from tracker.neuron_map import NeuronMap


@dataclass(frozen=True)
class Seen:
    """A layer that reads a group of neurons: its weights (rows, n), the moments of what it reads, and the `columns`
    (neurons, k) of each neuron.
    """

    consumer: Consumer
    matrix: Tensor
    moments: Moments
    columns: Tensor

    def summed(self, values: Tensor) -> Tensor:
        """Values of columns (n,) summed over those of each neuron: (neurons,), float64 on the CPU."""
        return values.double()[self.columns].sum(1).cpu()


@dataclass(frozen=True)
class Evidence:
    """A model, its neurons, and real batches (none: only weights are known). To be used under `evaluating`."""

    model: nn.Module
    neurons: NeuronMap
    batches: Sequence[Batch] = ()
    seed: int = 0

    def data_for(self, criterion: str) -> Sequence[Batch]:
        """The batches; raises `DataError`, which names the criterion, where there are none."""
        if not self.batches:
            raise DataError(
                f"The criterion '{criterion}' looks at data, and none were given.", hint="Pass a data_loader."
            )
        return self.batches

    @cached_property
    def bench(self) -> Bench:
        """The model with its data, ready to be run block by block."""
        return Bench.of(self.model, self.neurons, [group.name for group in self.neurons], self.batches)

    def read(self, criterion: str) -> Iterator[tuple[str, list[Seen]]]:
        """Every group of neurons with the layers that read it, group by group; what was seen is then forgotten."""
        self.data_for(criterion)
        for name, readers, observed in survey(self.bench):
            yield name, [self._seen(name, consumer, observed[consumer.name].fit) for consumer in readers]

    def _seen(self, name: str, consumer: Consumer, moments: Moments) -> Seen:
        matrix = consumer.matrix(consumer.weight_in(self.model)).double()
        return Seen(consumer, matrix, moments, torch.from_numpy(consumer.columns[name]).to(matrix.device))

    def complete(self, scores: Scores) -> Scores:
        """Scores of all groups: those for which nothing is known are infinitely important, and stay."""
        unknown = {group.name: torch.full((group.size,), torch.inf, dtype=torch.float64) for group in self.neurons}
        return unknown | scores


Criterion = Callable[[Evidence], Scores]

_registry: Registry[Criterion] = Registry("criterion", "pruner.criteria")
register, unregister = _registry.register, _registry.unregister


def find(name: str) -> Criterion:
    """The criterion called `name`; raises `ConfigError` with the nearest name if there is none."""
    return _registry[name]


def names() -> list[str]:
    """The names of all criteria."""
    return _registry.names()
