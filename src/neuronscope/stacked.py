"""The exact absence of many neurons of a layer, one by one, in few runs of the model.

A single input runs through the model until the layer is read. There it becomes as many copies as neurons are tried,
each copy without another one, and what follows runs once for all of them: the residual stream, still of one row, is
added to each. So what lies before the layer is not computed again for every neuron. Models whose code does not allow
that get whole inputs as copies, or one run for each neuron; which of these is right is tried, not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from neuronscope.layers import Layer
from pruner.compensation.distance import Answer, answer
from tracker.batches import Batch, forward
from tracker.neuron_map import NeuronGroup, Read
from tracker.taps import tap

ROWS = 256
"""So many places go through what follows the layer at a time: enough to keep the processor busy."""
MOST = 64

How = Literal["late", "whole", "single"]


class Absent(NamedTuple):
    """The answers without one neuron of a layer, the places of one input; `further` is what the next layer read."""

    number: int
    neuron: int
    said: Answer
    further: Tensor | None


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
    layer: Layer,
    batches: Sequence[Batch],
    neurons: Sequence[int],
    next_groups: Sequence[NeuronGroup] = (),
    steps: Callable[[Sequence[tuple[int, list[int]]]], Iterator[tuple[int, list[int]]]] = iter,
) -> Iterator[Absent]:
    """What the model says without each of the neurons alone, batch by batch (`number`). To be used under `evaluating`.

    Args:
        batches: of one input each, see `single_rows`; others are tried as they are.
        next_groups: what is read of these is told too, as (places, neurons), where the copies allow it.
        steps: wraps the list of runs, to show progress.
    """
    places = [(group, place) for group in layer.groups for place in range(group.size)]
    ways = [_way(model, layer, batch) for batch in batches[:1]]
    runs: list[tuple[int, list[int]]] = []
    for number, batch in enumerate(batches):
        copies = 1 if ways[0] == "single" else max(1, min(MOST, ROWS // max(1, _places(batch))))
        runs += [(number, list(neurons[at : at + copies])) for at in range(0, len(neurons), copies)]
    for number, chunk in steps(runs):
        gone = [places[neuron] for neuron in chunk]
        said, further = _without_each(model, layer, batches[number], gone, ways[0], next_groups)
        values = said.values.unflatten(0, (len(chunk), -1))
        for copy, neuron in enumerate(chunk):
            yield Absent(number, neuron, Answer(values[copy], said.classes), None if further is None else further[copy])


def _without_each(
    model: nn.Module,
    layer: Layer,
    batch: Batch,
    gone: Sequence[tuple[NeuronGroup, int]],
    how: How,
    next_groups: Sequence[NeuronGroup] = (),
) -> tuple[Answer, Tensor | None]:
    """The answers of as many copies as neurons are given, one behind the other, each without one of them."""
    copies = len(gone)
    given = _repeated(batch, copies) if how == "whole" else batch
    heard: list[Tensor] = []

    def visit(group: NeuronGroup, read: Read, x: Tensor) -> Tensor | None:
        if any(group is one for one in next_groups):
            heard.append(x.movedim(read.axis, -1)[..., torch.from_numpy(read.positions.ravel()).to(x.device)])
            return None
        own = [(copy, place) for copy, (one, place) in enumerate(gone) if one is group]
        if how == "late" and x.shape[0] == 1:
            x = x.expand(copies, *x.shape[1:])
        elif not own:
            return None
        x = x.clone()
        parts = x.unflatten(0, (copies, -1))
        for copy, place in own:
            positions = torch.from_numpy(read.positions[place]).to(x.device)
            parts[copy].index_fill_(read.axis, positions, 0)
        return x

    with tap(model, [*layer.groups, *next_groups], visit):
        output = forward(model, given)
    said = answer(output, _repeated(batch, copies) if how == "late" else given)
    if len(heard) != 1 or heard[0].shape[0] % copies:
        return said, None
    further = heard[0].unflatten(0, (copies, -1)).flatten(1, -2)
    mask = batch.mask
    return said, further[:, mask.flatten()] if mask is not None and mask.numel() == further.shape[1] else further


def _way(model: nn.Module, layer: Layer, batch: Batch) -> How:
    """The cheapest way that gives for some neurons what a run for each of them gives."""
    random = torch.Generator().manual_seed(0)
    places = [(group, place) for group in layer.groups for place in range(group.size)]
    tried = [places[0], places[-1], places[int(torch.randint(len(places), (1,), generator=random))]]
    alone = [_without_each(model, layer, batch, [one], "single")[0].values for one in tried]
    largest = max(float(x.detach().abs().max()) for x in alone)
    ways: tuple[How, ...] = ("late", "whole") if rows_of(batch) == 1 else ("whole",)
    for how in ways:
        try:
            together = _without_each(model, layer, batch, tried, how)[0].values.unflatten(0, (len(tried), -1))
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
