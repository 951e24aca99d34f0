"""Watching a model run: whatever the consumers read goes into one small state.

The state is a torchmetrics metric, so it moves between devices, resets, and is reduced over ranks like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from tracker.batches import padding_mask
from tracker.covariance import Covariances, comoments
from tracker.errors import DataError
from tracker.meter import Meter, Scratch
from tracker.moments import Row, empty, merge, merge_stacked, pool
from tracker.neuron_map import NeuronGroup, Read
from tracker.taps import tap


class Moments(Metric):
    """The block of statistics (see `tracker.moments`) of all neurons of all groups, side by side: 56 bytes a neuron.

    Under distributed training every rank must call `compute`; each gets the statistics of the data of all.
    """

    full_state_update = False
    block: Tensor
    batches: Tensor

    def __init__(self, groups: Sequence[NeuronGroup]) -> None:
        super().__init__()
        self.sizes = {group.name: group.size for group in groups}
        self.add_state("block", empty(sum(self.sizes.values())), dist_reduce_fx=merge_stacked)
        self.add_state("batches", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, blocks: Mapping[str, Tensor], batches: int) -> None:
        """Add what some batches said: a block (7, size) for every group that was read."""
        device = self.block.device
        added = [
            blocks[name].to(device) if name in blocks else empty(size).to(device) for name, size in self.sizes.items()
        ]
        if added:
            self.block = merge(self.block, torch.cat(added, 1))
        self.batches = self.batches + batches

    def compute(self) -> dict[str, Tensor]:
        """The block of every group, on the CPU."""
        parts = torch.split(self.block.cpu(), list(self.sizes.values()), 1)
        return dict(zip(self.sizes, parts, strict=True))


class Watch:
    """What is being watched, and what has come of it so far."""

    def __init__(self, groups: Sequence[NeuronGroup], *, covariance: bool = False, only_training: bool = False) -> None:
        self.groups = tuple(groups)
        self.moments = Moments(self.groups)
        self.covariances = Covariances(self.groups) if covariance else None
        self._only_training = only_training
        self._scratch = Scratch()
        self._meters: dict[tuple[str, str, int], Meter] = {}
        self._readers: dict[tuple[str, str, int], dict[str, tuple[NeuronGroup, Read]]] = {}
        self._batches = 0
        self._first_bad: tuple[str, int] | None = None
        self._running = False
        self._mask: Tensor | None = None
        self._rows: Tensor | None = None
        self._seen: dict[tuple[int, int], tuple[ref[Tensor], int, set[str]]] = {}
class Moments(Metric):
    """The block of statistics (see `tracker.moments`) of all neurons of all groups, side by side: 56 bytes a neuron.

    Under distributed training every rank must call `compute`; each gets the statistics of the data of all.
    """

    full_state_update = False
    block: Tensor
    batches: Tensor
    sound: Tensor

    def __init__(self, groups: Sequence[NeuronGroup]) -> None:
        super().__init__()
        self.sizes = {group.name: group.size for group in groups}
        self.add_state("block", empty(sum(self.sizes.values())), dist_reduce_fx=merge_stacked)
        self.add_state("batches", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        # Batches after which all was still finite: the index of the first bad one, without looking at each.
        self.add_state("sound", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, blocks: Mapping[str, Tensor]) -> None:
        """Add one forward: a block (7, size) for every group that was read."""
        device = self.block.device
        added = [
            blocks[name].to(device) if name in blocks else empty(size).to(device) for name, size in self.sizes.items()
        ]
        self.block = merge(self.block, torch.cat(added, 1))
        self.batches = self.batches + 1
        self.sound = self.sound + torch.isfinite(self.block[Row.MEAN : Row.M2 + 1]).all()

    def compute(self) -> dict[str, Tensor]:
        """The block of every group, on the CPU.

        Raises `DataError`, naming the layers and the batch, where NaN or Inf was read.
        """
        block = self.block.cpu()
        parts = dict(zip(self.sizes, torch.split(block, list(self.sizes.values()), 1), strict=True))
        bad = [
            name for name, part in parts.items() if not torch.isfinite(part[[Row.MEAN, Row.M2, Row.MAGNITUDE]]).all()
        ]
        if bad:
            more = f" and {len(bad) - 1} other layers" if len(bad) > 1 else ""
            raise DataError(
                f"Layer '{bad[0]}'{more}: NaN or Inf in the activations, first in batch {int(self.sound)}.",
                hint="Look for NaN in the weights and for overflow, or run the model in a wider dtype.",
            )
        return parts


@dataclass
class Watch:
    """What is being watched, and what has come of it so far."""

    groups: tuple[NeuronGroup, ...]
    moments: Moments
    covariances: Covariances | None
    taps: Taps | None = None


@contextmanager
def watching(
    model: nn.Module,
    groups: Sequence[NeuronGroup],
    *,
    covariance: bool = False,
    into: Watch | None = None,
    only_training: bool = False,
) -> Iterator[Watch]:
    """Within the block, every whole forward of the model adds to the state; a forward that fails adds nothing.

    Calls of parts of the model, such as the recomputation of activation checkpointing in the backward, do not count.
    Padding does not count where the model is called with the keyword `attention_mask` of shape (batch, tokens) and the
    consumer reads (batch, tokens, …) or (batch × tokens, channels). Reading the mask makes the host wait for an
    accelerator once a forward; nothing else does.

    `only_training` leaves out forwards in evaluation mode. `into` continues an earlier watch of the same groups.
    """
    watch = into or Watch(tuple(groups), Moments(groups), Covariances(groups) if covariance else None)
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    watch.moments.to(device)
    if watch.covariances is not None:
        watch.covariances.to(device)
    forward = _Forward(watch, only_training)
    with tap(model, watch.groups, forward.visit) as taps:
        watch.taps = taps
        handles = [
            model.register_forward_pre_hook(forward.begin, with_kwargs=True, prepend=True),
            model.register_forward_hook(forward.end, always_call=True),
        ]
        try:
            yield watch
        finally:
            for handle in handles:
                handle.remove()


class _Forward:
    """The forward that is running: what was read in it already."""

    def __init__(self, watch: Watch, only_training: bool) -> None:
        self._watch = watch
        self._only_training = only_training
        self._scratch = Scratch()
        self._positions: dict[int, Tensor | None] = {}
        self._running = False
        self._mask: Tensor | None = None
        self._rows: Tensor | None = None
        self._measured: dict[tuple[int, int], _Measured] = {}
        self._blocks: dict[str, Tensor] = {}
        self._products: dict[str, Tensor] = {}

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._running = module.training or not self._only_training
        self._forget()
        mask = padding_mask(args, kwargs)
        if self._running and mask is not None:
            rows = mask.flatten().nonzero().squeeze(1)
            if rows.numel() < mask.numel():
                self._mask, self._rows = mask, rows

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # Where the forward raised, this is called without an output.
        if self._running and output is not None and self._watch.groups:
            with torch.inference_mode(False), torch.no_grad():
                self._watch.moments.update(self._blocks)
                if self._watch.covariances is not None:
                    self._watch.covariances.update(self._products)
        self._running = False
        self._forget()

    def visit(self, group: NeuronGroup, read: Read, x: Tensor) -> None:
        if not self._running:
            return
        with torch.inference_mode(False), torch.no_grad():
            measured = self._measure(x, read.axis % x.ndim)
            if group.name in measured.groups:  # the same tensor again, as by the query, key and value layers
                return
            measured.groups.add(group.name)
            positions = self._positions_on(x.device, group, read, x.shape[read.axis])
            block = measured.block if positions is None else pool(measured.block, positions)
            before = self._blocks.get(group.name)
            self._blocks[group.name] = block if before is None else merge(before, block)
            if self._watch.covariances is not None:
                products = comoments(x, read.axis, positions, self._rows_of(x, read.axis % x.ndim))
                earlier = self._products.get(group.name)
                self._products[group.name] = products if earlier is None else merge_comoments(earlier, products)

    def _measure(self, x: Tensor, axis: int) -> _Measured:
        """The channels' statistics of a tensor, measured once however many consumers read it."""
        version = 0 if x.is_inference() else x._version
        known = self._measured.get((id(x), axis))
        if known is None or known.tensor() is not x or known.version != version:
            known = _Measured(ref(x), version, measure(x, axis, self._rows_of(x, axis), self._scratch), set())
            self._measured[id(x), axis] = known
        return known

    def _rows_of(self, x: Tensor, axis: int) -> Tensor | None:
        """The rows of `x` that are no padding, where its leading dimensions are those of the mask."""
        if self._mask is None or self._rows is None:
            return None
        by_token = axis >= 2 and x.shape[:2] == self._mask.shape
        flattened = axis == 1 and x.ndim == 2 and x.shape[0] == self._mask.numel()
        return self._rows.to(x.device) if by_token or flattened else None

    def _positions_on(self, device: torch.device, group: NeuronGroup, read: Read, width: int) -> Tensor | None:
        """The read's positions as a tensor; None where neurons and channels are the same."""
        if id(read) not in self._positions:
            positions = torch.from_numpy(read.positions).to(device)
            plain = read.positions.shape == (width, 1) and bool(
                (positions[:, 0] == torch.arange(width, device=device)).all()
            )
            self._positions[id(read)] = None if plain else positions
        return self._positions[id(read)]

    def _forget(self) -> None:
        self._mask = self._rows = None
        self._measured.clear()
        self._blocks = {}
        self._products = {}


@dataclass
class _Measured:
    tensor: ref[Tensor]
    version: int
    block: Tensor
    groups: set[str]
