"""Layers that read only some of the samples, chosen by the model itself, as the experts of a mixture do.

In a pruned model they may read others than in the dense one, so there is nothing of the dense model's to aim at, sample
by sample: such a layer is solved for what its own weights make of what it reads.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

from pruner.compensation.calibration import pieces_of
from pruner.compensation.consumers import STACKED, Consumers
from pruner.compensation.observation import captured
from tracker.batches import Batch, forward
from tracker.neuron_map import NeuronMap

_PIECES = 8


def with_routes(model: nn.Module, neurons: NeuronMap, consumers: Consumers, batches: Sequence[Batch]) -> Consumers:
    """The same, with those marked that the model routes samples to; stacks of which nobody can say which matrix reads
    what are left out.
    """
    found = consumers.found
    left_out = dict(consumers.left_out)
    if stacks := [consumer for consumer in found if consumer.place is not None]:
        with torch.no_grad(), captured(model, neurons, stacks) as calls:
            forward(model, batches[0])
        seen = {consumer.weight for consumer in stacks if consumer.name in calls}
        left_out |= {consumer.weight: STACKED for consumer in stacks if consumer.weight not in seen}
        found = tuple(consumer for consumer in found if consumer.weight not in left_out)
    chosen = _routed(model, {consumer.module for consumer in found if consumer.read.how == "input"}, batches[0])
    return Consumers(tuple(replace(c, routed=True) if c.module in chosen else c for c in found), left_out)


def _routed(model: nn.Module, modules: Collection[str], batch: Batch) -> set[str]:
    """The modules that read different numbers of rows of pieces of a batch, which have the same shapes.

    None where the model does not run on pieces.
    """
    try:
        reads = [_rows_read(model, modules, piece) for piece in pieces_of(batch, _PIECES)]
    except (RuntimeError, ValueError, IndexError, AssertionError):
        return set()
    return {name for name in modules if any(one.get(name) != reads[0].get(name) for one in reads)}


def _rows_read(model: nn.Module, modules: Collection[str], batch: Batch) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    with ExitStack() as stack:
        for name in modules:

            def note(_: nn.Module, args: tuple[object, ...], name: str = name) -> None:
                if args and isinstance(args[0], Tensor):
                    rows.setdefault(name, []).append(args[0].shape[:-1].numel())

            stack.callback(model.get_submodule(name).register_forward_pre_hook(note).remove)
        with torch.no_grad():
            forward(model, batch)
    return rows
