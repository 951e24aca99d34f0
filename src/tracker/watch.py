"""Watching a model run: whatever the consumers read goes into one small state.

The state is that of `tracker.sums`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tracker.batches import padding_mask
from tracker.covariance import comoments
from tracker.errors import DataError
from tracker.meter import Meter, Scratch
from tracker.moments import Row, merge, pool
from tracker.neuron_map import NeuronGroup, Read
from tracker.taps import Taps, tap

if TYPE_CHECKING:
    from tracker.sums import Covariances, Moments


class Watch:
    """What is being watched, and what has come of it so far.

    Whole forwards of the model count. Calls of parts of it do not, such as the recomputation of activation
    checkpointing in the backward; with `only_training`, neither do forwards in evaluation mode; and of those that are
    left one in `every` counts, the first one first.

    Padding does not count where the model is called with the keyword `attention_mask` of shape (batch, tokens) and the
    consumer reads (batch, tokens, …) or (batch × tokens, channels). Looking for it makes the host wait for an
    accelerator once a forward; nothing else does.
    """

    def __init__(
        self, groups: Sequence[NeuronGroup], *, covariance: bool = False, only_training: bool = False, every: int = 1
    ) -> None:
        from tracker.sums import Covariances, Moments

        self.groups = tuple(groups)
        self.every = every
        self._forwards = 0
        self.moments: Moments = Moments(self.groups)
        self.covariances: Covariances | None = Covariances(self.groups) if covariance else None
        self._only_training = only_training
        self._scratch = Scratch()
        self._sites: dict[tuple[str, str, int], _Site] = {}
        self._batches = 0
        self._first_bad: int | None = None
        self._misfit = self._changed = ""
        self._running = False
        self._mask: Tensor | None = None
        self._rows: Tensor | None = None
        self._seen: dict[tuple[int, int], _Seen] = {}

    def results(self) -> tuple[dict[str, Tensor], dict[str, NDArray[np.float64]]]:
        """The block (7, size) of every group, and the covariance matrices where they are kept, both on the CPU.

        Raises `DataError`, naming the layer, where NaN or Inf was read, or where the model was changed on the way.
        """
        if self._changed:
            raise DataError(
                f"The model was changed while it was tracked: {self._changed}.",
                hint="Leave the tracking block before pruning, and enter it again afterwards.",
            )
        self._flush()
        blocks = self.moments.compute()
        bad = [name for name, b in blocks.items() if not b[[Row.MEAN, Row.M2, Row.MAGNITUDE]].isfinite().all()]
        if bad:
            more = f" and {len(bad) - 1} others" if len(bad) > 1 else ""
            first = f", first in batch {self._first_bad}" if self._first_bad is not None else ""
            raise DataError(
                f"Layer '{bad[0]}'{more}: NaN or Inf in the activations{first}.",
                hint="Look for NaN in the weights and for overflow, or run the model in a wider dtype.",
            )
        return blocks, {} if self.covariances is None else self.covariances.compute()

    def to(self, model: nn.Module) -> None:
        """Keep what is seen where the model computes."""
        device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        self.moments.to(device)
        if self.covariances is not None:
            self.covariances.to(device)

    @property
    def batches(self) -> int:
        """Forwards that counted, of this process since the last reset."""
        return self._batches

    @property
    def blind(self) -> bool:
        """Whether forwards counted, and nothing of any layer was seen in them."""
        return self._batches > 0 and not self._sites and bool(self.groups)

    def so_far(self) -> tuple[int, Tensor]:
        """How many forwards counted, and the blocks of all neurons side by side, (7, neurons): for `go_on`."""
        self._flush()
        return self._batches, self.moments.block.cpu()

    def go_on(self, batches: int, block: Tensor) -> None:
        """Take over what another watch of the same groups has seen so far."""
        if block.shape != self.moments.block.shape:
            raise DataError(
                f"What was seen is of {block.shape[-1]} neurons; watched are {self.moments.block.shape[-1]}.",
                hint="Go on with the model, and the groups, that were watched then.",
            )
        self._batches = batches
        self.moments.block = block.to(self.moments.block)

    def reset(self) -> None:
        """Forget everything seen so far."""
        self._flush()
        self._batches, self._first_bad, self._changed = 0, None, ""
        self._sites.clear()
        self.moments.reset()
        if self.covariances is not None:
            self.covariances.reset()

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward of the whole model starts."""
        counted = module.training or not self._only_training
        self._running = counted and self._forwards % self.every == 0
        self._forwards += counted
        self._forget()
        mask = padding_mask(args, kwargs) if self._running else None
        if mask is not None:
            rows = mask.flatten().nonzero().squeeze(1)
            if rows.numel() < mask.numel():
                self._mask, self._rows = mask, rows

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A forward ends; one that raised has no output."""
        if self._running and output is not None:
            self._batches += 1
            self._changed = self._changed or self._misfit
        self._running = False
        self._forget()

    def visit(self, group: NeuronGroup, read: Read, x: Tensor) -> None:
        """A consumer of the group reads `x`."""
        if not self._running:
            return
        with torch.inference_mode(False), torch.no_grad():
            axis = read.axis % x.ndim
            seen = self._seen.get((id(x), axis))
            version = 0 if x.is_inference() else x._version
            if seen is None or seen.tensor() is not x or seen.version != version:
                site = self._site(read)
                if not self._fits(site, read, x.shape[axis]):
                    return
                site.meter.add(x, self._rows_of(x, axis))
                if site.meter.bad and self._first_bad is None:
                    self._first_bad = self._batches
                seen = self._seen[id(x), axis] = _Seen(ref(x), version, site)
            elif group.name in seen.groups:
                return  # the same tensor again, as by the query, key and value layers
            seen.groups.add(group.name)
            seen.site.readers[group.name] = read
            if self.covariances is not None:
                positions = torch.from_numpy(read.positions).to(x.device)
                self.covariances.update({group.name: comoments(x, axis, positions, self._rows_of(x, axis))})

    def _site(self, read: Read) -> _Site:
        key = (read.module, read.parameter, read.axis)
        if key not in self._sites:
            self._sites[key] = _Site(Meter(read.axis, self._scratch))
        return self._sites[key]

    def _fits(self, site: _Site, read: Read, channels: int) -> bool:
        """Whether a tensor is as wide as it must be. If not, the forward will fail, or the model was changed."""
        before = site.meter.channels
        if channels == before or (before is None and read.positions.max() < channels):
            return True
        known = f"{before}" if before is not None else f"at least {read.positions.max() + 1}"
        self._misfit = f"'{read.module or read.parameter}' read {channels} channels instead of {known}"
        return False

    def _rows_of(self, x: Tensor, axis: int) -> Tensor | None:
        """The rows of `x` that are no padding, where its leading dimensions are those of the mask."""
        if self._mask is None or self._rows is None:
            return None
        by_token = axis >= 2 and x.shape[:2] == self._mask.shape
        flattened = axis == 1 and x.ndim == 2 and x.shape[0] == self._mask.numel()
        return self._rows.to(x.device) if by_token or flattened else None

    def _flush(self) -> None:
        """Move what the meters have summed into the state."""
        blocks: dict[str, Tensor] = {}
        with torch.inference_mode(False), torch.no_grad():
            for site in self._sites.values():
                block = site.meter.block()
                if block is None:
                    continue
                for name, read in site.readers.items():
                    pooled = pool(block, torch.from_numpy(read.positions).to(block.device))
                    blocks[name] = merge(blocks[name], pooled.to(blocks[name].device)) if name in blocks else pooled
            self.moments.update(blocks)
            if self.covariances is not None:
                self.covariances.update({})  # says that all data is in, of which there may be none

    def _forget(self) -> None:
        self._mask = self._rows = None
        self._misfit = ""
        self._seen.clear()


@contextmanager
def watching(model: nn.Module, watch: Watch) -> Iterator[Taps]:
    """Within the block, `watch` sees every forward of the model. The hooks come off whatever happens."""
    watch.to(model)
    with tap(model, watch.groups, watch.visit) as taps:
        handles = (
            model.register_forward_pre_hook(watch.begin, with_kwargs=True, prepend=True),
            model.register_forward_hook(watch.end, always_call=True),
        )
        try:
            yield taps
        finally:
            for handle in handles:
                handle.remove()


class _Site:
    """A place where tensors are read, and which groups are read there."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.readers: dict[str, Read] = {}


class _Seen:
    """A tensor that was read in this forward, where it was measured, and for which groups it counted."""

    def __init__(self, tensor: ref[Tensor], version: int, site: _Site) -> None:
        self.tensor = tensor
        self.version = version
        self.site = site
        self.groups: set[str] = set()
