"""Whole experts of transformers' mixtures: found, removed, and held against a router that never chooses them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pruner import PruningPlan, masked, prune_, verify
from tracker import discover
from tracker.errors import PlanError
from tracker.neuron_map import NeuronGroup

transformers = pytest.importorskip("transformers")

EXPERTS, CHOSEN, WIDTH = 6, 2, 16
SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": CHOSEN,
}


def mixtral() -> nn.Module:
    config = transformers.MixtralConfig(**SIZES, intermediate_size=WIDTH, num_local_experts=EXPERTS)
    return transformers.MixtralForCausalLM(config)


def qwen2_moe() -> nn.Module:
    config = transformers.Qwen2MoeConfig(
        **SIZES,
        moe_intermediate_size=WIDTH,
        shared_expert_intermediate_size=8,
        num_experts=EXPERTS,
        norm_topk_prob=False,
    )
    return transformers.Qwen2MoeForCausalLM(config)


def olmoe() -> nn.Module:
    config = transformers.OlmoeConfig(**SIZES, intermediate_size=WIDTH, num_experts=EXPERTS, pad_token_id=None)
    return transformers.OlmoeForCausalLM(config)


def gpt_oss() -> nn.Module:
    config = transformers.GptOssConfig(**SIZES, head_dim=8, intermediate_size=WIDTH, num_local_experts=EXPERTS)
    return transformers.GptOssForCausalLM(config)


ROUTER = {mixtral: "gate", qwen2_moe: "gate", olmoe: "gate", gpt_oss: "router"}
Made = Callable[[], nn.Module]


@pytest.fixture(params=list(ROUTER), ids=lambda make: make.__name__)
def make(request: pytest.FixtureRequest) -> Made:
    made: Made = request.param
    return made


@pytest.fixture
def model(make: Made) -> nn.Module:
    torch.manual_seed(0)
    made = make().eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    return made


TOKENS = torch.arange(24).reshape(2, 12) * 7 % 32


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


def routers(make: Made) -> list[str]:
    return [f"model.layers.{layer}.mlp.{ROUTER[make]}" for layer in range(2)]


def test_experts_are_neurons(make: Made, model: nn.Module) -> None:
    neurons = discover(model, (TOKENS,))
    for router in routers(make):
        group: NeuronGroup = neurons[router]
        assert (group.size, group.kind, group.exact, group.minimum) == (EXPERTS, "expert", False, CHOSEN)
        stacks = {name for name, tensor in model.named_parameters() if name.startswith(router.rpartition(".")[0])}
        stacks = {name for name in stacks if "shared" not in name}
        assert {site.parameter for site in group.members} == stacks
        assert {site.dim for site in group.members} == {0}
    inner = neurons["model.layers.0.mlp.experts"]
    assert inner.exact
    assert (inner.size, inner.kind) == (WIDTH, "mlp")


def test_a_model_without_experts_is_one_that_never_chooses_them(make: Made, model: nn.Module) -> None:
    neurons = discover(model, (TOKENS,))
    first, second = routers(make)
    plan = PruningPlan({first: [0, 3, 4], second: [5], "model.layers.0.mlp.experts": list(range(8))})
    whole = logits(model)
    with masked(model, plan, neurons):
        expected = logits(model)
    assert (whole - expected).abs().max() > 1e-3
    dense = copy.deepcopy(model)
    result = prune_(model, plan, neurons)
    assert result.proof is not None
    assert result.proof.holds
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    report = verify(model, dense, plan, neurons=neurons)
    assert report.summary["overall_success"], report.failures
    assert not report.not_checked
    assert report.measured is not None
    assert set(report.measured.layers) == {first, second}


def test_zeroing_a_score_is_not_the_removal() -> None:
    torch.manual_seed(0)
    model = mixtral().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    neurons = discover(model, (TOKENS,))
    router = "model.layers.0.mlp.gate"
    zeroed = copy.deepcopy(model)
    zeroed.get_parameter(f"{router}.weight").data[[0, 3]] = 0
    prune_(model, PruningPlan({router: [0, 3]}), neurons)
    assert (logits(model) - logits(zeroed)).abs().max() > 1e-3


def test_a_router_keeps_as_many_as_it_chooses(make: Made, model: nn.Module) -> None:
    neurons = discover(model, (TOKENS,))
    first, _ = routers(make)
    with pytest.raises(PlanError, match="2"):
        prune_(model, PruningPlan({first: [0, 1, 2, 3, 4]}), neurons)
    prune_(model, PruningPlan({first: [0, 1, 2, 3]}), neurons)
    assert torch.isfinite(logits(model)).all()


def test_experts_looked_up_one_by_one_follow_too(make: Made) -> None:
    torch.manual_seed(0)
    model = make().eval().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    model.config._experts_implementation = "batched_mm"
    neurons = discover(model, (TOKENS,))
    plan = PruningPlan({router: [1, 4] for router in routers(make)})
    with masked(model, plan, neurons):
        expected = logits(model)
    prune_(model, plan, neurons, proof=False)
    # Routers and norms of some of these models compute in float32 whatever the weights are.
    torch.testing.assert_close(logits(model), expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
