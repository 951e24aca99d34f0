"""What stands in for neurons that are taken out: nothing, their mean, or what the neurons that stay say of them.

The last is what a repair can do. Over the inputs, the activations of those that go are predicted from those that stay
by ridge regression about the means, which the weights that read them could take over exactly (`pruner.compensation`).
Nobody is asked about what it has seen: the places are cut into parts, and each is predicted from the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tracker.batches import Batch, forward
from tracker.errors import ConfigError
from tracker.neuron_map import NeuronGroup, NeuronMap, Read
from tracker.taps import tap

Ablation = Literal["zero", "mean", "repaired"]
ABLATIONS: tuple[Ablation, ...] = get_args(Ablation)

Filler = Callable[[Read, Tensor, int], Tensor]
"""(read, what is read, number of the batch) → what is to be read instead."""

MOST_PLACES = 4096
"""A regression is learned from at most so many places."""
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Relative to the mean square of the activations that predict; the best on places not seen is taken."""
PARTS = 5


def checked_ablation(ablation: str) -> None:
    """Raise `ConfigError` for one that is unknown."""
    if ablation not in ABLATIONS:
        raise ConfigError(f"ablation = {ablation!r} is unknown.", hint=f"Use one of {', '.join(ABLATIONS)}.")


def fillers(
    model: nn.Module,
    neurons: NeuronMap,
    gone: Mapping[str, Sequence[int]],
    batches: Sequence[Batch],
    ablation: Ablation,
) -> dict[str, Filler]:
    """How to take these neurons out, by group; what is learned for it is learned from the batches."""
    if ablation == "zero":
        return {name: _zero(own) for name, own in gone.items()}
    read = _activations(model, [neurons[name] for name in gone], batches)
    found: dict[str, Filler] = {}
    for name, own in gone.items():
        group = neurons[name]
        if ablation == "mean":
            found[name] = _mean(group, own, torch.cat(read[name]).double().mean(0))
        else:
            found[name] = _repaired(group, own, read[name], batches)
    return found


def by_neuron(x: Tensor, read: Read, group: NeuronGroup, batch: Batch, *, mean: bool = True) -> Tensor:
    """What is read of each neuron, padding left out: (places, size), or without `mean` (places, size × positions)."""
    values = x.movedim(read.axis, -1)
    mask = batch.mask
    if mask is not None and values.dim() >= 3 and values.shape[:2] == mask.shape:
        values = values[mask]
    values = values.flatten(0, -2)[:, torch.from_numpy(read.positions.ravel()).to(x.device)]
    return values.unflatten(1, (group.size, -1)).mean(2) if mean else values


def _activations(model: nn.Module, groups: Sequence[NeuronGroup], batches: Sequence[Batch]) -> dict[str, list[Tensor]]:
    """What is read of every neuron of these groups, padding left out, batch by batch; of the first read of each."""
    found: dict[str, list[Tensor]] = {group.name: [] for group in groups}
    for number, batch in enumerate(batches):

        def visit(group: NeuronGroup, read: Read, x: Tensor, batch: Batch = batch, number: int = number) -> None:
            if len(found[group.name]) == number:
                found[group.name].append(by_neuron(x, read, group, batch, mean=False))

        with tap(model, groups, visit):
            forward(model, batch)
    return found


def _zero(gone: Sequence[int]) -> Filler:
    def fill(read: Read, x: Tensor, _: int) -> Tensor:
        return x.index_fill(read.axis, torch.from_numpy(read.positions[list(gone)].ravel()).to(x.device), 0)

    return fill


def _mean(group: NeuronGroup, gone: Sequence[int], mean: Tensor) -> Filler:
    columns = _columns(group, gone, len(mean))

    def fill(read: Read, x: Tensor, _: int) -> Tensor:
        positions = torch.from_numpy(read.positions[list(gone)].ravel()).to(x.device)
        moved = x.movedim(read.axis, -1).clone()
        moved[..., positions] = mean[columns].to(x.device, x.dtype)
        return moved.movedim(-1, read.axis)

    return fill


@dataclass(frozen=True)
class _Regression:
    """ŷ = μ_y + (x − μ_x) B."""

    mean_x: Tensor
    mean_y: Tensor
    matrix: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.mean_y + (x - self.mean_x) @ self.matrix


class _Fit:
    """Ridge regressions of y on x for any strength, from one decomposition, of whichever system is smaller."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        if len(x) > MOST_PLACES:
            step = -(-len(x) // MOST_PLACES)
            x, y = x[::step], y[::step]
        self._mean_x, self._mean_y = x.mean(0), y.mean(0)
        x, y = x - self._mean_x, y - self._mean_y
        self._unit = max(float(x.square().mean()) * len(x), 1e-300)
        self._x = x if len(x) < x.shape[1] else None
        values, vectors = torch.linalg.eigh(x @ x.T if self._x is not None else x.T @ x)
        self._values, self._vectors = values.clamp(min=0), vectors
        self._right = vectors.T @ (y if self._x is not None else x.T @ y)

    def __call__(self, ridge: float) -> _Regression:
        solved = self._vectors @ (self._right / (self._values + ridge * self._unit).unsqueeze(1))
        return _Regression(self._mean_x, self._mean_y, solved if self._x is None else self._x.T @ solved)


def _repaired(group: NeuronGroup, gone: Sequence[int], parts: Sequence[Tensor], batches: Sequence[Batch]) -> Filler:
    every = torch.cat(list(parts)).double()
    columns = _columns(group, gone, every.shape[1])
    stay = torch.ones(every.shape[1], dtype=torch.bool)
    stay[columns] = False
    x, y = every[:, stay], every[:, columns]
    edges = torch.linspace(0, len(x), PARTS + 1).round().long()
    part_of = torch.bucketize(torch.arange(len(x)), edges[1:-1], right=True)
    known: list[_Regression] = []
    if len(x) >= 2 * PARTS and x.shape[1]:
        seen = [part_of != part for part in range(PARTS)]
        fits = [_Fit(x[own], y[own]) for own in seen]
        errors = {
            ridge: sum(_square(fit(ridge)(x[~own]) - y[~own]) for fit, own in zip(fits, seen, strict=True))
            for ridge in RIDGES
        }
        known = [fit(min(RIDGES, key=errors.__getitem__)) for fit in fits]
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + len(part))

    def fill(read: Read, given: Tensor, number: int) -> Tensor:
        moved = given.movedim(read.axis, -1).clone()
        positions = torch.from_numpy(read.positions.ravel()).to(given.device)
        flat = moved.reshape(-1, moved.shape[-1])
        if not known:  # nothing to learn from, or nobody left to learn it
            flat[:, positions[columns]] = y.mean(0).to(flat)
            return flat.view_as(moved).movedim(-1, read.axis)
        told = flat[:, positions].double()
        inputs = told[:, stay]
        own = _part_of_places(moved, batches[number], part_of[starts[number] : starts[number + 1]])
        said = torch.zeros(len(flat), len(columns), dtype=torch.float64, device=given.device)
        for part, regression in enumerate(known):
            rows = own == part
            said[rows] = regression(inputs[rows])
        flat[:, positions[columns]] = said.to(flat.dtype)
        return flat.view_as(moved).movedim(-1, read.axis)

    return fill


def _part_of_places(moved: Tensor, batch: Batch, real: Tensor) -> Tensor:
    """The part that each place of a tensor belongs to; what is padded gets some."""
    count = moved.numel() // moved.shape[-1]
    if len(real) == count:
        return real.to(moved.device)
    found = torch.zeros(count, dtype=torch.long, device=moved.device)
    if batch.mask is not None and int(batch.mask.sum()) == len(real) and batch.mask.numel() == count:
        found[batch.mask.flatten()] = real.to(moved.device)
    return found


def _square(x: Tensor) -> float:
    return float(x.square().sum())


def _columns(group: NeuronGroup, gone: Sequence[int], width: int) -> Tensor:
    k = width // group.size
    return (torch.tensor(list(gone)).unsqueeze(1) * k + torch.arange(k)).flatten()
