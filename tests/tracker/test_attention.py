"""Attention with any number of heads computes what `nn.MultiheadAttention` does with all of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.tracker.equivalence import check_exact
from torch import Tensor, nn

from tracker import discover
from tracker.attention import HeadwiseAttention, let_follow

OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"batch_first": True},
    {"add_bias_kv": True, "add_zero_attn": True},
    {"kdim": 6, "vdim": 10},
]
CALLS: list[dict[str, Any]] = [
    {},
    {"need_weights": False},
    {"average_attn_weights": False},
    {"attn_mask": torch.randn(5, 7)},
    {"attn_mask": torch.rand(5, 7) > 0.7, "need_weights": False},
    {"attn_mask": torch.randn(12, 5, 7)},
    {"key_padding_mask": torch.tensor([[False] * 7, [False] * 4 + [True] * 3, [True] + [False] * 6])},
    {"key_padding_mask": torch.randn(3, 7), "attn_mask": torch.randn(5, 7), "need_weights": False},
]


@pytest.mark.parametrize("call", CALLS, ids=[" ".join(call) or "plain" for call in CALLS])
@pytest.mark.parametrize("options", OPTIONS, ids=[" ".join(options) or "plain" for options in OPTIONS])
def test_it_answers_as_the_original(options: dict[str, Any], call: dict[str, Any]) -> None:
    torch.manual_seed(0)
    original = nn.MultiheadAttention(8, 4, **options).double().eval()
    for parameter in original.parameters():
        nn.init.normal_(parameter)
    query, key = torch.randn(5, 3, 8).double(), torch.randn(7, 3, options.get("kdim", 8)).double()
    value = torch.randn(7, 3, options.get("vdim", 8)).double()
    if original.batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    given = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in call.items()}
    expected = original(query, key, value, **given)
    headwise = copy.deepcopy(original)
    let_follow(headwise)
    assert type(headwise) is HeadwiseAttention
    for mine, theirs in zip(headwise(query, key, value, **given), expected, strict=True):
        assert (mine is None) == (theirs is None)
        if theirs is not None:
            torch.testing.assert_close(mine, theirs)


def test_without_a_batch() -> None:
    original = nn.MultiheadAttention(8, 4).eval()
    x = torch.randn(5, 8)
    expected, weights = original(x, x, x)
    let_follow(original)
    answer, mine = original(x, x, x)
    torch.testing.assert_close(answer, expected)
    torch.testing.assert_close(mine, weights)


def test_a_causal_hint_needs_the_mask() -> None:
    attention = nn.MultiheadAttention(8, 4)
    let_follow(attention)
    x = torch.randn(5, 2, 8)
    with pytest.raises(RuntimeError, match="Need attn_mask"):
        attention(x, x, x, is_causal=True)


def test_other_classes_stay() -> None:
    class Mine(nn.MultiheadAttention):
        pass

    mine = Mine(8, 4)
    let_follow(mine)
    assert type(mine) is Mine


def test_discovery_leaves_the_class() -> None:
    model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    found = discover(model, (torch.randn(2, 3, 8), torch.randn(2, 4, 8)))
    assert sum(group.kind == "attention" for group in found) == 3
    assert not any(isinstance(module, HeadwiseAttention) for module in model.modules())


@pytest.mark.parametrize("batch_first", [True, False])
def test_transformers_lose_heads(batch_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=batch_first)
    model = nn.Sequential(nn.Linear(5, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3))
    found = check_exact(model, torch.randn(2, 4, 5))
    assert [group.size for group in found if group.kind == "attention"] == [4, 4]


def test_weights_that_are_used_make_heads_inexact() -> None:
    class Shown(nn.Module):
        def __init__(self, shown: bool) -> None:
            super().__init__()
            self.inner, self.shown = nn.MultiheadAttention(8, 4, batch_first=True), shown

        def forward(self, x: Tensor) -> Any:
            answer, weights = self.inner(x, x, x)
            return (answer, weights) if self.shown else answer

    for shown in (False, True):
        (heads,) = discover(Shown(shown), torch.randn(2, 3, 8))
        assert heads.exact is not shown
