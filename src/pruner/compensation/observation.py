"""What consumers read in the pruned model, side by side with what they write in the dense one, summed into moments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pruner.compensation.calibration import HELD_OUT
from pruner.compensation.consumers import Consumer, input_rows, is_linear, output_rows, row_count
from pruner.compensation.moments import Moments
from pruner.compensation.stages import Stages
from tracker.batches import Batch
from tracker.errors import DataError
from tracker.neuron_map import NeuronGroup, NeuronMap, Read
from tracker.taps import tap

if TYPE_CHECKING:
    from pruner.compensation.sums import MomentSums

_ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)

LEAST_ROWS = 65536
ROWS_PER_COLUMN = 16
"""At most so many rows are taken of what a convolution reads, of which there often are more than enough."""


@dataclass
class Call:
    """One call of a consumer: what it read, what it wrote, and what that was added to (None: to nothing)."""

    x: Tensor
    y: Tensor | None
    beside: Tensor | None = None


@dataclass(frozen=True)
class Split:
    """Rows of one call: those to solve from and those to judge by."""

    fit: Tensor
    held: Tensor


@dataclass(frozen=True)
class Observed:
    """A consumer's moments on the rows to solve from, and on those held out."""

    fit: Moments
    held: Moments


def observe(
    neurons: NeuronMap, dense: Stages, pruned: Stages, stage: int, consumers: Sequence[Consumer]
) -> dict[str, Observed]:
    """One pass of a stage over all batches: the moments of every consumer that ran, by its name.

    Where `pruned` is `dense` itself, what is read and what is written come from the same run, and so they do where the
    samples of the two runs are not the same ones (see `Consumer.routed`). Padding does not count.

    Raises `DataError` where what is read is not finite.
    """
    from pruner.compensation.sums import MomentSums

    sums: dict[str, tuple[MomentSums, MomentSums]] = {}
    held = dense.data.held
    for number, batch in enumerate(dense.batches):
        with captured(dense.model, neurons, consumers) as wrote:
            dense.run(stage, number)
        read = wrote
        if pruned is not dense:
            with captured(pruned.model, neurons, consumers) as read:
                pruned.run(stage, number)
        for consumer in consumers:
            layer = pruned.model.get_submodule(consumer.module)
            for now, then in _pairs(consumer, layer, read.get(consumer.name, []), wrote.get(consumer.name, [])):
                split = _split(consumer, layer, now, batch, number in held if held else None, len(dense.batches))
                for index, rows in enumerate((split.fit, split.held)):
                    inputs = input_rows(consumer, layer, now.x, rows)
                    targets = output_rows(consumer, layer, then.x, then.y, rows)
                    if now is not then and now.beside is not None and then.beside is not None:
                        drift = then.beside - now.beside
                        targets = targets + output_rows(consumer, layer, then.x, drift, rows)
                    if consumer.name not in sums:
                        size = inputs.shape[1], targets.shape[1]
                        wide = torch.promote_types(inputs.dtype, torch.float32)
                        sums[consumer.name] = tuple(MomentSums(*size, inputs.device, wide) for _ in range(2))  # type: ignore[assignment]
                    sums[consumer.name][index].update(inputs, targets)
    found = {name: Observed(fit.moments(), held.moments()) for name, (fit, held) in sums.items()}
    for name, one in found.items():
        if not all(bool(torch.isfinite(m.xx.diagonal()).all()) for m in (one.fit, one.held)):
            raise DataError(
                f"What '{name}' reads holds NaN or Inf.",
                hint="Look for NaN in the weights and for overflow, or run the model in a wider dtype.",
            )
    return found


def _pairs(consumer: Consumer, layer: nn.Module, now: list[Call], then: list[Call]) -> list[tuple[Call, Call]]:
    """The calls in the pruned model with those in the dense one, or with themselves where the samples are others."""

    def rows_of(calls: list[Call]) -> list[int]:
        return [row_count(consumer, layer, call.x, call.y) for call in calls]

    alike = now is then or (not consumer.routed and rows_of(now) == rows_of(then))
    return list(zip(now, then if alike else now, strict=True))


@contextmanager
def captured(model: nn.Module, neurons: NeuronMap, consumers: Sequence[Consumer]) -> Iterator[dict[str, list[Call]]]:
    """Within the block: what each consumer reads and writes, call by call, by its name."""
    calls: dict[str, list[Call]] = {}
    by_module: dict[str, list[Consumer]] = {}
    groups: list[NeuronGroup] = []
    at_operators: dict[tuple[str, str], dict[int | None, Consumer]] = {}
    for consumer in consumers:
        if consumer.read.how == "input":
            by_module.setdefault(consumer.module, []).append(consumer)
        else:
            places = at_operators.setdefault((consumer.read.module, consumer.read.parameter), {})
            if not places:
                groups.append(replace(neurons[next(iter(consumer.columns))], reads=(consumer.read,)))
            places[consumer.place] = consumer

    def visit(_: NeuronGroup, read: Read, x: Tensor) -> None:
        places = at_operators[read.module, read.parameter]
        for place, part in [(None, x)] if None in places else taps.parts(x):
            consumer = places[place]
            if part.numel():
                moved = part.detach().movedim(read.axis, consumer.read.axis)
                calls.setdefault(consumer.name, []).append(Call(moved, None))

    with ExitStack() as stack:
        for name, own in by_module.items():

            def hook(
                _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, own: list[Consumer] = own
            ) -> None:
                x = next(leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, Tensor))
                y = output.detach() if isinstance(output, Tensor) else None
                for consumer in own:
                    calls.setdefault(consumer.name, []).append(Call(x.detach(), y))

            handle = model.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        if groups:
            taps = stack.enter_context(tap(model, groups, visit))
        stack.enter_context(_Sums(calls))
        yield calls


class _Sums(TorchDispatchMode):
    """Finds what the consumers' outputs are added to: the residual stream, as it is in this model."""

    def __init__(self, calls: dict[str, list[Call]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func in _ADDITIONS and len(args) == 2 and all(isinstance(x, Tensor) for x in args):
            one, other = args
            if one.shape == other.shape:
                self._note(one, other)
                self._note(other, one)
        return func(*args, **(kwargs or {}))

    def _note(self, written: Tensor, beside: Tensor) -> None:
        for calls in self._calls.values():
            y = calls[-1].y
            if y is not None and y.data_ptr() == written.data_ptr() and y.shape == written.shape:
                calls[-1].beside = beside.detach().clone()


def _split(consumer: Consumer, layer: nn.Module, call: Call, batch: Batch, held: bool | None, batches: int) -> Split:
    """Which rows of a call count, and which of these are held out: all or none of them, or one in `HELD_OUT` (None)."""
    count = row_count(consumer, layer, call.x, call.y)
    rows = torch.arange(count, device=call.x.device)
    mask = batch.mask
    if mask is not None and count == mask.numel():
        rows = rows[mask.flatten().to(rows.device)]
    most = max(LEAST_ROWS, ROWS_PER_COLUMN * (consumer.channels[1] - consumer.channels[0])) // batches
    if len(rows) > most and consumer.form == "matrix" and not is_linear(layer):
        random = torch.Generator().manual_seed(count)
        some = torch.randperm(len(rows), generator=random)[:most].sort().values.to(rows.device)
        rows = rows[some]
    if held is not None:
        return Split(rows[:0], rows) if held else Split(rows, rows[:0])
    out = torch.arange(len(rows), device=rows.device) % HELD_OUT == HELD_OUT - 1
    return Split(rows[~out], rows[out])
