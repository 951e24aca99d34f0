"""Taps: see, and if you like replace, what the consumers of neurons read while a model runs.

Most consumers are layers, and what they read is their input: a forward pre-hook. A raw parameter has no layer of its
own; there the operator that contracts it is intercepted. The model runs its own code either way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from tracker.fake import unfused
from tracker.neuron_map import NeuronGroup, Read

# Called with the group, the read and the tensor that is read; a tensor returned is read instead.
Visitor = Callable[[NeuronGroup, Read, Tensor], Tensor | None]

# Operators that contract, and which two of their arguments they contract with each other.
_OPERANDS: Mapping[str, tuple[int, int]] = {
    "mm": (0, 1),
    "bmm": (0, 1),
    "mv": (0, 1),
    "dot": (0, 1),
    "vdot": (0, 1),
    "addmm": (1, 2),
    "addmv": (1, 2),
    "baddbmm": (1, 2),
    "linear": (0, 1),
    "_grouped_mm": (0, 1),
    "convolution": (0, 1),
    "_convolution": (0, 1),
    "convolution_overrideable": (0, 1),
    "mkldnn_convolution": (0, 1),
    "cudnn_convolution": (0, 1),
}
_PRODUCTS = frozenset({"mm", "bmm", "mv", "dot", "vdot", "addmm", "addmv", "baddbmm"})


class Taps:
    """Which reads were seen so far."""

    def __init__(self, groups: Iterable[NeuronGroup]) -> None:
        self.pairs = [(group, read) for group in groups for read in group.reads]
        self._seen: set[int] = set()
        self._elsewhere: dict[tuple[int, int], Read] = {}  # kept, for visitors know a read by its identity
        self.divided: Callable[[Tensor], Iterator[tuple[int, Tensor]]] = lambda x: iter(())  # by the product that runs

    @property
    def silent(self) -> tuple[Read, ...]:
        """The reads that did not happen: their consumers never ran."""
        return tuple(read for _, read in self.pairs if id(read) not in self._seen)

    def parts(self, x: Tensor) -> list[tuple[int, Tensor]]:
        """To be asked by a visitor whose parameter stacks matrices along its first dimension: which of them read which
        part of `x`. Nothing where the product that runs does not say.
        """
        return list(self.divided(x))

    def visit(
        self, pairs: Iterable[tuple[NeuronGroup, Read]], x: Tensor, visitor: Visitor, axis: int | None = None
    ) -> Tensor:
        """Show `x` to the visitor once for each of the reads, and hand on what it makes of it.

        `axis` is where the neurons are if not where they were in the trace.
        """
        for group, read in pairs:
            self._seen.add(id(read))
            here = read
            if axis is not None and axis != read.axis:
                here = self._elsewhere.setdefault((id(read), axis), replace(read, axis=axis))
            replaced = visitor(group, here, x)
            x = x if replaced is None else replaced
        return x


@contextmanager
def tap(model: nn.Module, groups: Iterable[NeuronGroup], visitor: Visitor) -> Iterator[Taps]:
    """Within the block, call `visitor(group, read, x)` for every read of the groups whenever the model runs.

    `x` is the very tensor that the consumer reads; its dimension `read.axis` holds the neurons. If the visitor returns
    a tensor, the consumer reads that one instead (at an intercepted operator gradients do not follow it).
    """
    taps = Taps(groups)
    by_module: dict[str, list[tuple[NeuronGroup, Read]]] = {}
    operators: list[tuple[NeuronGroup, Read]] = []
    for group, read in taps.pairs:
        (by_module.setdefault(read.module, []) if read.how == "input" else operators).append((group, read))
    with ExitStack() as stack:
        if any(isinstance(module, nn.MultiheadAttention | nn.RNNBase) for module in model.modules()):
            stack.enter_context(unfused())
        for name, pairs in by_module.items():
            hook = _input_hook(taps, pairs, visitor)
            handle = model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        if operators:
            stack.enter_context(_OperatorTaps(model, taps, operators, visitor))
        yield taps


def _input_hook(taps: Taps, pairs: list[tuple[NeuronGroup, Read]], visitor: Visitor) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = None if args else next((key for key, value in kwargs.items() if isinstance(value, Tensor)), None)
        if not args and name is None:
            return None
        x = args[0] if name is None else kwargs[name]
        replaced = taps.visit(pairs, x, visitor)
        if replaced is x:
            return None
        return ((replaced, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: replaced})

    return hook


class _OperatorTaps(TorchDispatchMode):
    """Finds, among all operators that run, those that contract a tapped parameter, or a weight computed from it."""

    def __init__(self, model: nn.Module, taps: Taps, pairs: list[tuple[NeuronGroup, Read]], visitor: Visitor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._taps, self._visitor = taps, visitor
        own: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
        own.update(model.named_parameters(remove_duplicate=False))
        self._pairs = [(own[read.parameter], group, read) for group, read in pairs]
        self._computing = any(read.how == "computed" for _, read in pairs)
        self._own: dict[int, list[Tensor]] = {}
        for tensor in {id(tensor): tensor for tensor in own.values()}.values():
            self._own.setdefault(_memory(tensor), []).append(tensor)
        self._sources: WeakIdKeyDictionary = WeakIdKeyDictionary()  # of weights: the parameters they are computed from

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = args
        name = func.overloadpacket.__name__
        operands = _OPERANDS.get(name)
        if operands is not None:
            one, other = operands
            args = self._replaced(name, args, weight=one, read=other)
            args = self._replaced(name, args, weight=other, read=one)
        out = func(*args, **(kwargs or {}))
        if self._computing:
            fresh = func is torch.ops.aten.lift_fresh.default  # the value of a `torch.tensor(...)`
            self._note_sources(() if fresh else (given, kwargs), out)
        return out

    def _replaced(self, name: str, args: tuple[Any, ...], *, weight: int, read: int) -> tuple[Any, ...]:
        operand, x = args[weight], args[read]
        axis = _contracted(name, x, left=read < weight)
        pairs = [
            (group, where)
            for parameter, group, where in self._pairs
            if self._is_read(where, parameter, operand) and _has_neurons(x, where, axis)
        ]
        if not pairs:
            return args
        parameter = next(own for own, _, where in self._pairs if where is pairs[0][1])
        self._taps.divided = partial(_divided, name, parameter, operand, args[2:])
        return (*args[:read], self._taps.visit(pairs, x, self._visitor, axis), *args[read + 1 :])

    def _is_read(self, read: Read, parameter: Tensor, operand: Tensor) -> bool:
        """Whether the operand is the weight that the read is about."""
        if read.how == "operator":
            return is_part(operand, parameter)
        sources = self._sources.get(operand)
        return sources is not None and any(source is parameter for source in sources)

    def _note_sources(self, inputs: Any, out: Any) -> None:
        """What is computed from parameters and constants alone is a weight, unless it still is a parameter's part."""
        sources: dict[int, Tensor] = {}
        for tensor in _tensors(inputs):
            found = self._owners(tensor) or self._sources.get(tensor)
            if found is None:
                return
            sources.update((id(source), source) for source in found)
        for tensor in _tensors(out):
            if not self._owners(tensor):
                self._sources[tensor] = tuple(sources.values())

    def _owners(self, tensor: Tensor) -> list[Tensor]:
        return [owner for owner in self._own.get(_memory(tensor), ()) if is_part(tensor, owner)]


def _tensors(given: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    """What views of the same memory have in common."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)


def _contracted(name: str, x: Tensor, *, left: bool) -> int | None:
    """The axis of an operand that a product contracts. (The same product may run in several ways: by the strides.)"""
    if name not in _PRODUCTS:
        return None
    return -1 if left or x.dim() == 1 else -2


def _divided(
    name: str, stack: Tensor, operand: Tensor, rest: tuple[Any, ...], x: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """Which matrices of a stack read which part of `x`, in a product with a view of one of them or of all."""
    if stack.dim() != 3 or not stack.numel():
        return
    count, place = len(stack), (operand.storage_offset() - stack.storage_offset()) / stack.stride(0)
    if operand.dim() == 2 and operand.numel() == stack[0].numel() and place.is_integer():
        yield int(place), x
    elif operand.dim() == 3 and operand.shape[0] == count and place == 0 and operand.stride(0) == stack.stride(0):
        if name in ("bmm", "baddbmm") and x.dim() == 3:
            yield from enumerate(x)
        elif name == "_grouped_mm" and x.dim() == 2 and rest and isinstance(rest[0], Tensor):
            ends = rest[0].tolist()
            yield from enumerate(x[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True))


def _has_neurons(x: Tensor, read: Read, axis: int | None) -> bool:
    """Whether the axis is there and long enough: one parameter may be contracted in several places."""
    axis = read.axis if axis is None else axis
    return x.dim() >= -axis and x.shape[axis] > int(read.positions.max())


def is_part(operand: Tensor, parameter: Tensor) -> bool:
    """Whether the operand is the parameter, or a view of a part of it."""
    if operand.untyped_storage().data_ptr() != parameter.untyped_storage().data_ptr():
        return False
    first = parameter.storage_offset()
    return operand.dtype == parameter.dtype and first <= operand.storage_offset() < first + parameter.numel()
