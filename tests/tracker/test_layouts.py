"""The rules say what the operators themselves do: size, strides and type are those of the real result, or PyTorch's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional
from torch.utils._pytree import tree_leaves, tree_map_only

from tracker.fake import unfused
from tracker.layouts import Shapes

Operator = Callable[..., Any]


def faked(mode: Shapes, x: Tensor) -> Tensor:
    return mode.empty(x.shape, x.stride(), x.dtype, x.device)


def described(out: Any) -> list[Any]:
    """Size, strides (of axes longer than one, which alone mean anything), type and device of every tensor."""
    return [
        (tuple(x.shape), [s for s, size in zip(x.stride(), x.shape, strict=True) if size > 1], x.dtype, x.device.type)
        for x in tree_leaves(out)
        if isinstance(x, Tensor) and x.numel()
    ]


def same(operator: Operator, *args: Any) -> None:
    """The operator makes on fake tensors what it makes on real ones."""
    with torch.no_grad(), unfused():
        expected = operator(*args)
        with Shapes() as mode:
            got = operator(*tree_map_only(Tensor, lambda x: faked(mode, x), args))
    assert all(isinstance(x, FakeTensor) for x in tree_leaves(got))
    assert described(got) == described(expected)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch is not asked."""

    def never(*args: Any) -> None:
        raise AssertionError(f"{args[1]} has no rule for this")

    monkeypatch.setattr(FakeTensorMode, "__torch_dispatch__", never)


rand = torch.rand
PLAIN: dict[str, tuple[Operator, *tuple[Any, ...]]] = {
    "linear": (functional.linear, rand(2, 3, 4), rand(5, 4), rand(5)),
    "linear without bias": (functional.linear, rand(2, 3, 4), rand(5, 4)),
    "mm": (torch.mm, rand(3, 4), rand(5, 4).t()),
    "bmm": (torch.bmm, rand(2, 3, 4), rand(2, 4, 5)),
    "matmul": (torch.matmul, rand(2, 3, 4, 5), rand(2, 3, 5, 6)),
    "gelu": (lambda x: functional.gelu(x, approximate="tanh"), rand(2, 3)),
    "pow": (lambda x: x**2 + 1 - x / 3, rand(2, 3, dtype=torch.float64)),
    "permuted": (lambda x, y: x.transpose(1, 2) * y, rand(2, 3, 4, 5), rand(1, 1, 3, 5)),
    "sliced": (lambda x: -x[..., 2:], rand(2, 3, 4)),
    "in place": (lambda x, y: x.add_(y).relu_(), rand(2, 3), rand(3)),
    "half": (lambda x: functional.silu(x) * 2.5, rand(2, 3).bfloat16()),
    "conv": (functional.conv2d, rand(2, 4, 9, 8), rand(6, 4, 3, 2), rand(6), 2, 1),
    "depthwise": (lambda x, w: functional.conv1d(x, w, groups=4, dilation=2), rand(2, 4, 9), rand(4, 1, 3)),
    "transposed": (
        lambda x, w: functional.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1, groups=2),
        rand(2, 4, 5, 5),
        rand(4, 3, 3, 3),
    ),
    "batch norm": (functional.batch_norm, rand(2, 4, 3), rand(4), rand(4), rand(4), rand(4)),
    "layer norm": (lambda x, w: functional.layer_norm(x, (3, 4), w, w), rand(2, 3, 4), rand(3, 4)),
    "attention": (functional.scaled_dot_product_attention, *[rand(2, 3, 5, 4).transpose(1, 2)] * 3),
    "attention over pieces": (functional.scaled_dot_product_attention, *rand(3, 2, 5, 3, 4).transpose(2, 3).unbind()),
    "embedding": (lambda w: functional.embedding(torch.arange(6).view(2, 3), w), rand(7, 4)),
    "softmax": (lambda x: x.softmax(-1), rand(2, 3, 4)),
    "mean": (lambda x: x.mean((-1, 0), keepdim=True), rand(2, 3, 4)),
    "sum": (lambda x: x.sum(1), rand(2, 3, 4)),
    "cat": (lambda x, y: torch.cat([x, -y], dim=-1), rand(2, 3, 4), rand(2, 3, 5)),
    "clone": (lambda x: (x.transpose(0, 1).contiguous(), x.transpose(0, 1).clone()), rand(2, 3)),
    "to": (lambda x: x.transpose(0, 1).double(), rand(2, 3)),
    "views": (
        lambda x: (x.view(6, 4).t(), x.chunk(2, -1), x.unbind(1), x[:, None, 1:].expand(2, 5, 2, 4)),
        rand(2, 3, 4),
    ),
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", sorted(PLAIN.keys() - {"embedding"}))
def test_plain_cases_have_a_rule_that_says_what_happens(name: str) -> None:
    operator, *args = PLAIN[name]
    same(operator, *args)


def test_an_index_is_no_plain_fake_tensor() -> None:
    operator, *args = PLAIN["embedding"]
    same(operator, *args)


ODD: dict[str, tuple[Operator, *tuple[Any, ...]]] = {
    "channels last": (functional.conv2d, rand(2, 4, 5, 5).to(memory_format=torch.channels_last), rand(6, 4, 3, 3)),
    "norm of channels last": (
        functional.batch_norm,
        rand(2, 4, 3, 3).to(memory_format=torch.channels_last),
        rand(4),
        rand(4),
    ),
    "cat of channels last": (lambda x: torch.cat([x, x], 1), rand(2, 4, 5, 5).to(memory_format=torch.channels_last)),
    "types": (lambda x, y: x * y, rand(3), rand(3).double()),
    "integers": (lambda x: x / 2, torch.arange(6)),
    "comparison": (lambda x: x > 0.5, rand(3)),
    "complex": (lambda x: x * 2j, rand(3)),
    "expanded": (lambda x: x.expand(3, 4) + 1, rand(4)),
    "scalar": (lambda x: x * torch.tensor(2.0), rand(3)),
    "empty": (lambda x, y: torch.cat([x, y]), rand(0), rand(2, 3)),
    "mean of all": (lambda x: x.mean(), rand(2, 3)),
    "sum in another type": (lambda x: x.sum(0, dtype=torch.float64), rand(2, 3)),
    "reduced over permuted": (lambda x: x.permute(2, 0, 1).mean(1), rand(2, 3, 4)),
    "one pixel": (functional.conv2d, rand(2, 4, 1, 1), rand(6, 4, 1, 1)),
}


@pytest.mark.parametrize("name", ODD)
def test_other_cases_come_out_right_too(name: str) -> None:
    operator, *args = ODD[name]
    same(operator, *args)


@pytest.mark.parametrize(
    ("operator", "args"),
    [
        (torch.mm, (rand(3, 4), rand(5, 4))),
        (torch.add, (rand(3, 4), rand(3, 5))),
        (Tensor.add_, (rand(4), rand(3, 4))),
        (functional.linear, (rand(2, 4), rand(5, 4), rand(3))),
        (functional.conv2d, (rand(2, 4, 5, 5), rand(6, 3, 3, 3))),
        (functional.conv2d, (rand(2, 4, 5, 5), rand(6, 4, 7, 7))),
        (lambda x: functional.layer_norm(x, (4,)), (rand(2, 3),)),
        (lambda x, y: torch.cat([x, y]), (rand(2, 3), rand(2, 4))),
        (lambda x: x.view(7), (rand(2, 3),)),
        (lambda x: x.t().view(6), (rand(2, 3),)),
        (lambda x: x.sum(3), (rand(2, 3),)),
        (lambda x, y: functional.batch_norm(x, y, y), (rand(2, 3, 4), rand(4))),
    ],
)
def test_what_does_not_fit_is_an_error_as_ever(operator: Operator, args: Any) -> None:
    for wrapped in (False, True):
        with torch.no_grad(), Shapes() as mode, pytest.raises((RuntimeError, IndexError)):
            operator(*(faked(mode, x) for x in args)) if wrapped else operator(*args)


@st.composite
def operands(draw: st.DrawFn) -> list[Tensor]:
    """Two or three tensors that broadcast, their axes in any order in memory, some sliced or expanded."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    made = []
    for _ in range(draw(st.integers(2, 3))):
        own = [draw(st.sampled_from([size, size, 1])) for size in shape][draw(st.integers(0, len(shape) - 1)) :]
        order = draw(st.permutations(range(len(own))))
        gaps = draw(st.booleans())
        x = rand([own[axis] + gaps for axis in order])
        x = x[tuple(slice(0, own[axis]) for axis in order)].permute([order.index(axis) for axis in range(len(own))])
        made.append(x)
    return made


@settings(deadline=None, max_examples=60)
@given(operands())
def test_results_of_elementwise_operators_lie_in_memory_as_pytorch_lays_them(given: list[Tensor]) -> None:
    same(lambda *tensors: sum(tensors[1:], tensors[0]), *given)
    same(lambda *tensors: torch.sin(tensors[0]), *given)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_convolutions_of_any_geometry(data: st.DataObject) -> None:
    draw, axes, groups = data.draw, data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    few = st.lists(st.integers(1, 3), min_size=axes, max_size=axes)
    kernel, stride, dilation = draw(few), draw(few), draw(few)
    padding = draw(st.lists(st.integers(0, 2), min_size=axes, max_size=axes))
    x = rand(draw(st.integers(1, 2)), 2 * groups, *draw(st.lists(st.integers(7, 9), min_size=axes, max_size=axes)))
    plain = (functional.conv1d, functional.conv2d, functional.conv3d)[axes - 1]
    turned = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[axes - 1]
    same(lambda x, w: plain(x, w, None, stride, padding, dilation, groups), x, rand(2 * groups, 2, *kernel))
    same(lambda x, w: turned(x, w, None, stride, 0, 0, groups, dilation), x, rand(2 * groups, 3, *kernel))
