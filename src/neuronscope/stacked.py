"""The exact absence of many neurons of one layer or several, one by one, in few runs of the model.

A single input runs through the model until the first of the layers is read. There it becomes as many copies as
neurons are tried, each copy without another one, and what follows runs once for all of them: the residual stream,
still of one row, is added to each. So what lies before the layer is not computed again for every neuron. Models whose
code does not allow that get whole inputs as copies, or one run for each neuron; which of these is right is tried, not
guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pruner.compensation.distance import Answer, answer
from tracker.batches import Batch, forward
from tracker.neuron_map import NeuronGroup, Read
from tracker.taps import tap

ROWS = 256
"""So many places go through what follows the layer at a time: enough to keep the processor busy."""
MOST = 64

How = Literal["late", "whole", "single"]
Place = tuple[NeuronGroup, int]
"""A neuron: its group, and its number in there."""


class Absent(NamedTuple):
    """The answers without one neuron (by its number among those asked for), the places of one input.

    `further` is what was then read of the watched groups, as (places, positions), where the copies allow it.
    """

    batch: int
    neuron: int
    said: Answer
    further: dict[str, Tensor]


def single_rows(batch: Batch) -> list[Batch]:
    """The inputs of a batch one by one, their padding cut off where it is on the right."""
    rows = rows_of(batch)
    if rows == 1:
        return [batch]
    return [_row(batch, row, rows) for row in range(rows)]


def rows_of(batch: Batch) -> int:
    """How many inputs a batch holds."""
    tensors = [x for x in (*batch.args, *batch.kwargs.values()) if isinstance(x, Tensor) and x.dim()]
    return tensors[0].shape[0] if tensors else 1


def absences(
    model: nn.Module,
    gone: Sequence[Place],
    batches: Sequence[Batch],
    watched: Sequence[NeuronGroup] = (),
    steps: Callable[[Sequence[tuple[int, range]]], Iterator[tuple[int, range]]] = iter,
) -> Iterator[Absent]:
    """What the model says without each of the neurons alone. To be used under `evaluating`.

    Args:
        gone: the neurons, best in the order in which the model reads them.
        batches: of one input each, see `single_rows`; others are tried as they are.
        watched: groups of which it is told what was read.
        steps: wraps the list of runs, to show progress.
    """
    ways: dict[str, How] = {}

    def way(first: int) -> How:
        group = gone[first][0].name
        if group not in ways:
            ways[group] = _way(model, gone[first:], batches[0])
        return ways[group]

    runs: list[tuple[int, range]] = []
    for number, batch in enumerate(batches):
        copies = 1 if way(0) == "single" else max(1, min(MOST, ROWS // max(1, _places(batch))))
        runs += [(number, range(at, min(at + copies, len(gone)))) for at in range(0, len(gone), copies)]
    for number, chunk in steps(runs):
        singly = way(chunk[0]) == "single"
        for part in [range(one, one + 1) for one in chunk] if singly else [chunk]:
            here = gone[part[0] : part[-1] + 1]
            said, further = _without_each(model, here, batches[number], way(chunk[0]), watched)
            values = said.values.unflatten(0, (len(part), -1))
            for copy, neuron in enumerate(part):
                own = {name: read[copy] for name, read in further.items()}
                yield Absent(number, neuron, Answer(values[copy], said.classes), own)


def _without_each(
    model: nn.Module, gone: Sequence[Place], batch: Batch, how: How, watched: Sequence[NeuronGroup] = ()
) -> tuple[Answer, dict[str, Tensor]]:
    """The answers of as many copies as neurons are given, one behind the other, each without one of them."""
    copies = len(gone)
    given = _repeated(batch, copies) if how == "whole" else batch
    names = {group.name for group in watched}
    groups = {group.name: group for group in [*watched, *(group for group, _ in gone)]}
    heard: dict[str, list[Tensor]] = {}

    def visit(group: NeuronGroup, read: Read, x: Tensor) -> Tensor | None:
        if group.name in names:
            positions = torch.from_numpy(read.positions.ravel()).to(x.device)
            heard.setdefault(group.name, []).append(x.movedim(read.axis, -1)[..., positions])
        own = [(copy, place) for copy, (one, place) in enumerate(gone) if one.name == group.name]
        if not own and not (how == "late" and x.shape[0] == 1 and group.name in first):
            return None
        if how == "late" and x.shape[0] == 1:
            x = x.expand(copies, *x.shape[1:])
        x = x.clone()
        parts = x.unflatten(0, (copies, -1))
        for copy, place in own:
            positions = torch.from_numpy(read.positions[place]).to(x.device)
            parts[copy].index_fill_(read.axis, positions, 0)
        return x

    first = {group.name for group, _ in gone}
    with tap(model, list(groups.values()), visit):
        output = forward(model, given)
    said = answer(output, _repeated(batch, copies) if how == "late" else given)
    return said, {name: _by_copy(own[0], copies, batch) for name, own in heard.items() if _whole(own, copies, batch)}


def _whole(heard: Sequence[Tensor], copies: int, batch: Batch) -> bool:
    """Whether a group was read once, by all copies."""
    return len(heard) == 1 and heard[0].shape[0] == copies * rows_of(batch)


def _by_copy(heard: Tensor, copies: int, batch: Batch) -> Tensor:
    further: Tensor = heard.unflatten(0, (copies, -1)).flatten(1, -2)
    mask = batch.mask
    if mask is not None and mask.numel() == further.shape[1]:
        further = further[:, mask.flatten()]
    return further


def _way(model: nn.Module, gone: Sequence[Place], batch: Batch) -> How:
    """The cheapest way that gives for some of the neurons, the first among them, what a run for each of them gives."""
    random = torch.Generator().manual_seed(0)
    tried = [gone[0], gone[-1], gone[int(torch.randint(len(gone), (1,), generator=random))]]
    alone = [_without_each(model, [one], batch, "single")[0].values for one in tried]
    largest = max(float(x.detach().abs().max()) for x in alone)
    ways: tuple[How, ...] = ("late", "whole") if rows_of(batch) == 1 else ("whole",)
    for how in ways:
        try:
            together = _without_each(model, tried, batch, how)[0].values.unflatten(0, (len(tried), -1))
        except (RuntimeError, IndexError, ValueError):
            continue
        pairs = zip(together, alone, strict=True)
        if all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4 * largest) for a, b in pairs):
            return how
    return "single"


def _places(batch: Batch) -> int:
    """How many places a batch has: tokens, or one an input."""
    if batch.mask is not None:
        return batch.mask.numel()
    ids = batch.kwargs.get("input_ids")
    return ids.numel() if isinstance(ids, Tensor) else 8 * rows_of(batch)


def _repeated(batch: Batch, times: int) -> Batch:
    rows = rows_of(batch)

    def more(x: Tensor) -> Tensor:
        return x.repeat(times, *[1] * (x.dim() - 1)) if x.dim() and x.shape[0] == rows else x

    args, kwargs = tree_map_only(Tensor, more, (batch.args, batch.kwargs))
    return Batch(args, kwargs, None, None if batch.mask is None else more(batch.mask))


def _row(batch: Batch, row: int, rows: int) -> Batch:
    mask = batch.mask
    width = None
    if mask is not None and mask.dim() == 2 and bool(mask[row, : int(mask[row].sum())].all()):
        width = int(mask[row].sum())

    def one(x: Tensor) -> Tensor:
        if not (x.dim() and x.shape[0] == rows):
            return x
        own = x[row : row + 1]
        return own[:, :width] if mask is not None and own.shape[:2] == (1, mask.shape[1]) else own

    args, kwargs = tree_map_only(Tensor, one, (batch.args, batch.kwargs))
    target = batch.target
    own_target = target[row : row + 1] if isinstance(target, Tensor) and target.dim() and len(target) == rows else None
    return Batch(args, kwargs, own_target, None if mask is None else mask[row : row + 1, :width])
