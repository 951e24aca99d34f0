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

from tracker.sizes import Tracked, sources

if TYPE_CHECKING:
    from tracker.flow import Flow

SHAPE_GETTER = torch.Tensor.shape.__get__  # type: ignore[attr-defined]

# Written in Python inside of torch, these compute sizes themselves, out of our sight: all their sizes are constants.
_COMPUTES_SIZES = (functional.multi_head_attention_forward, functional.local_response_norm)
_PIECES = frozenset({"split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk"})
_NUMBERS = frozenset(
    "add sub subtract mul multiply div divide true_divide floor_divide remainder fmod pow float_power rsub fill_ full "
    "full_like new_full tensor as_tensor scalar_tensor arange linspace logspace range clamp clamp_min clamp_max "
    "__add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __mul__ __rmul__ __imul__ __truediv__ __rtruediv__ "
    "__itruediv__ __floordiv__ __pow__ __rpow__ add_ sub_ mul_ div_ pow_ addcmul addcdiv lerp".split()
)


@dataclass(frozen=True)
class Call:
    """The innermost PyTorch function that the model's code is calling."""

    name: str = ""
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    constant_sizes: bool = False

    @classmethod
    def of(cls, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """A call about to be made."""
        return cls(getattr(func, "__name__", ""), args, kwargs, func in _COMPUTES_SIZES)

    def argument(self, name: str, position: int, default: Any = None) -> Any:
        """An argument by name or position."""
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[position] if len(self.args) > position else default

    @property
    def names_pieces(self) -> bool:
        """Whether the code itself says how a tensor is split."""
        return self.name in _PIECES

    def bounds(self, start: int, stop: int, size: int) -> tuple[Any, Any] | None:
        """The bounds of a slice as the code gave them, origin included; None where the code named no slice."""
        for given in self._slices():
            first = 0 if given.start is None else given.start
            last = size if given.stop is None else given.stop
            if _within(first, size) == start and _within(last, size) == stop:
                return first, last
        return None

    def _slices(self) -> list[slice]:
        if self.name in ("__getitem__", "__setitem__"):
            index = self.args[1]
            return [item for item in (index if isinstance(index, tuple) else (index,)) if isinstance(item, slice)]
        if self.name == "narrow":
            start, length = self.argument("start", 2), self.argument("length", 3)
            return [slice(start, start + length)] if isinstance(start, int) else []
        return []


def _within(bound: int, size: int) -> int:
    return min(max(bound + size if bound < 0 else bound, 0), size)


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
    """What a finished call says about sizes."""
    reading = _READINGS.get(call.name)
    if reading is not None:
        reading(flow, call, out)
    elif call.name in _NUMBERS:
        for value in tree_leaves((tuple(call.args), dict(call.kwargs))):
            if isinstance(value, Tracked) and any(True for _ in sources(value.expression)):
                value.number()


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
            flow.explain(out, axis, size)


def _unflatten(flow: Flow, call: Call, out: Any) -> None:
    axis = call.argument("dim", 1) % call.args[0].dim()
    sizes = call.argument("sizes", 2)
    for offset, size in enumerate(sizes if isinstance(sizes, Sequence) else call.args[2:]):
        flow.explain(out, axis + offset, size)


def _expand(flow: Flow, call: Call, out: Any) -> None:
    before, sizes = call.args[0], _sizes(call, 1, "size")
    new = out.dim() - before.dim()
    for axis, size in enumerate(sizes if len(sizes) == out.dim() else ()):
        if axis < new or before.shape[axis - new] != out.shape[axis]:
            flow.virtual(out, axis, size)
        else:
            flow.explain(out, axis, size)


def _create(first: int) -> Callable[[Flow, Call, Any], None]:
    def reading(flow: Flow, call: Call, out: Any) -> None:
        sizes = _sizes(call, first, "size")
        for axis, size in enumerate(sizes if len(sizes) == out.dim() else ()):
            flow.virtual(out, axis, size)

    return reading


def _split(flow: Flow, call: Call, out: Any) -> None:
    given = call.argument("split_size_or_sections", 1, call.kwargs.get("split_size", call.kwargs.get("split_sizes")))
    axis = call.argument("dim", 2, 0)
    if isinstance(given, Sequence):
        for piece, size in zip(out, given, strict=True):
            flow.explain(piece, axis, size)
    elif isinstance(given, Tracked):
        tie_pieces(flow, out, axis)
        flow.explain(out[0], axis, given)
    else:
        for piece in out:
            flow.fix(piece, axis, f"`split` into pieces of the constant size {given}")


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


_READINGS: Mapping[str, Callable[[Flow, Call, Any], None]] = {
    "view": _view,
    "reshape": _view,
    "unflatten": _unflatten,
    "expand": _expand,
    "broadcast_to": _expand,
    "zeros": _create(0),
    "ones": _create(0),
    "empty": _create(0),
    "new_zeros": _create(1),
    "new_ones": _create(1),
    "new_empty": _create(1),
    "split": _split,
    "split_with_sizes": _split,
    "unsafe_split": _split,
    "unsafe_split_with_sizes": _split,
    "chunk": _chunk,
    "unsafe_chunk": _chunk,
}
