"""What a model's code keeps between forwards survives neither a look at the model nor a pruning."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruner import PruningPlan, prune_
from tracker import NeuronMap, discover
from tracker.caches import decoding_off
from tracker.errors import DiscoveryError


@functools.lru_cache
def positions(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float32)


def cached(function: Callable[..., Any]) -> Callable[..., Any]:
    inside = functools.lru_cache(function)

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return inside(*args)

    return wrapper


@cached
def scales(count: int) -> Tensor:
    return torch.ones(count)


class Positioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    @functools.lru_cache  # noqa: B019 (as some libraries do)
    def shift(self, count: int) -> Tensor:
        return torch.full((count, 1), 0.5)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        result: Tensor = self.b(self.a(x)) + positions(count)[:, None] * scales(count)[:, None] + self.shift(count)
        return result


class Keeping(nn.Module):
    """As some attention does: what it computes of its weights, it keeps in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Tensor] = {}
        self.a, self.b, self.gate = nn.Linear(4, 8), nn.Linear(8, 2), nn.Parameter(torch.rand(8))
        self.tables = {"two": torch.full((2,), 2.0)}

    def forward(self, x: Tensor) -> Tensor:
        if self.training or "gate" not in self.kept:
            self.kept["gate"] = self.gate.sigmoid()
        result: Tensor = self.b(self.a(x).relu() * self.kept["gate"]) * self.tables["two"]
        return result


def test_functions_keep_nothing_of_a_look() -> None:
    model = Positioned()
    found = discover(model, torch.randn(3, 4))
    assert found["a"].size == 8
    for kept in (positions(3), scales(3), model.shift(3)):
        assert type(kept) is Tensor
        assert kept.isfinite().all()


def test_functions_keep_what_they_had() -> None:
    before = positions(5)
    discover(Positioned(), torch.randn(3, 4))
    assert positions(5) is before or torch.equal(positions(5), before)


@pytest.mark.parametrize("ran", [False, True])
def test_what_a_forward_kept_goes_with_the_neurons(ran: bool) -> None:
    model, x = Keeping().eval(), torch.randn(3, 4)
    with torch.no_grad():
        if ran:
            model(x)
        found = discover(model, x)
        assert found["a"].size == 8
        assert ("gate" in model.kept) is ran
        result = prune_(model, PruningPlan({"a": [0, 1, 2]}))
        assert result.proof is not None
        assert model(x).shape == (3, 2)
        assert model.kept["gate"].shape == (5,)
        assert model.tables["two"].tolist() == [2.0, 2.0]


def test_a_failed_pruning_leaves_what_was_kept() -> None:
    model, x = Keeping().eval(), torch.randn(3, 4)
    with torch.no_grad():
        model(x)
    kept = model.kept["gate"]
    found = discover(model, x)
    with pytest.raises(ValueError, match="all 8 neurons"):
        prune_(model, PruningPlan({"a": range(8)}), found)
    assert model.kept["gate"] is kept


def test_what_nobody_knows_to_be_a_cache_stays() -> None:
    found = NeuronMap.from_json(discover(Keeping(), torch.randn(3, 4)).to_json())
    model = Keeping()
    prune_(model, PruningPlan({"a": [0, 1]}), found)
    assert model.tables["two"].tolist() == [2.0, 2.0]
    assert model(torch.randn(3, 4)).shape == (3, 2)


def test_a_map_of_another_copy_does_not_leave_what_was_kept() -> None:
    found, model, x = discover(Keeping().eval(), torch.randn(3, 4)), Keeping().eval(), torch.randn(3, 4)
    with torch.no_grad():
        model(x)
        prune_(model, PruningPlan({"a": [0, 1, 2]}), found)
        assert model(x).shape == (3, 2)
        assert model.kept["gate"].shape == (5,)


def test_where_nobody_can_tell_nothing_is_cut() -> None:
    class Asking(Keeping):
        def forward(self, x: Tensor, asked: list[str] | None = None) -> Tensor:
            assert asked == ["two"]
            return super().forward(x)

    x, model = torch.randn(3, 4), Asking().eval()
    found = discover(Asking().eval(), x, {"asked": ["two"]})
    with torch.no_grad():
        model(x, ["two"])
    with pytest.raises(DiscoveryError, match=r"Asking keeps tensors in 'kept'.*discover\(model, example_inputs\)"):
        prune_(model, PruningPlan({"a": [0, 1, 2]}), found)
    assert model.a.out_features == 8
    discover(model, x, {"asked": ["two"]})
    prune_(model, PruningPlan({"a": [0, 1, 2]}), found)
    assert model(x, ["two"]).shape == (3, 2)


def test_what_a_forward_keeps_after_the_discovery_goes_too() -> None:
    model, x = Keeping().eval(), torch.randn(3, 4)
    discover(model, x)
    with torch.no_grad():
        model(x)
        prune_(model, PruningPlan({"a": [0, 1, 2]}), proof=False)
        assert model(x).shape == (3, 2)


def test_keys_and_values_are_not_kept_within_the_block() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0)
    model = nn.ModuleDict({"inner": transformers.GPT2LMHeadModel(config)}).eval()
    ids = torch.zeros(1, 4, dtype=torch.int64)
    with decoding_off(model):
        assert model["inner"](ids).past_key_values is None
    assert model["inner"](ids).past_key_values is not None
