"""Consumers as matrices: how a layer that reads neurons is written as y = W x + b, and the weight written back.

A linear layer is one already. A convolution is one over the patches that it reads (C·k² columns). Where that is too
many columns, or where the weight belongs to no layer of a known kind, the channels are mixed instead: solved for
is x ≈ M x̂, one map of channels to channels that all positions of the kernel share, and the new weight is W M.
A grouped convolution is as many consumers as it has groups, and so is a parameter that stacks matrices, as those of a
mixture's experts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pruner.lengths import norms
from tracker.neuron_map import Length, NeuronMap, Read

MOST_PATCH_COLUMNS = 4608
"""Wider patches than 512 channels of 3 × 3 are not regressed on as such; their channels are mixed."""

STACKED = "is stacked with others in one parameter"

_CHUNK = 2**25  # numbers of a matrix of patches that exist at a time


class Bias(NamedTuple):
    """Where a constant can be added to what a consumer writes: its bias, or the running mean of the norm behind it."""

    name: str
    sign: int


@dataclass(frozen=True)
class Consumer:
    """A weight that reads neurons, as a matrix of shape (rows, columns).

    `channels` and `outputs` are the parts of the weight's dimensions that it takes up (all, but for grouped
    convolutions). `columns` says, for each group of neurons, which columns each neuron is: shape (size, k).
    `size` is the number of all columns, those that are no neurons' included.
    `form` is "matrix" where the layer's output is the regression's target, and "mixing" where its input is. With
    `length`, the weight is the normed direction of that length. `place` is which matrix of a stack it is. A consumer
    that is `routed` reads only the samples that the model chooses for it, and after a removal those may be others.
    """

    module: str
    weight: str
    dim: int
    read: Read
    channels: tuple[int, int]
    outputs: tuple[int, int] | None
    form: Literal["matrix", "mixing"]
    bias: Bias | None
    size: int
    columns: Mapping[str, NDArray[np.int64]]
    length: Length | None = None
    place: int | None = None
    routed: bool = False

    @property
    def name(self) -> str:
        """The weight's name, and which part of it where there are several."""
        if self.place is not None:
            return f"{self.weight}[{self.place}]"
        return self.weight if self.outputs is None else f"{self.weight}[{self.outputs[0]}:{self.outputs[1]}]"

    def weight_in(self, model: nn.Module) -> Tensor:
        """The weight as the layer uses it; the model's own memory where it is a parameter."""
        weight = model.get_parameter(self.weight).data
        if self.length is None:
            return weight
        length = model.get_parameter(self.length.length).data
        return (weight.double() * (length.double() / norms(weight, self.length))).to(weight.dtype)

    def give(self, model: nn.Module, weight: Tensor) -> None:
        """Make `weight`, which came from `weight_in` and was changed in place, the one that the layer uses."""
        if self.length is not None:
            direction, length = model.get_parameter(self.weight).data, norms(weight, self.length)
            direction.copy_(torch.where(length > 0, weight, direction))  # one of zeros would be none
            model.get_parameter(self.length.length).data.copy_(length)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as (rows, columns); a view where the layout allows it."""
        part = self._part(weight)
        if self.form == "matrix":
            return part.movedim(self._dim(part), 1).flatten(1)
        return part.movedim(self._dim(part), -1).flatten(0, -2)

    def put(self, weight: Tensor, matrix: Tensor) -> None:
        """Write a matrix of the same shape into the weight, in place."""
        part = self._part(weight)
        moved = part.movedim(self._dim(part), 1 if self.form == "matrix" else -1)
        moved.copy_(matrix.reshape(moved.shape))

    def constant(self, weight: Tensor, shift: Tensor) -> Tensor:
        """What a constant of `shift` (rows of the regression) adds to each output of the layer."""
        if self.form == "matrix":
            return shift
        part = self._part(weight).to(shift.dtype)
        moved = part.movedim(self._dim(part), -1) @ shift  # (outputs, kernel …)
        return moved.flatten(1).sum(1) if moved.dim() > 1 else moved

    def _part(self, weight: Tensor) -> Tensor:
        if self.place is not None:
            return weight[self.place]
        return weight if self.outputs is None else weight[self.outputs[0] : self.outputs[1]]

    def _dim(self, part: Tensor) -> int:
        return self.dim % part.dim() if self.place is None else self.dim - 1


@dataclass(frozen=True)
class Consumers:
    """All consumers that can be solved for, and the weights that cannot, with the reason."""

    found: tuple[Consumer, ...]
    left_out: Mapping[str, str]

    def reading(self, group: str) -> tuple[Consumer, ...]:
        """Those that read a group of neurons."""
        return tuple(consumer for consumer in self.found if group in consumer.columns)


def consumers_of(
    model: nn.Module, neurons: NeuronMap, groups: Collection[str], *, shifts: Mapping[str, Bias] | None = None
) -> Consumers:
    """The consumers of some groups of neurons.

    `shifts` names, for layers without a bias, the running mean of a batch norm right behind them that can take a
    constant instead (see `norms_behind`).
    """
    places: dict[tuple[str, str, int], dict[str, Read]] = {}
    for group in neurons:
        for read in group.reads if group.name in groups else ():
            places.setdefault((read.module, read.parameter, read.axis), {})[group.name] = read
    named = dict(model.named_parameters(remove_duplicate=False))
    owners: dict[int, list[str]] = {}
    for name, parameter in named.items():
        owners.setdefault(id(parameter), []).append(name)
    dims = {(site.parameter, group.name): site.dim for group in neurons for site in group.consumers}
    lengths = {length.direction: length for length in neurons.lengths}
    found: list[Consumer] = []
    left_out: dict[str, str] = {}
    for (module, weight, _), reads in places.items():
        reason = _obstacle(named, owners, weight, reads)
        if reason:
            left_out[weight] = reason
            continue
        dim = dims.get((weight, next(iter(reads))))
        if dim is None:
            left_out[weight] = "is no plain matrix over what it reads"
            continue
        if any(read.how == "operator" and read.positions.shape[1] != k for read, k in _widths(neurons, weight, reads)):
            left_out[weight] = STACKED
            continue
        if named[weight].dim() == 3 and any(read.how == "operator" for read in reads.values()):
            found += _stacked(module, weight, dim, named[weight], reads)
            continue
        layer = model.get_submodule(module)
        length = lengths.get(weight)
        made = [
            None if one is None else replace(one, length=length)
            for one in _made(layer, module, weight, dim, named[weight], reads, shifts or {}, normed=length is not None)
        ]
        if any(consumer is None for consumer in made):
            left_out[weight] = "its neurons take up unequal parts of its groups"
        found += [consumer for consumer in made if consumer is not None]
    return Consumers(tuple(found), left_out)


def _widths(neurons: NeuronMap, weight: str, reads: Mapping[str, Read]) -> Iterator[tuple[Read, int]]:
    """The reads of a weight, and how many positions each neuron has in it: several where it is read in slices."""
    for name, read in reads.items():
        for site, positions in neurons[name].members.items():
            if site.parameter == weight:
                yield read, positions.shape[1]


def _obstacle(
    named: Mapping[str, Tensor], owners: Mapping[int, list[str]], weight: str, reads: Mapping[str, Read]
) -> str:
    if weight not in named:
        return "is no parameter"
    if len(owners[id(named[weight])]) > 1:
        return "is shared with another layer"
    if any(read.how == "computed" for read in reads.values()):
        return "is computed from other parameters"
    if any(read.how == "operator" for read in reads.values()) and named[weight].dim() > 3:
        return STACKED
    return ""


def _made(
    layer: nn.Module,
    module: str,
    weight: str,
    dim: int,
    value: Tensor,
    reads: Mapping[str, Read],
    shifts: Mapping[str, Bias],
    *,
    normed: bool,
) -> Iterator[Consumer | None]:
    read = next(iter(reads.values()))
    own = (normed or f"{module}.weight".lstrip(".") == weight) and read.how == "input"
    taps = patch_size(layer) if own else None
    count = layer.groups if own and isinstance(layer, nn.modules.conv._ConvNd) else 1
    plain = own and (is_linear(layer) or taps is not None)
    form: Literal["matrix", "mixing"] = "matrix"
    if not plain or (taps or 1) * value.shape[dim] > MOST_PATCH_COLUMNS:
        form, taps = "mixing", None
    bias = _bias(layer, module, shifts) if own and (plain or isinstance(layer, nn.modules.conv._ConvNd)) else None
    if count > 1 and isinstance(layer, nn.modules.conv._ConvTransposeNd):
        yield None
        return
    width, height = value.shape[dim], value.shape[0] // count
    for index in range(count):
        channels = (index * width, (index + 1) * width)
        columns = {name: _columns(one.positions, channels, taps or 1) for name, one in reads.items()}
        if any(found is None for found in columns.values()):
            yield None
            continue
        yield Consumer(
            module=module,
            weight=weight,
            dim=dim,
            read=read,
            channels=channels,
            outputs=(index * height, (index + 1) * height) if count > 1 else None,
            form=form,
            bias=bias,
            size=width * (taps or 1),
            columns={name: found for name, found in columns.items() if found is not None and found.size},
        )


def _stacked(module: str, weight: str, dim: int, value: Tensor, reads: Mapping[str, Read]) -> Iterator[Consumer]:
    """Every matrix of a stack by itself, unless what it is stacked along are the neurons."""
    width = value.shape[dim]
    columns = {name: _columns(read.positions, (0, width), 1) for name, read in reads.items()}
    for place in range(len(value) if dim else 0):
        yield Consumer(
            module=module,
            weight=weight,
            dim=dim,
            read=next(iter(reads.values())),
            channels=(0, width),
            outputs=None,
            form="mixing",
            bias=None,
            size=width,
            columns={name: found for name, found in columns.items() if found is not None},
            place=place,
            routed=True,
        )


def _columns(positions: NDArray[np.int64], channels: tuple[int, int], taps: int) -> NDArray[np.int64] | None:
    """The columns of every neuron among `channels`; None where neurons have unequal numbers of them."""
    inside = (positions >= channels[0]) & (positions < channels[1])
    counts = inside.sum(1)
    if (counts != counts[0]).any():
        return None
    own = positions[inside].reshape(len(positions), -1) - channels[0]
    columns: NDArray[np.int64] = (own[:, :, None] * taps + np.arange(taps)).reshape(len(positions), -1)
    return columns


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer is y = W x + b: `nn.Linear`, or the transposed one of transformers called Conv1D."""
    kind = type(layer)
    if isinstance(layer, nn.Linear):
        return kind.forward is nn.Linear.forward
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def patch_size(layer: nn.Module) -> int | None:
    """k² of a convolution whose patches can be listed, else None."""
    if type(layer) not in (nn.Conv1d, nn.Conv2d) or not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return None
    return int(np.prod(layer.kernel_size)) if layer.padding_mode == "zeros" else None


def _bias(layer: nn.Module, module: str, shifts: Mapping[str, Bias]) -> Bias | None:
    if getattr(layer, "bias", None) is not None:
        return Bias(f"{module}.bias".lstrip("."), 1)
    return shifts.get(module)


def norms_behind(model: nn.Module, layers: Iterable[str], run: Any) -> dict[str, Bias]:
    """For layers without a bias whose output goes straight into a batch norm with running statistics: its mean.

    Adding c to the layer's output is the same as taking c from that mean. `run` runs the model once.
    """
    written: dict[int, tuple[Tensor, str]] = {}
    found: dict[str, Bias] = {}
    readers: dict[int, int] = {}
    wanted = {name: model.get_submodule(name) for name in layers}
    handles = []
    for name, layer in wanted.items():
        if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear) and layer.bias is None:

            def wrote(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor):
                    written[id(output)] = (output, name)

            handles.append(layer.register_forward_hook(wrote))
    for name, norm in model.named_modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:

            def reads(_: nn.Module, args: Any, name: str = name) -> None:
                if args and id(args[0]) in written:
                    layer = written[id(args[0])][1]
                    readers[id(args[0])] = readers.get(id(args[0]), 0) + 1
                    found[layer] = Bias(f"{name}.running_mean".lstrip("."), -1)

            handles.append(norm.register_forward_pre_hook(reads))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    uses = [name for _, name in written.values()]
    return {layer: bias for layer, bias in found.items() if uses.count(layer) == 1}


# What is read and written, as rows


def input_rows(consumer: Consumer, layer: nn.Module, x: Tensor, keep: Tensor | None) -> Tensor:
    """What a consumer reads, as (samples, columns): tokens, positions, or the patches of a convolution.

    `keep` are the samples wanted; None for all of them.
    """
    if consumer.form == "matrix" and isinstance(layer, nn.Conv1d | nn.Conv2d):
        part = x[:, consumer.channels[0] : consumer.channels[1]]
        return _patches(layer, part, keep)
    rows = flat_rows(x, consumer.read.axis)
    if consumer.outputs is not None:
        rows = rows[:, consumer.channels[0] : consumer.channels[1]]
    return rows if keep is None else rows[keep]


def output_rows(consumer: Consumer, layer: nn.Module, x: Tensor, y: Tensor | None, keep: Tensor | None) -> Tensor:
    """The regression's target: what the layer writes (matrix form) or reads (mixing form), as (samples, rows)."""
    if consumer.form == "mixing" or y is None:
        return input_rows(consumer, layer, x, keep)
    rows = flat_rows(y, 1 if isinstance(layer, nn.Conv1d | nn.Conv2d) else -1)
    if consumer.outputs is not None:
        rows = rows[:, consumer.outputs[0] : consumer.outputs[1]]
    return rows if keep is None else rows[keep]


def flat_rows(x: Tensor, axis: int) -> Tensor:
    """A tensor as (samples, channels)."""
    return x.movedim(axis, -1).flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)


def row_count(consumer: Consumer, layer: nn.Module, x: Tensor, y: Tensor | None) -> int:
    """How many samples there are in what was read."""
    if consumer.form == "matrix" and isinstance(layer, nn.Conv1d | nn.Conv2d) and y is not None:
        return y.numel() // y.shape[1]
    return x.numel() // x.shape[consumer.read.axis]


def _patches(layer: nn.Conv1d | nn.Conv2d, x: Tensor, keep: Tensor | None) -> Tensor:
    """Patches (samples, C·k²), channel by channel; never more than `_CHUNK` numbers beside those wanted."""
    if isinstance(layer, nn.Conv1d):
        x = x.unsqueeze(2)
    kernel, stride, dilation = (
        tuple(given) if len(given) == 2 else (1, *given) for given in (layer.kernel_size, layer.stride, layer.dilation)
    )
    padding: Any = layer.padding
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        x = F.pad(x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
        padding = (0, 0)
    elif len(padding) == 1:
        padding = (0, *padding)
    size = [(x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]
    positions = size[0] * size[1]
    images = max(1, _CHUNK // max(1, positions * x.shape[1] * kernel[0] * kernel[1]))
    parts = []
    for start in range(0, x.shape[0], images):
        columns = F.unfold(x[start : start + images], kernel, dilation, padding, stride)
        rows = columns.transpose(1, 2).flatten(0, 1)
        if keep is not None:
            first, last = start * positions, (start + images) * positions
            rows = rows[keep[(keep >= first) & (keep < last)] - first]
        parts.append(rows)
    return torch.cat(parts)
