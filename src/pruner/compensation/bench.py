"""What all of a repair works with: the model and its neurons, data to learn from and to judge by, copies to change."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from pruner.compensation.calibration import Calibration, calibration, in_samples
from pruner.compensation.consumers import Consumers, consumers_of, norms_behind
from pruner.compensation.distance import answer, distance, spread
from pruner.compensation.routing import with_routes
from pruner.compensation.stages import Course, Stages, course_of
from pruner.skeleton import plain_tensors
from tracker.batches import Batch, forward, repeated
from tracker.neuron_map import NeuronMap


class Nearness:
    """How near a model's answers are to the dense model's on the samples held out: 0 where they are the same.

    See `distance` for the unit.
    """

    def __init__(self, dense: nn.Module, data: Calibration) -> None:
        self._batches = {number: data.batches[number] for number in sorted(data.held) or data.seen}
        with torch.no_grad():
            self._dense = [answer(repeated(dense, batch, number), batch) for number, batch in self._batches.items()]
        self._unit = spread(self._dense)

    def __call__(self, model: nn.Module) -> float:
        with torch.no_grad():
            parts = [
                float(distance(answer(repeated(model, batch, number), batch), dense, self._unit)) * len(dense.values)
                for (number, batch), dense in zip(self._batches.items(), self._dense, strict=True)
            ]
        return sum(parts) / max(1, sum(len(dense.values) for dense in self._dense))


@dataclass(frozen=True)
class Bench:
    """A model whose `groups` are to lose neurons. Made, and used, under `evaluating`.

    `rearranged` are the parameters in which neurons stand in another order than in the user's model, with their values
    (see `experts.lined_up`).
    """

    model: nn.Module
    neurons: NeuronMap
    groups: tuple[str, ...]
    raw: tuple[Batch, ...]
    data: Calibration
    consumers: Consumers
    course: Course
    near: Nearness
    rearranged: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, neurons: NeuronMap, groups: Collection[str], batches: Sequence[Batch]) -> Self:
        """Look at how the model runs, and hold out some samples."""
        batches = in_samples(model, batches)
        data = calibration(batches)
        own = [group for group in neurons if group.name in groups]
        readers = {read.module for group in own for read in group.reads}
        shifts = norms_behind(model, readers, lambda: forward(model, data.batches[0]))
        consumers = with_routes(model, neurons, consumers_of(model, neurons, groups, shifts=shifts), data.batches)
        inside = {consumer.module for consumer in consumers.found}
        inside |= {site.module for group in own for site in group.producers if site.module}
        course = course_of(model, sorted(inside), data.batches)
        names = tuple(group.name for group in own)
        return cls(model, neurons, names, tuple(batches), data, consumers, course, Nearness(model, data))

    def with_copies(self, copies: int, seed: int) -> Self:
        """The same with so many new samples made of each one to learn from."""
        return replace(self, data=calibration(self.raw, copies=copies, seed=seed)) if copies else self

    def stages(self, model: nn.Module | None = None) -> Stages:
        """The model, or a copy that was changed, to be run block by block."""
        return Stages(self.model if model is None else model, self.course, self.data)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next((x.device for x in self.model.parameters()), torch.device("cpu"))

    def copy(self) -> nn.Module:
        """A copy to change, without gradients."""
        return copied(self.model)


def copied(model: nn.Module, shared: Collection[Tensor] = ()) -> nn.Module:
    """A copy of a model, without gradients, and cut off from what an earlier forward left in it. What is `shared` is no
    copy.
    """
    own = {id(x): x for x in shared}
    left_over = {id(x): x.detach().clone() for _, x in plain_tensors(model) if not x.is_leaf}
    twin = copy.deepcopy(model, left_over | own)
    for parameter in twin.parameters():
        if id(parameter) not in own:
            parameter.grad = None
    return twin
