"""Pruned models of transformers: the directory is a plain checkpoint, or refuses to be taken for one."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pruner.apply import prune_
from pruner.checkpoint import Saved, load_pruned, save_pruned
from pruner.equivalence import answers, batch_of
from pruner.manifest import read_manifest
from pruner.plan import PruningPlan
from tracker.discover import discover, example_call
from tracker.errors import CheckpointError, StorageError

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24, "num_hidden_layers": 2}
TEXT = {**SMALL, "vocab_size": 40, "max_position_embeddings": 32, "pad_token_id": 0}
LLAMA = {**TEXT, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {
    "n_embd": 16,
    "n_head": 4,
    "n_layer": 2,
    "vocab_size": 40,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_heads": 4, "num_layers": 2, "vocab_size": 40}
VISION = {**SMALL, "image_size": 8, "patch_size": 4}


def build(name: str, options: dict[str, Any]) -> Any:
    """A model of random weights, biases and norms, in evaluation mode."""
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


def prune(model: Any, kinds: tuple[str, ...], inputs: Any = None, *, uniform: bool = True) -> Any:
    """Take half of every exact layer of these kinds, or a different share of each."""
    groups = [group for group in discover(model, None, inputs) if group.exact and group.kind in kinds]
    assert groups
    prune_(model, PruningPlan({g.name: range(g.size // 2 - (0 if uniform else n)) for n, g in enumerate(groups)}))
    return model


def same(model: nn.Module, other: nn.Module) -> bool:
    call = example_call(model)
    assert call is not None
    batch = batch_of(call, model)
    here, there = answers(model, batch), answers(other, batch)
    return here.keys() == there.keys() and all(torch.allclose(here[name], there[name], atol=1e-6) for name in here)


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def check_plain(model: Any, folder: Path, saved: Saved) -> None:
    assert (saved.plain, saved.why_not) == (True, "")
    assert read_manifest(folder).plain
    loaded, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert same(model, loaded)
    assert same(model, load_pruned(folder))


BOTH = ("mlp", "attention")


@pytest.mark.parametrize(
    ("name", "options", "kinds", "expected"),
    [
        (
            "LlamaForCausalLM",
            LLAMA,
            BOTH,
            {"intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1},
        ),
        ("Qwen2ForCausalLM", LLAMA, BOTH, {"intermediate_size": 12, "num_key_value_heads": 1, "head_dim": 4}),
        ("GPT2LMHeadModel", GPT2, ("mlp",), {"n_inner": 32}),
        ("BertForMaskedLM", TEXT, ("mlp",), {"intermediate_size": 12}),
        ("T5ForConditionalGeneration", T5, BOTH, {"d_ff": 12, "num_heads": 2}),
        ("ViTModel", {**VISION, "add_pooling_layer": False}, ("mlp",), {"intermediate_size": 12}),
    ],
)
def test_uniform_widths_are_a_plain_checkpoint(name, options, kinds, expected, tmp_path):
    model = prune(build(name, options), kinds)
    saved = save_pruned(model, tmp_path, base="someone/model")
    check_plain(model, tmp_path, saved)
    config = config_of(tmp_path)
    assert {key: config.get(key) for key in expected} == expected
    assert config["architectures"] == [name]
    assert "transformers_weights" not in config
    assert "library_name: transformers" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "generation_config.json").exists() == model.can_generate()


def test_any_auto_class_loads_it_too(tmp_path):
    model = prune(build("LlamaForCausalLM", LLAMA), BOTH)
    save_pruned(model, tmp_path)
    assert same(model, transformers.AutoModelForCausalLM.from_pretrained(tmp_path))
    assert isinstance(transformers.AutoModel.from_pretrained(tmp_path), transformers.LlamaModel)


def test_parts_with_configurations_of_their_own(tmp_path):
    text = {**TEXT, "projection_dim": 8, "eos_token_id": 2, "bos_token_id": 1}
    vision = {**VISION, "intermediate_size": 32, "projection_dim": 8}
    model = build("CLIPModel", {"text_config": text, "vision_config": vision, "projection_dim": 8})
    inputs = {"input_ids": torch.tensor([[1, 5, 2], [1, 7, 2]]), "pixel_values": torch.randn(2, 3, 8, 8)}
    saved = save_pruned(prune(model, ("mlp",), inputs), tmp_path)
    check_plain(model, tmp_path, saved)
    config = config_of(tmp_path)
    assert config["text_config"]["intermediate_size"] == 12
    assert config["vision_config"]["intermediate_size"] == 16


def test_an_encoder_and_a_decoder_of_two_kinds(tmp_path):
    parts = [transformers.BertConfig(**TEXT), transformers.BertConfig(**TEXT | {"intermediate_size": 20})]
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    model = transformers.EncoderDecoderModel(config=config).eval()
    ids = torch.arange(10).reshape(2, 5)
    saved = save_pruned(prune(model, ("mlp",), {"input_ids": ids, "decoder_input_ids": ids}), tmp_path)
    check_plain(model, tmp_path, saved)
    config = config_of(tmp_path)
    assert (config["encoder"]["intermediate_size"], config["decoder"]["intermediate_size"]) == (12, 10)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "BertForMaskedLM"])
def test_layers_of_different_widths_refuse_with_the_line_that_loads_them(name, tmp_path):
    model = prune(build(name, LLAMA if name.startswith("Llama") else TEXT), BOTH, uniform=False)
    saved = save_pruned(model, tmp_path)
    assert not saved.plain
    assert "no configuration makes dimension" in saved.why_not
    assert same(model, load_pruned(tmp_path))
    for kind in (type(model), transformers.AutoModel):
        for options in ({}, {"ignore_mismatched_sizes": True}):
            with pytest.raises(ValueError, match=r"pruner\.load_pruned\('THIS_DIRECTORY'\)"):
                kind.from_pretrained(tmp_path, **options)
    assert saved.why_not in (tmp_path / "README.md").read_text()


def test_heads_whose_size_the_class_computes_from_their_number_refuse(tmp_path):
    model = prune(build("GPT2LMHeadModel", GPT2), ("attention",))
    assert not save_pruned(model, tmp_path).plain
    with pytest.raises(ValueError, match="load_pruned"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert same(model, load_pruned(tmp_path))


def test_a_model_that_was_never_pruned_is_plain(tmp_path):
    model = build("BertForMaskedLM", TEXT)
    discover(model)
    check_plain(model, tmp_path, save_pruned(model, tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_stay(dtype, tmp_path):
    model = build("LlamaForCausalLM", LLAMA).to(dtype)
    saved = save_pruned(prune(model, ("mlp",)), tmp_path)
    assert saved.plain, saved.why_not
    for loaded in (load_pruned(tmp_path), transformers.AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}


def test_tied_weights_are_stored_once_and_tied_again(tmp_path):
    model = prune(build("LlamaForCausalLM", {**LLAMA, "tie_word_embeddings": True}), ("mlp",))
    saved = save_pruned(model, tmp_path)
    check_plain(model, tmp_path, saved)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    for loaded in (load_pruned(tmp_path), type(model).from_pretrained(tmp_path)):
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_weights_that_only_this_model_ties_are_no_plain_checkpoint(tmp_path):
    model = prune(build("LlamaForCausalLM", LLAMA), ("mlp",))
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    saved = save_pruned(model, tmp_path)
    assert not saved.plain
    assert "missing keys: model.layers.1.mlp.up_proj.weight" in saved.why_not
    loaded: Any = load_pruned(tmp_path)
    assert loaded.model.layers[1].mlp.up_proj.weight is loaded.model.layers[0].mlp.up_proj.weight


def test_a_class_from_elsewhere_refuses(tmp_path):
    class Mine(transformers.BertModel):  # type: ignore[misc, name-defined]
        pass

    model = Mine(transformers.BertConfig(**TEXT)).eval()
    discover(model)
    saved = save_pruned(model, tmp_path)
    assert saved.why_not == "Mine is not a class of transformers itself"
    with pytest.raises(ValueError, match="load_pruned"):
        transformers.BertModel.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="does not say how to build it"):
        load_pruned(tmp_path)
    assert same(model, load_pruned(tmp_path, copy.deepcopy(model)))


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"?": 0, "a": 1, "b": 2}, "?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words)


def test_a_tokenizer_is_saved_when_given_and_copied_when_found(tmp_path):
    model = prune(build("BertForMaskedLM", TEXT), ("mlp",))
    save_pruned(model, tmp_path / "given", tokenizer=tokenizer())
    save_pruned(model, tmp_path / "found", base=str(tmp_path / "given"))
    model.config._name_or_path = str(tmp_path / "given")
    save_pruned(model, tmp_path / "loaded from", base="no/such-model")
    for name in ("given", "found", "loaded from"):
        assert transformers.AutoTokenizer.from_pretrained(tmp_path / name)("b a")["input_ids"] == [2, 1]
        assert (tmp_path / name / "tokenizer.json").exists()
    with pytest.raises(CheckpointError, match="a str, which has no save_pretrained"):
        save_pruned(model, tmp_path / "wrong", tokenizer="bert")
    assert not (tmp_path / "wrong").exists()


def test_a_directory_is_not_shared_with_a_model_of_another_kind(tmp_path):
    save_pruned(build("BertForMaskedLM", TEXT), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(StorageError, match="Linear is no model of transformers"):
        save_pruned(nn.Linear(2, 2), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_transformers_would_say_of_trials_is_not_heard(tmp_path, capfd):
    model = prune(build("LlamaForCausalLM", LLAMA), BOTH, uniform=False)
    level, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    capfd.readouterr()
    save_pruned(model, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert transformers.logging.get_verbosity() == level
    assert transformers.logging.is_progress_bar_enabled() == bars
