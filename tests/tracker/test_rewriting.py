"""Code that computes a size from a width that stays is given the right size, and remains ordinary Python."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.tracker.equivalence import check_exact
from torch import Tensor, nn

from pruner import PruningPlan, check
from tracker import NeuronMap, discover
from tracker.code_sites import Site
from tracker.errors import PlanError
from tracker.neuron_map import Integer
from tracker.rewriting import CODE_SIZES, author_class, resize
from tracker.sizes import read_path, write_path


class Attention(nn.Module):
    """Attention as much code writes it: the width of a head and of all heads comes from the width of the stream."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1)) * (c // self.heads) ** -0.5
        joined = (weights.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c)
        result: Tensor = self.out(joined)
        return result


def scaled(q: Tensor, k: Tensor, width: int, heads: int) -> Tensor:
    return q @ k.transpose(-2, -1) * (width // heads) ** -0.5


def attend(x: Tensor, qkv: nn.Linear, heads: int) -> Tensor:
    b, n, c = x.shape
    q, k, v = qkv(x).reshape(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
    return (scaled(q, k, c, heads).softmax(-1) @ v).transpose(1, 2).reshape(b, n, c)


class Outside(Attention):
    """The same in functions outside of the class."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(attend(x, self.qkv, self.heads))
        return result


class InMethods(Attention):
    """The same in methods, one of them the parent's, with a comprehension."""

    def forward(self, x: Tensor) -> Tensor:
        return self.attended(x, *x.shape)

    def attended(self, x: Tensor, b: int, n: int, c: int) -> Tensor:
        parts = self.qkv(x).chunk(3, dim=-1)
        q, k, v = [part.reshape(b, n, self.heads, c // self.heads).transpose(1, 2) for part in parts]
        weights = q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5
        return self.joined(weights.softmax(-1) @ v, b, n, c)

    def joined(self, x: Tensor, b: int, n: int, c: int) -> Tensor:
        result: Tensor = self.out(x.transpose(1, 2).reshape(b, n, c))
        return result


def logged(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return wrapper


class Decorated(Attention):
    """The same beneath decorators, with what the compiler keeps in closures."""

    @torch.no_grad()
    @logged
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = super().forward(x.flip(0))
        b, n, c = result.shape
        q = self.qkv(x)[..., : 3 * c].reshape(b, n, 3, c)
        return result + q.mean(dim=2)


KINDS = [Attention, Outside, InMethods]


def block(kind: type[Attention]) -> nn.Module:
    """A stream in front and behind, so that nothing but the code ties the heads to its width."""
    return nn.Sequential(nn.Linear(5, 12), kind(), nn.Linear(12, 4))


def found_in(model: nn.Module) -> tuple[NeuronMap, list[Integer]]:
    found = discover(model, torch.randn(2, 4, 5))
    return found, [integer for integer in found.integers if integer.path[0] == CODE_SIZES]


def shrunk(model: nn.Module) -> nn.Module:
    """The model's code as it would be with one head less."""
    found, integers = found_in(model)
    for integer in found.integers:
        module = model.get_submodule(integer.module)
        falls = integer.follows.get("1.qkv", 0)
        if "1.qkv" in integer.follows:
            write_path(module, integer.path, read_path(module, integer.path) - falls)
    for (name, dim), positions in found["1.qkv"].slices([1]).items():
        parameter = model.get_parameter(name)
        kept = [i for i in range(parameter.shape[dim]) if i not in positions.tolist()]
        parameter.data = parameter.data.index_select(dim, torch.tensor(kept))
    assert integers
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_heads_and_the_stream_can_go(kind: type[Attention]) -> None:
    found = check_exact(block(kind), torch.randn(2, 4, 5))
    assert {(group.kind, group.size) for group in found} >= {("attention", 3)}
    assert any(group.size == 12 for group in found)
    assert not any("which does not follow" in entry.reason for entry in found.frozen)


def test_decorators_and_super_stay() -> None:
    check_exact(block(Decorated), torch.randn(2, 4, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_the_rewritten_module_is_copied_and_pickled(kind: type[Attention]) -> None:
    model = shrunk(block(kind)).eval()
    x = torch.randn(2, 4, 5)
    expected = model(x)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 (our own)
        torch.testing.assert_close(again(x), expected)
        assert type(again[1]) is type(model[1])
        assert isinstance(again[1], kind)
        assert author_class(type(again[1])) is kind


def test_only_the_module_is_changed_and_looks_the_same() -> None:
    model, other = shrunk(block(Attention)), block(Attention)
    assert type(other[1]) is Attention
    assert type(model[1]) is not Attention
    assert repr(type(model[1])) == repr(Attention)
    assert str(model[1]).startswith("Attention(")
    assert inspect.getsourcefile(type(model[1]).forward) == inspect.getsourcefile(Attention)
    other(torch.randn(2, 4, 5))


def test_a_traceback_shows_the_author_s_line() -> None:
    model = shrunk(block(Attention))
    with pytest.raises(AttributeError) as caught:
        model[1](None)
    last = caught.traceback[-1]
    assert "b, n, c = x.shape" in str(last.statement)


def test_a_model_is_discovered_again_after_it_was_rewritten() -> None:
    model = shrunk(block(Outside))
    found = check_exact(model, torch.randn(2, 4, 5))
    assert found["1.qkv"].size == 2
    assert type(model[1]).__mro__[1] is Outside


def test_the_compiler_sees_ordinary_code() -> None:
    model = shrunk(block(Outside)).eval()
    x = torch.randn(2, 4, 5)
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), model(x))


def test_a_site_is_read_back() -> None:
    _, integers = found_in(block(Outside))
    for integer in integers:
        text = str(integer.path[1])
        assert str(Site.parse(text)) == text
    assert any(">" in str(integer.path[1]) for integer in integers)


@pytest.mark.parametrize("text", ["forward", "forward@1.2-3.4=5", "forward@1.2-3=5#01234567", "f@1.2-3.4=5#0123456g"])
def test_what_names_no_site_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="names no place"):
        resize(Attention(), text, 4)


def test_other_code_than_that_which_was_pruned_is_refused() -> None:
    _, integers = found_in(block(Attention))
    text = str(integers[0].path[1])
    module = Attention()
    with pytest.raises(PlanError, match="not the one that was pruned"):
        resize(module, text[:-8] + "00000000", 4)
    with pytest.raises(PlanError, match="not to be found as source"):
        resize(nn.ReLU(), text.replace("forward@", "missing@"), 4)
    assert type(module) is Attention
    assert CODE_SIZES not in vars(module)


def test_code_without_source_is_refused_with_the_old_reason() -> None:
    scope: dict[str, Any] = {"nn": nn, "Attention": Attention}
    exec(
        "class Hidden(Attention):\n"
        "    def forward(self, x):\n"
        "        b, n, c = x.shape\n"
        "        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)\n"
        "        return self.out((q.softmax(-1) * k * v).transpose(1, 2).reshape(b, n, c))\n",
        scope,
    )
    found = check_exact(block(scope["Hidden"]), torch.randn(2, 4, 5))
    assert "1.qkv" not in found
    assert any("which does not follow" in entry.reason for entry in found.frozen)


def test_one_place_in_a_loop_cannot_have_two_sizes() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Linear(5, 12), nn.Linear(5, 12)
            self.outs = nn.ModuleList([nn.Linear(12, 3), nn.Linear(12, 3)])
            self.stream = nn.Linear(5, 12)
            self.read = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            c = self.stream(x).shape[-1]
            result: Tensor = self.read(self.stream(x))
            for made, out in zip((self.wide(x), self.narrow(x)), self.outs, strict=True):
                result = result + out(made.reshape(2, c))
            return result

    found = check_exact(Loop(), torch.randn(2, 5))
    assert any("which does not follow" in entry.reason for entry in found.frozen)


def test_functions_of_pytorch_that_are_python_are_no_obstacle() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.out = nn.Linear(12, 24), nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            c = x.shape[-1]
            a, b = torch.split(self.both(x), (c, c), -1)
            result: Tensor = x + self.out(a * b)
            return result

    found = check_exact(nn.Sequential(nn.Linear(5, 12), Split(), nn.Linear(12, 4)), torch.randn(2, 5))
    assert sorted(group.size for group in found) == [12, 12]


class Shaped(nn.Module):
    """Takes the size from another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        result: Tensor = self.out(self.inner(x).reshape(-1, like.shape[-1]))
        return result


def test_a_size_follows_every_width_that_it_was_ever_computed_from() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p, self.q, self.shaped = nn.Linear(5, 12), nn.Linear(5, 12), Shaped()
            self.ends = nn.ModuleList([nn.Linear(12, 3), nn.Linear(12, 3)])

        def forward(self, x: Tensor) -> Tensor:
            p, q = self.p(x), self.q(x)
            ends: Tensor = self.ends[0](p) + self.ends[1](q)
            return ends + self.shaped(x, p) + self.shaped(x, q)

    found = check_exact(Twice(), torch.randn(2, 5))
    (integer,) = [integer for integer in found.integers if integer.path[0] == CODE_SIZES]
    assert integer.follows == {"p": 0, "q": 0, "shaped.inner": 1}


def test_one_place_with_two_numbers_is_not_given_one_of_them() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(5, 12)
            self.outs = nn.ModuleList([nn.Linear(8, 3), nn.Linear(12, 3)])

        def forward(self, x: Tensor) -> Tensor:
            result = x.new_zeros(())
            for made, out in zip((self.a(x), self.b(x)), self.outs, strict=True):
                result = result + out(made * made.shape[-1] ** -0.5)
            return result

    found = check_exact(Loop(), torch.randn(2, 5))
    assert not len(found)
    assert all("used as a number" in entry.reason for entry in found.frozen if "output" not in entry.reason)


def test_a_removal_that_is_only_tried_leaves_the_class() -> None:
    model = block(Attention).eval()
    found = discover(model, torch.randn(2, 4, 5))
    check(model, PruningPlan({"1.qkv": [0]}), found)
    assert type(model[1]) is Attention
    assert CODE_SIZES not in vars(model[1])
