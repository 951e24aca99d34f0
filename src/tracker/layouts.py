"""Fake tensors, fast: the shape of what the common operators make, by a rule of a few lines each.

PyTorch's own fake tensors interpret most operators in Python, in a tenth of a millisecond up to several. A rule here
answers the plain case (strided tensors of one device and floating type) in a few microseconds. Whatever is not plain,
shapes that do not fit included, it leaves to PyTorch, so that those answers and error messages stay the law.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

Shape = Sequence[int]


class Layout(NamedTuple):
    """What a tensor is without its values."""

    shape: Shape
    strides: Shape
    dtype: torch.dtype


Answer = Layout | tuple[Layout, ...] | Tensor | None  # a tensor: the argument that was written to; None: ask PyTorch
Rule = Callable[..., Answer]

_aten = torch.ops.aten
_DEVICE, _EMPTY = torch.ops.prim.device.default, _aten.empty.memory_format
_OF_EMPTY, _CPU = {"dtype", "layout", "device", "pin_memory"}, torch.device("cpu")
_RULES: dict[Any, Rule] = {}
_VIEWS: dict[Any, Any] = {}


class Shapes(FakeTensorMode):
    """Fake tensors whose common operators follow the rules of this module."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._attributes: dict[torch.device, dict[str, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE and type(args[0]) is FakeTensor:
            return args[0].fake_device
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():  # what reads sizes in here is not the model's code
            if func in _VIEWS:
                if not kwargs and type(args[0]) is FakeTensor and args[0].constant is None:
                    return self._view(_VIEWS[func], args)
            elif func in _RULES:
                device = _common_device((*args, *kwargs.values()))
                answer = None if device is None else _RULES[func](*args, **kwargs)
                if device is not None and answer is not None:
                    return self._made(answer, device)
            elif func is _EMPTY and kwargs.keys() <= _OF_EMPTY and kwargs.get("device") == _CPU:
                return self.empty(args[0], _contiguous(args[0]), kwargs["dtype"] or torch.get_default_dtype(), _CPU)
        return super().__torch_dispatch__(func, types, args, kwargs)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and to say so at every call takes time

    def empty(self, shape: Shape, strides: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A fake tensor."""
        with torch._C._DisableTorchDispatch():
            return self._wrapped(torch.empty_strided(shape, strides, dtype=dtype, device="meta"), device)

    def _view(self, view: Any, args: Any) -> Any:
        with in_kernel_invocation_manager(self):
            out = view(*args)
        device = args[0].fake_device
        return self._wrapped(out, device) if isinstance(out, Tensor) else [self._wrapped(o, device) for o in out]

    def _made(self, answer: Any, device: torch.device) -> Any:
        if isinstance(answer, Tensor):
            return answer
        if isinstance(answer, Layout):
            return self.empty(answer.shape, answer.strides, answer.dtype, device)
        return tuple(self._made(layout, device) for layout in answer)

    def _wrapped(self, meta: Tensor, device: torch.device) -> Tensor:
        """`FakeTensor(self, meta, device)` in a fifth of the time: attributes as of the first one on the device."""
        if device not in self._attributes:
            self._attributes[device] = dict(vars(FakeTensor(self, meta, device)))
        made = Tensor._make_subclass(FakeTensor, meta, False, dispatch_device=True, device_for_backend_keys=device)
        torch._C._set_throw_on_mutable_data_ptr(made)
        vars(made).update(self._attributes[device])
        return made


def _common_device(arguments: Iterable[Any]) -> torch.device | None:
    """The device of all tensors among the arguments; None unless all are plain fake tensors on one."""
    device: torch.device | None = None
    for argument in arguments:
        if type(argument) is FakeTensor:
            if argument.constant is not None or (device is not None and argument.fake_device != device):
                return None
            device = argument.fake_device
        elif isinstance(argument, Tensor):
            return None
        elif isinstance(argument, list) and argument and isinstance(argument[0], Tensor):
            inner = _common_device(argument)
            if inner is None or (device is not None and inner != device):
                return None
            device = inner
    return device


def _rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a rule for all overloads of aten operators, but those that write to `out`."""

    def register(rule: Rule) -> Rule:
        for overload in _overloads(operators):
            _RULES[overload] = rule
        return rule

    return register


def _overloads(operators: Iterable[str]) -> Iterator[Any]:
    for operator in operators:
        packet = getattr(_aten, operator)
        for name in packet.overloads():
            if "out" not in name:
                yield getattr(packet, name)


_VIEWS.update(
    (overload, overload)
    for overload in _overloads(
        "view alias detach t transpose permute expand select slice unsqueeze squeeze split split_with_sizes unbind"
        " diagonal unfold as_strided".split()
    )
)
_VIEWS[_aten._unsafe_view.default] = _aten.view.default


def _contiguous(shape: Shape) -> list[int]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return strides[::-1]


def _plain(shape: Shape, dtype: torch.dtype) -> Layout:
    return Layout(shape, _contiguous(shape), dtype)


def _alike(*tensors: Tensor | None) -> bool:
    """Whether all tensors given have one floating type."""
    kinds = {tensor.dtype for tensor in tensors if tensor is not None}
    return len(kinds) == 1 and kinds.pop().is_floating_point


def _like(x: Tensor) -> Layout | None:
    """The layout of `empty_like(x)`; None where `x` has gaps or overlaps."""
    if x.is_contiguous():
        return _plain(x.shape, x.dtype)
    return Layout(x.shape, x.stride(), x.dtype) if _dense(x) else None


def _dense(x: Tensor) -> bool:
    """Whether the elements of `x` lie side by side in memory, in any order."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


# Elementwise

_SAME_TYPE = """abs add atan ceil clamp clamp_max clamp_min cos div elu erf exp expm1 floor gelu hardsigmoid hardswish
    hardtanh leaky_relu log log1p log2 maximum minimum mish mul neg pow reciprocal relu rsqrt rsub sigmoid sign silu sin
    softplus sqrt square sub tan tanh""".split()
_IN_PLACE = [f"{name}_" for name in _SAME_TYPE if hasattr(_aten, f"{name}_")]


@_rule(*_SAME_TYPE)
def _elementwise(*args: Any, **kwargs: Any) -> Layout | None:
    tensors = [argument for argument in args if isinstance(argument, Tensor)]
    if not _real(args, kwargs) or not _alike(*tensors):
        return None
    first = tensors[0]
    if all(t.shape == first.shape for t in tensors):
        if all(t.is_contiguous() for t in tensors):
            return _plain(first.shape, first.dtype)
        if all(t.stride() == first.stride() for t in tensors) and _dense(first):
            return Layout(first.shape, first.stride(), first.dtype)
    shape = _broadcast([t.shape for t in tensors])
    if shape is None:
        return None
    return Layout(shape, _iterated(shape, tensors), first.dtype)


@_rule(*_IN_PLACE)
def _elementwise_in_place(x: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    tensors = [argument for argument in args if isinstance(argument, Tensor)]
    if not _real(args, kwargs) or not _alike(x, *tensors) or not _dense(x):
        return None
    shape = _broadcast([x.shape, *(t.shape for t in tensors)])
    return x if shape is not None and tuple(shape) == tuple(x.shape) else None


def _real(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether no argument could change the type of the result."""
    allowed = (Tensor, float, int, type(None), str)
    return all(isinstance(argument, allowed) for argument in args) and kwargs.keys() <= {"approximate", "alpha"}


def _broadcast(shapes: Sequence[Shape]) -> Shape | None:
    longest = max(shapes, key=len)
    shape = list(longest)
    for other in shapes:
        for axis, size in enumerate(other, len(shape) - len(other)):
            if shape[axis] == 1:
                shape[axis] = size
            elif size not in (1, shape[axis]):
                return None
    return shape


def _iterated(shape: Shape, tensors: Sequence[Tensor]) -> list[int]:
    """The strides that TensorIterator gives a result: its axes lie in memory in the order of the operands' axes."""
    count = len(shape)
    operands = []
    for tensor in tensors:
        offset = count - tensor.dim()
        own = zip(tensor.shape, tensor.stride(), strict=True)
        steps = [0 if size == 1 and shape[offset + i] != 1 else stride for i, (size, stride) in enumerate(own)]
        operands.append([0] * offset + steps)

    def slower(a: int, b: int) -> int:
        for steps in operands:
            if steps[a] and steps[b]:
                if steps[a] != steps[b]:
                    return 1 if steps[a] > steps[b] else -1
                if shape[a] > shape[b]:
                    return 1
        return 0

    order = list(range(count - 1, -1, -1))  # from the fastest to the slowest
    for i in range(1, count):
        at = i
        for before in range(i - 1, -1, -1):
            comparison = slower(order[before], order[at])
            if comparison > 0:
                order[before], order[at] = order[at], order[before]
                at = before
            elif comparison < 0:
                break
    strides, step = [0] * count, 1
    for axis in order:
        strides[axis] = step
        step *= shape[axis]
    return strides


# Products


@_rule("mm")
def _mm(a: Tensor, b: Tensor) -> Layout | None:
    fits = a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0] and _alike(a, b)
    return _plain((a.shape[0], b.shape[1]), a.dtype) if fits else None


@_rule("addmm")
def _addmm(bias: Tensor, a: Tensor, b: Tensor, **scales: Any) -> Answer:
    fits = bias.dim() == 1 and b.dim() == 2 and bias.shape[0] == b.shape[1] and _alike(bias, a) and not scales
    return _mm(a, b) if fits else None


@_rule("bmm")
def _bmm(a: Tensor, b: Tensor) -> Layout | None:
    fits = a.dim() == b.dim() == 3 and a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1] and _alike(a, b)
    return _plain((a.shape[0], a.shape[1], b.shape[2]), a.dtype) if fits else None


@_rule("convolution")
def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Shape,
    padding: Shape,
    dilation: Shape,
    transposed: bool,
    output_padding: Shape,
    groups: int,
) -> Layout | None:
    axes = weight.dim() - 2
    if (
        x.dim() != axes + 2
        or axes < 1
        or not (x.is_contiguous() and weight.is_contiguous() and _alike(x, weight, bias))
    ):
        return None
    read, written = x.shape[1], weight.shape[0]
    if transposed:
        read, written = written, weight.shape[1] * groups
    fits = weight.shape[0] % groups == 0 and read == (x.shape[1] if transposed else weight.shape[1] * groups)
    if not fits or (bias is not None and tuple(bias.shape) != (written,)):
        return None
    sizes = []
    for axis, (size, kernel) in enumerate(zip(x.shape[2:], weight.shape[2:], strict=True)):
        step, pad, spread, extra = (
            given[axis if len(given) > 1 else 0] for given in (stride, padding, dilation, output_padding or [0])
        )
        reach = spread * (kernel - 1)
        if transposed:
            if extra and extra >= max(step, spread):
                return None
            sizes.append((size - 1) * step - 2 * pad + reach + extra + 1)
        else:
            sizes.append((size + 2 * pad - reach - 1) // step + 1)
    plain = min(sizes) > 0 and x.numel() > 0 and min(stride) > 0 and min(padding) >= 0
    return _plain((x.shape[0], written, *sizes), x.dtype) if plain else None


@_rule("_scaled_dot_product_flash_attention_for_cpu")
def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **kwargs: Any) -> tuple[Layout, Layout] | None:
    shapes = {(*t.shape[:2], t.shape[3]) for t in (q, k, v) if t.dim() == 4}
    if len(shapes) != 1 or q.dim() != 4 or k.shape != v.shape or not _alike(q, k, v) or 0 in q.stride():
        return None
    out = _like(q) or Layout(q.shape, _iterated(q.shape, [q]), q.dtype)
    batch, heads, length, _size = q.shape
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return out, Layout((batch, heads, length), (heads * length, 1, heads), wide)


@_rule("embedding")
def _embedding(weight: Tensor, index: Tensor, *_: Any, **__: Any) -> Layout | None:
    return _plain((*index.shape, weight.shape[1]), weight.dtype) if weight.dim() == 2 else None


# Normalisations and reductions


@_rule("native_batch_norm")
def _batch_norm(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Layout, ...] | None:
    *vectors, training, _, _ = args
    plain = len(args) == 7 and not training and x.is_contiguous() and _alike(x, *vectors)
    if not plain or any(vector is not None and tuple(vector.shape) != (x.shape[1],) for vector in vectors):
        return None
    return _plain(x.shape, x.dtype), _plain((0,), x.dtype), _plain((0,), x.dtype)


@_rule("native_layer_norm")
def _layer_norm(
    x: Tensor, shape: Shape, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Layout, ...] | None:
    sizes, kept = tuple(shape), x.dim() - len(shape)
    fits = all(vector is None or tuple(vector.shape) == sizes for vector in (weight, bias))
    if not fits or kept < 0 or tuple(x.shape[kept:]) != sizes or not x.is_contiguous() or not _alike(x, weight, bias):
        return None
    statistics = _plain((*x.shape[:kept], *(1 for _ in sizes)), x.dtype)
    return _plain(x.shape, x.dtype), statistics, statistics


@_rule("_softmax", "_log_softmax")
def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Layout | None:
    fits = not half_to_float and -x.dim() <= dim < x.dim() and _alike(x)
    return _plain(x.shape, x.dtype) if fits else None


def _reduced(x: Tensor, dims: Shape | None = None, keepdim: bool = False, **kwargs: Any) -> Layout | None:
    if kwargs or not dims or not x.is_contiguous() or not _alike(x):
        return None
    if any(not -x.dim() <= dim < x.dim() for dim in dims) or len({dim % x.dim() for dim in dims}) != len(dims):
        return None
    gone = {dim % x.dim() for dim in dims}
    if keepdim:
        return _plain([1 if axis in gone else size for axis, size in enumerate(x.shape)], x.dtype)
    return _plain([size for axis, size in enumerate(x.shape) if axis not in gone], x.dtype)


_RULES[_aten.mean.dim] = _RULES[_aten.sum.dim_IntList] = _reduced


# Copies


@_rule("cat")
def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Layout | None:
    first = tensors[0]
    count = first.dim()
    if not -count <= dim < count or not _alike(*tensors) or any(t.dim() != count or not t.numel() for t in tensors):
        return None
    dim %= count
    rests = {(*t.shape[:dim], *t.shape[dim + 1 :]) for t in tensors}
    rows = count in (4, 5) and not first.is_contiguous()
    if len(rests) != 1 or (rows and suggest_memory_format(first) != torch.contiguous_format):
        return None
    return _plain((*first.shape[:dim], sum(t.shape[dim] for t in tensors), *first.shape[dim + 1 :]), first.dtype)


_PRESERVING = (None, torch.preserve_format)


@_rule("clone")
def _clone(x: Tensor, memory_format: torch.memory_format | None = None) -> Layout | None:
    if memory_format == torch.contiguous_format:
        return _plain(x.shape, x.dtype)
    return _like(x) if memory_format in _PRESERVING else None


@_rule("_to_copy")
def _to_copy(x: Tensor, dtype: torch.dtype | None = None, **kwargs: Any) -> Layout | None:
    same = _like(x)
    return None if kwargs or dtype is None or same is None else Layout(same.shape, same.strides, dtype)
