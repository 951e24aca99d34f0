"""Calls of PyTorch functions as the model's code made them: which sizes and bounds it named, and what that means.

Below these calls everything is a plain integer; here a size still is the module's attribute or another tensor's width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from tracker.code_sites import Place, Spot, spot
from tracker.sizes import Tracked, expression_of
from tracker.subscripts import Bounds, resolved, slices

if TYPE_CHECKING:
    from tracker.flow import Flow

SHAPE_GETTER = torch.Tensor.shape.__get__  # type: ignore[attr-defined]

# Written in Python inside of torch, these compute sizes themselves, out of our sight: all their sizes are constants.
_COMPUTES_SIZES = (functional.multi_head_attention_forward, functional.local_response_norm)
_PIECES = frozenset({"split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk"})
_MATCHING = frozenset(
    "matmul __matmul__ __rmatmul__ einsum scaled_dot_product_attention expand_as broadcast_tensors".split()
)
# The arguments, by name and position, whose meaning an operator's rule knows.
_SIZE_ARGUMENTS: Mapping[str, tuple[str, int]] = {
    "layer_norm": ("normalized_shape", 1),
    "rms_norm": ("normalized_shape", 1),
    "group_norm": ("num_groups", 1),
    **{f"conv{transpose}{n}d": ("groups", 6) for transpose in ("", "_transpose") for n in (1, 2, 3)},
}


@dataclass(frozen=True)
class Call:
    """The innermost PyTorch function that the model's code is calling."""

    name: str = ""
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    constant_sizes: bool = False
    cuts: list[Bounds] = field(default_factory=list)
    cut_at: Spot | None = None  # where the code makes the cuts, which are read further down

    @classmethod
    def of(cls, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """A call about to be made."""
        name, cuts, cut_at = getattr(func, "__name__", ""), [], None
        if name in ("__getitem__", "__setitem__"):
            cuts = [found.bounds for found in slices(args[0].shape, args[1]) if found.cuts]
            cut_at = spot() if cuts else None
        call = cls(name, args, kwargs, func in _COMPUTES_SIZES, cuts, cut_at)
        if call.name == "narrow" and isinstance(start := call.argument("start", 2), int):
            call.cuts.append(Bounds(start, start + call.argument("length", 3)))
        return call

    def argument(self, name: str, position: int, default: Any = None) -> Any:
        """An argument by name or position."""
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[position] if len(self.args) > position else default

    @property
    def matches_operands(self) -> bool:
        """Whether the function expands its operands to each other's sizes."""
        return self.name in _MATCHING

    def expands(self, axis: int) -> bool:
        """Whether this look-up expands its index over an axis."""
        index = self.argument("indices", 1) if self.name == "take_along_dim" else None
        return isinstance(index, Tensor) and index.dim() > axis and index.shape[axis] == 1

    @property
    def names_pieces(self) -> bool:
        """Whether the code itself says how a tensor is split."""
        return self.name in _PIECES

    def bounds(self, start: int, stop: int, size: int) -> Bounds | None:
        """The bounds of a slice as the code gave them, origin included; None where the code named no slice.

        One subscript may cut several axes; the operators cut them one after the other.
        """
        while self.cuts:
            bounds = self.cuts.pop(0)
            if resolved(bounds, size) == (start, stop):
                return bounds
        return None


def reads_its_input(module: nn.Module) -> int | None:
    """The axis of its first input that a plain linear or convolution layer contracts; None for any other module."""
    forward = getattr(type(module), "forward", None)
    if isinstance(module, nn.Linear) and forward is nn.Linear.forward:
        return -1
    if type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils":
        return -1
    for kind, axis in _CONVOLUTIONS.items():
        if isinstance(module, kind) and forward is kind.forward:
            return axis
    return None


_CONVOLUTIONS: Mapping[type[nn.Module], int] = {
    nn.Conv1d: -2,
    nn.Conv2d: -3,
    nn.Conv3d: -4,
    nn.ConvTranspose1d: -2,
    nn.ConvTranspose2d: -3,
    nn.ConvTranspose3d: -4,
}


def interpret(flow: Flow, call: Call, out: Any) -> None:
    """What a finished call says about sizes. A size given to a function that does not take it as one is a number."""
    reading = _READINGS.get(call.name)
    if reading is not None:
        reading(flow, call, out)
        return
    known = call.argument(*_SIZE_ARGUMENTS[call.name]) if call.name in _SIZE_ARGUMENTS else None
    understood = {id(leaf) for leaf in tree_leaves(known)}
    given = tree_leaves((tuple(call.args), dict(call.kwargs)))
    _must_stay(*(leaf for leaf in given if id(leaf) not in understood))


def _sizes(call: Call, position: int, keyword: str) -> Sequence[Any]:
    if keyword in call.kwargs:
        given = call.kwargs[keyword]
        return given if isinstance(given, Sequence) else (given,)
    rest = call.args[position:]
    return rest[0] if len(rest) == 1 and isinstance(rest[0], Sequence) else rest


def _view(flow: Flow, call: Call, out: Any) -> None:
    sizes = _sizes(call, 1, "shape" if "shape" in call.kwargs else "size")
    if isinstance(out, Tensor) and len(sizes) == out.dim():
        for axis, size in enumerate(sizes):
            flow.explain(out, axis, size, Place("size", axis, len(sizes)))


def _unflatten(flow: Flow, call: Call, out: Any) -> None:
    axis = call.argument("dim", 1) % call.args[0].dim()
    sizes = call.argument("sizes", 2)
    given = sizes if isinstance(sizes, Sequence) else call.args[2:]
    for offset, size in enumerate(given):
        flow.explain(out, axis + offset, size, Place("size", offset, len(given)))


def _expand(flow: Flow, call: Call, out: Any) -> None:
    before, sizes = call.args[0], _sizes(call, 1, "size")
    new = out.dim() - before.dim()
    for axis, size in enumerate(sizes if len(sizes) == out.dim() else ()):
        if axis < new or before.shape[axis - new] != out.shape[axis]:
            flow.virtual(out, axis, size)
        else:
            flow.explain(out, axis, size, Place("size", axis, len(sizes)))


def _create(first: int) -> Callable[[Flow, Call, Any], None]:
    def reading(flow: Flow, call: Call, out: Any) -> None:
        sizes = _sizes(call, first, "size")
        if sizes and isinstance(sizes[0], Sequence):  # and a value to fill it with
            sizes = sizes[0]
        for axis, size in enumerate(sizes if len(sizes) == out.dim() else ()):
            flow.virtual(out, axis, size)

    return reading


def _create_full(first: int) -> Callable[[Flow, Call, Any], None]:
    plain = _create(first)

    def reading(flow: Flow, call: Call, out: Any) -> None:
        plain(flow, call, out)
        _must_stay(call.argument("fill_value", first + 1))

    return reading


def _create_random(first: int) -> Callable[[Flow, Call, Any], None]:
    plain = _create(first)

    def reading(flow: Flow, call: Call, out: Any) -> None:
        plain(flow, call, out)
        for _, grid in flow.blocks(out):
            flow.space.mark_inexact(grid.cells, "random numbers of its width are drawn")

    return reading


def _repeat(flow: Flow, call: Call, out: Any) -> None:
    """An axis without neurons that is repeated follows the number of times; elsewhere that is a number."""
    before, times = call.args[0], _sizes(call, 1, "repeats" if "repeats" in call.kwargs else "dims")
    new = out.dim() - len(times)
    for axis, count in enumerate(times, new):
        at = axis - out.dim() + before.dim()
        if flow.axis_of(out, axis) is None:
            flow.virtual(out, axis, count, 1 if at < 0 else before.shape[at])
        else:
            _must_stay(count)


def _lstm(flow: Flow, call: Call, out: Any) -> None:
    """Where a projection is as wide as the cell, PyTorch takes it for none: the cell keeps its width."""
    states = next((given for given in call.args if isinstance(given, list | tuple) and len(given) == 2), ())
    if len(states) == 2 and states[0].shape[-1] != states[1].shape[-1]:
        flow.fix(states[1], -1, "is projected, and may not become as narrow as the projection")


def _split(flow: Flow, call: Call, out: Any) -> None:
    given = call.argument("split_size_or_sections", 1, call.kwargs.get("split_size", call.kwargs.get("split_sizes")))
    axis = call.argument("dim", 2, 0)
    if isinstance(given, Sequence):
        for number, (piece, size) in enumerate(zip(out, given, strict=True)):
            flow.explain(piece, axis, size, Place("size", number, len(given)))
    elif isinstance(given, Tracked):
        tie_pieces(flow, out, axis)
        flow.explain(out[0], axis, given)
    else:
        for piece in out:
            flow.fix(piece, axis, f"`split` into pieces of the constant size {given}")


def _subscript(flow: Flow, call: Call, out: Any) -> None:
    """The bounds of a labelled axis are read where it is cut; elsewhere, and as a position, a size is a number."""
    tensor, index, *written = call.args
    for item in (*(index if isinstance(index, tuple) else (index,)), *written):
        _must_stay(item.step if isinstance(item, slice) else item)
    for found in slices(tensor.shape, index):
        if flow.axis_of(tensor, found.axis) is None:
            _must_stay(found.bounds.start, found.bounds.stop)


def _narrow(flow: Flow, call: Call, out: Any) -> None:
    axis, start, length = (call.argument(name, i) for i, name in enumerate(("dim", "start", "length"), 1))
    flow.explain(out, axis, length)
    if flow.axis_of(call.args[0], axis) is None:
        _must_stay(start)


def _histc(flow: Flow, call: Call, out: Any) -> None:
    """Counts of positions from 0 to the last one: the code names how many there are, and the last one."""
    bins, first, last = (call.argument(name, i, 0) for i, name in enumerate(("bins", "min", "max"), 1))
    labels = flow.vector(out, 0)
    if labels is None:
        _must_stay(bins, first, last)
    elif first != 0 or not isinstance(last, int) or int(last) + 1 != int(bins):
        flow.fix(out, 0, "is counted between other bounds")
    else:
        flow.explain_count(expression_of(bins), labels)
        flow.explain_count(expression_of(last + 1), labels)


def _bincount(flow: Flow, call: Call, out: Any) -> None:
    """Counts of positions, as many as the code names."""
    count, labels = call.argument("minlength", 2, 0), flow.vector(out, 0)
    if labels is None:
        _must_stay(count)
    else:
        flow.explain_count(expression_of(count), labels)


def _must_stay(*numbers: Any) -> None:
    for number in numbers:
        if isinstance(number, Tracked):
            number.number()


def _export(flow: Flow, call: Call, out: Any) -> None:
    flow.freeze(call.args[0], f"leaves PyTorch by `{call.name}`")


def _count(flow: Flow, call: Call, out: Any) -> None:
    flow.fix(call.args[0], 0, "is counted by `len`")


def _chunk(flow: Flow, call: Call, out: Any) -> None:
    tie_pieces(flow, out, call.argument("dim", 2, 0))


def tie_pieces(flow: Flow, pieces: Sequence[Tensor], axis: int) -> None:
    """Pieces that take their size from the whole must lose equally: the same positions in each."""
    vectors = [flow.vector(piece, axis) for piece in pieces]
    equal = all(piece.shape[axis] == pieces[0].shape[axis] for piece in pieces)
    for piece, vector in zip(pieces, vectors, strict=True):
        if not equal or vectors[0] is None or vector is None:
            flow.fix(piece, axis, "is split into unequal pieces")
        else:
            flow.space.tie(vectors[0], vector)


def _rms_norm(flow: Flow, call: Call, out: Any) -> None:
    """Runs as smaller operators, which do not see the sizes it was given."""
    sizes = call.argument("normalized_shape", 1)
    for offset, size in enumerate(sizes):
        flow.explain(out, out.dim() - len(sizes) + offset, size)


_READINGS: Mapping[str, Callable[[Flow, Call, Any], None]] = {
    "view": _view,
    "reshape": _view,
    "unflatten": _unflatten,
    "rms_norm": _rms_norm,
    "expand": _expand,
    "broadcast_to": _expand,
    "lstm": _lstm,
    "repeat": _repeat,
    "tile": _repeat,
    "full": _create_full(0),
    "rand": _create_random(0),
    "randn": _create_random(0),
    "new": _create(1),
    "new_full": _create_full(1),
    "zeros": _create(0),
    "ones": _create(0),
    "empty": _create(0),
    "new_zeros": _create(1),
    "new_ones": _create(1),
    "new_empty": _create(1),
    "histc": _histc,
    "bincount": _bincount,
    "split": _split,
    "split_with_sizes": _split,
    "unsafe_split": _split,
    "unsafe_split_with_sizes": _split,
    "chunk": _chunk,
    "unsafe_chunk": _chunk,
    "__getitem__": _subscript,
    "__setitem__": _subscript,
    "narrow": _narrow,
    "tolist": _export,
    "numpy": _export,
    "__array__": _export,
    "__len__": _count,
}
