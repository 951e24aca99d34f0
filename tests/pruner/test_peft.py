"""Adapters of peft: a base layer and what is added to it are cut together, or the model is refused."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pruner.small_net import GONE, KEPT, Net, X
from torch import nn
from torch.nn.functional import linear

from pruner.apply import check, prune_
from pruner.checkpoint import load_pruned, save_pruned
from pruner.plan import PruningPlan
from tracker.discover import discover
from tracker.errors import DiscoveryError

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # peft's way to ask transformers

IDS = torch.arange(16).reshape(2, 8)


def adapted(config: Any, model: Callable[[], nn.Module] = Net) -> nn.Module:
    """A model with adapters, all weights random: peft starts with zeros, behind which mistakes could hide."""
    torch.manual_seed(0)
    made = peft.get_peft_model(model(), config).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    return made


def lora(*targets: str, **options: Any) -> Any:
    return peft.LoraConfig(r=4, lora_alpha=6, target_modules=list(targets), **options)


def llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    )


def half(neurons: Any) -> PruningPlan:
    return PruningPlan({group.name: range(0, group.size - 1, 2) for group in neurons if group.exact})


def test_base_and_both_halves_of_the_adapter_are_cut() -> None:
    model = adapted(lora("fc1", "fc2"))
    net = model.base_model.model
    first, second = net.fc1, net.fc2
    effective = [(layer.base_layer.weight + layer.get_delta_weight("default")).detach() for layer in (first, second)]
    biases = [layer.base_layer.bias.detach() for layer in (first, second)]
    wanted = linear(torch.relu(linear(X, effective[0][KEPT], biases[0][KEPT])), effective[1][:, KEPT], biases[1])
    neurons = discover(model, X)
    result = prune_(model, PruningPlan({"base_model.model.fc1.base_layer": GONE}), neurons)
    assert result.proof
    torch.testing.assert_close(model(X).detach(), wanted)
    assert first.base_layer.weight.shape == (5, 5)
    assert first.lora_A.default.weight.shape == (4, 5)
    assert first.lora_B.default.weight.shape == (5, 4)
    assert second.base_layer.weight.shape == (3, 5)
    assert second.lora_A.default.weight.shape == (4, 5)
    assert second.lora_B.default.weight.shape == (3, 4)
    assert first.lora_B.default.out_features == second.lora_A.default.in_features == 5
    model(X).sum().backward()
    assert first.lora_B.default.weight.grad.shape == (5, 4)
    assert first.base_layer.weight.grad is None
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(X).detach(), wanted)


def test_the_rank_of_an_adapter_is_a_layer_of_its_own() -> None:
    model = adapted(lora("fc1"))
    layer = model.base_model.model.fc1
    a, b = layer.lora_A.default.weight.detach(), layer.lora_B.default.weight.detach()
    weight = layer.base_layer.weight.detach() + 1.5 * b[:, [0, 3]] @ a[[0, 3]]
    last = model.base_model.model.fc2
    wanted = last(torch.relu(linear(X, weight, layer.base_layer.bias))).detach()
    neurons = discover(model, X)
    assert neurons["base_model.model.fc1.lora_A.default"].exact
    assert prune_(model, PruningPlan({"base_model.model.fc1.lora_A.default": [1, 2]}), neurons).proof
    torch.testing.assert_close(model(X).detach(), wanted)


LLAMAS = {
    "everywhere": lora("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "embedding": lora("embed_tokens", "up_proj"),
    "stabilised": lora("q_proj", "down_proj", use_rslora=True),
    "whole_layer": lora("up_proj", modules_to_save=["lm_head"]),
    "low_rank_products": peft.LoHaConfig(r=4, target_modules=["up_proj", "down_proj"]),
    "kronecker": peft.LoKrConfig(r=4, target_modules=["up_proj", "down_proj"]),
    "budgeted": peft.AdaLoraConfig(init_r=4, total_step=10, target_modules=["up_proj", "down_proj"]),
    "vectors": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "shared": peft.VeraConfig(r=4, target_modules=["up_proj", "gate_proj"]),
}


@pytest.mark.parametrize("config", LLAMAS.values(), ids=LLAMAS)
def test_adapters_of_a_language_model(config: Any) -> None:
    model = adapted(config, llama)
    neurons = discover(model)
    exact = [group for group in neurons if group.exact]
    names = {group.name.removesuffix(".base_layer").rpartition("layers.")[2] for group in exact}
    assert {"0.self_attn.q_proj", "1.self_attn.q_proj", "0.mlp.gate_proj"} <= names  # "shared" ties the other
    if config is not LLAMAS["shared"]:  # whose one low-rank product ties both blocks
        assert {group.kind for group in exact} <= {"attention", "mlp", "other"}, "an adapter makes no residual stream"
    before = model(IDS).logits.detach()
    result = prune_(model, half(neurons), neurons)
    assert result.proof, result.unproven
    after = model(IDS).logits.detach()
    assert (after - before).abs().max() > 1e-6
    torch.testing.assert_close(copy.deepcopy(model).merge_and_unload()(IDS).logits.detach(), after)


def test_weights_normalised_as_a_whole_keep_their_inputs() -> None:
    model = adapted(lora("fc1", "fc2", use_dora=True))
    neurons = discover(model, X)
    hidden = {"base_model.model.fc1.base_layer", "base_model.model.fc1.lora_B.default"}
    assert hidden & ({frozen.name for frozen in neurons.frozen} | {group.name for group in neurons if not group.exact})
    assert check(model, half(neurons), neurons).proof


def test_merged_and_unloaded_is_a_plain_model() -> None:
    model = adapted(lora("fc1", "fc2")).merge_and_unload()
    assert prune_(model, PruningPlan({"fc1": GONE}), discover(model, X)).proof
    assert model.fc1.weight.shape == (5, 5)


def test_a_merged_adapter_is_refused_until_it_is_unmerged() -> None:
    model = adapted(lora("fc1", "fc2"))
    neurons = discover(model, X)
    model.merge_adapter()
    for act in (lambda: discover(model, X), lambda: prune_(model, half(neurons), neurons)):
        with pytest.raises(DiscoveryError, match="'default' is merged"):
            act()
    model.unmerge_adapter()
    assert prune_(model, half(neurons), neurons).proof


def test_a_disabled_adapter_is_refused() -> None:
    model = adapted(lora("fc1", "fc2"))
    with model.disable_adapter(), pytest.raises(DiscoveryError, match="'default' is not in use"):
        discover(model, X)
    assert discover(model, X)


def test_all_of_several_adapters_must_be_in_use() -> None:
    model = adapted(lora("fc1", "fc2"))
    model.add_adapter("second", lora("fc1", lora_dropout=0.1))
    model.double()
    with pytest.raises(DiscoveryError, match="'second' is not in use"):
        discover(model, X)
    model.base_model.set_adapter(["default", "second"])
    nn.init.normal_(model.base_model.model.fc1.lora_B.second.weight)
    neurons = discover(model, X)
    assert prune_(model, PruningPlan({"base_model.model.fc1.base_layer": GONE}), neurons).proof
    assert model.base_model.model.fc1.lora_B.second.weight.shape == (5, 4)
    model.delete_adapter("second")
    assert discover(model, X)


def test_a_checkpoint_of_ours_holds_adapters_of_any_width(tmp_path: Path) -> None:
    config = lora("fc1", "fc2")
    model = adapted(config)
    neurons = discover(model, X)
    prune_(model, half(neurons), neurons)
    save_pruned(model, tmp_path)
    loaded = load_pruned(tmp_path, lambda: peft.get_peft_model(Net(), config))
    assert torch.equal(loaded(X), model(X))
    assert loaded.base_model.model.fc1.lora_A.default.weight.shape == (2, 5)


def test_peft_loads_what_it_saved_where_the_rank_is_whole(tmp_path: Path) -> None:
    model = adapted(lora("fc1", "fc2"))
    neurons = discover(model, X)
    prune_(model, PruningPlan({"base_model.model.fc1.base_layer": GONE}), neurons)
    answer = model(X).detach()
    model.save_pretrained(tmp_path)
    base = copy.deepcopy(model).unload()
    again = peft.PeftModel.from_pretrained(base, tmp_path).double().eval()
    torch.testing.assert_close(again(X).detach(), answer)
