"""Ways to call operators: functions that expand their operands, inference mode, other people's functions, `out=`."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.tracker.equivalence import check_exact
from tests.tracker.samples import Sample, between, reason, rows, sizes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.checkpoint import checkpoint


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function in TorchScript, which models still use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(function)  # type: ignore[no-any-return]


@compiled
def scripted(x: Tensor, parts: int) -> Tensor:
    """Views inside of compiled code, which nobody sees being written."""
    return x.view(x.shape[0], parts, -1).relu().flatten(1)


@compiled
def scripted_scale(x: Tensor) -> Tensor:
    """A number that follows the width."""
    return x * (float(x.shape[1]) ** -0.5)


class Doubled(torch.autograd.Function):
    """A function with a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: int) -> Tensor:
        return (x.view(x.shape[0], parts, -1) * 2).flatten(1)


@pytest.mark.parametrize(
    ("compute", "width"),
    [
        (lambda m, h: scripted(h, 2), 4),
        (lambda m, h: scripted(h, m.two), 4),
        (lambda m, h: Doubled.apply(h, m.two), 4),
        (lambda m, h: checkpoint(lambda x: F.relu(m.c(x)) * 2, h, use_reentrant=False), 8),
        (lambda m, h: torch.vmap(lambda x: m.c(x).relu())(h), 8),
        (lambda m, h: torch.vmap(lambda x, w: w @ x)(h, m.w.expand(4, -1, -1)), 8),
        (lambda m, h: h * m.c(h).mean(1, keepdim=True).detach().expand_as(h), 8),
        (lambda m, h: h.take_along_dim(torch.tensor([[2], [0], [1], [1]]), 0), 8),
        (lambda m, h: h + torch.full((h.shape[0], h.shape[1]), 2.0), 8),
        (lambda m, h: h + h.new_full((4, m.n), 2.0), 8),
        (lambda m, h: h + torch.ones(4, 1).to(h).tile(1, h.shape[1]), 8),
        (lambda m, h: h + torch.ones(4, 1).to(h).repeat(1, m.n), 8),
        (lambda m, h: h.clone().unsqueeze_(1).squeeze_(1).t_().t_(), 8),
        (lambda m, h: h - h.median(0).values + h.mode(0).values, 8),
        (lambda m, h: h.diff(dim=0, prepend=h[:1]), 8),
        (lambda m, h: h * torch.isin(torch.arange(4), torch.tensor([1, 3]))[:, None], 8),
    ],
    ids="scripted scripted_attribute derivative checkpoint vmap vmap_weight expand_as take_along full new_full tile "
    "repeat in_place_views median diff isin".split(),
)
def test_neurons_pass(compute: Callable[..., Tensor], width: int) -> None:
    parts = {"c": nn.Linear(8, 8), "w": nn.Parameter(torch.randn(8, 8)), "two": 2, "n": 8}
    found = check_exact(between(lambda m, h: compute(m, F.relu(h)), **parts), rows())
    assert sizes(found)["a"] == width


@pytest.mark.parametrize(
    ("compute", "why"),
    [
        (lambda m, h: scripted_scale(h), "a number follows its size"),
        (lambda m, h: torch.mul(h, 2, out=torch.empty_like(h)), "writes into a tensor that it is given"),
        (lambda m, h: torch._foreach_mul([h, h], 2.0)[0], "no rule"),
        (lambda m, h: torch.cond(torch.tensor(True), torch.relu, torch.sin, (h,)), "enters `cond`"),
        (lambda m, h: h * h.unique().numel(), "values decide"),
        (lambda m, h: h * (2 if torch.equal(h, h * 1) else 3), "values decide"),
        (lambda m, h: h + torch.rand(4, m.n).to(h), "random numbers"),
        (lambda m, h: h.bernoulli(0.5) * h, "random numbers"),
        (lambda m, h: h.t_().as_strided_((8, 4), (4, 1)).reshape(4, -1), "viewed by strides"),
    ],
    ids="scale out foreach cond unique equal rand bernoulli strides".split(),
)
def test_neurons_stay_or_are_not_exact(compute: Callable[..., Tensor], why: str) -> None:
    found = check_exact(between(compute, n=8), rows())
    assert "a" not in sizes(found)
    assert why in reason(found, "a")


def test_inference_mode_shows_functions_whole() -> None:
    class Inference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out, self.heads = nn.Linear(6, 24), nn.Linear(8, 6), 4

        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            result: Tensor = self.out(torch.einsum("btc,bsc->btc", mixed, mixed))
            return result

    assert sizes(check_exact(Inference(), torch.randn(2, 5, 6))) == {"qkv": 4}


def one_key(m: Any, x: Tensor, attend: Callable[..., Tensor]) -> Tensor:
    """Four query heads attend to one key and value head."""
    q = m.q(x).unflatten(-1, (m.heads, -1)).transpose(1, 2)
    result: Tensor = m.o(attend(q, m.k(x)[:, None], m.v(x)[:, None]).transpose(1, 2).flatten(2))
    return result


@pytest.mark.parametrize(
    "attend",
    [
        lambda q, k, v: (q @ k.mT).softmax(-1) @ v,
        lambda q, k, v: torch.matmul(torch.matmul(q, k.transpose(-1, -2)).softmax(-1), v),
        lambda q, k, v: torch.einsum("bhij,bgjd->bhid", torch.einsum("bhid,bgjd->bhij", q, k).softmax(-1), v),
        lambda q, k, v: F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q)),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.ones(5, 5, dtype=torch.bool).tril()),
    ],
    ids="operator matmul einsum fused broadcast masked".split(),
)
def test_query_heads_that_share_a_key_head(attend: Callable[..., Tensor]) -> None:
    model = Sample(
        lambda m, x: one_key(m, x, attend),
        q=nn.Linear(6, 12), k=nn.Linear(6, 3), v=nn.Linear(6, 3), o=nn.Linear(12, 6), heads=4,
    )  # fmt: skip
    assert sizes(check_exact(model, torch.randn(2, 5, 6))) == {"q": 4}


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize(("biased", "expected"), [(False, {"qkv": 4}), (True, {})])
def test_attention_with_functions_keeps_heads_that_these_tell_apart(biased: bool, expected: dict[str, int]) -> None:
    slopes = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def compute(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).unflatten(-1, (3, m.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        score = (lambda s, b, h, i, j: s * slopes[h]) if biased else None
        mixed: Any = flex_attention(q, k, v, score_mod=score)
        result: Tensor = m.out(mixed.transpose(1, 2).flatten(2))
        return result

    model = Sample(compute, qkv=nn.Linear(6, 192), out=nn.Linear(64, 6), heads=4)
    assert sizes(check_exact(model, torch.randn(1, 128, 6))) == expected


@pytest.mark.parametrize(
    "made",
    [
        lambda m, h: torch.arange(5).to(h).repeat(m.heads, 1)[..., None],
        lambda m, h: torch.arange(5).to(h).tile((m.heads, 1))[..., None],
        lambda m, h: torch.arange(5).to(h).repeat(m.heads).view(m.heads, 5, 1),
        lambda m, h: h.new(m.heads, 5, 1).zero_(),
    ],
    ids="repeat tile run new".split(),
)
def test_what_is_made_once_a_head_follows_the_heads(made: Callable[..., Tensor]) -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        heads = m.a(x).unflatten(-1, (m.heads, -1)).transpose(1, 2)
        result: Tensor = m.b((heads.softmax(-1) + made(m, heads)).transpose(1, 2).flatten(2))
        return result

    model = Sample(compute, a=nn.Linear(6, 12), b=nn.Linear(12, 3), heads=4)
    assert sizes(check_exact(model, torch.randn(2, 5, 6))) == {"a": 4}


def test_what_is_made_once_a_head_and_meets_none_keeps_nothing() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        offset = torch.arange(5).to(x).repeat(m.heads, 1).mean()
        heads = m.a(x).unflatten(-1, (m.heads, -1))
        result: Tensor = m.b((heads.softmax(-1) + 0 * offset).flatten(2))
        return result

    model = Sample(compute, a=nn.Linear(6, 12), b=nn.Linear(12, 3), heads=4)
    assert sizes(check_exact(model, torch.randn(2, 5, 6))) == {"a": 4}
