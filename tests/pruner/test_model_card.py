import copy

import torch
from tests.pruner.small_models import case

from pruner.apply import prune_
from pruner.checkpoint import save_pruned
from pruner.manifest import Manifest, read_manifest
from pruner.model_card import may_be_written, model_card
from pruner.plan import PruningPlan
from tracker.discover import discover


def manifest_of(tmp_path, **extra) -> Manifest:
    dense, x = case("transformer")
    model = copy.deepcopy(dense)
    discover(model, x)
    prune_(model, PruningPlan({"first.up": [1, 3], "attention.qkv": [0]}))
    save_pruned(model, tmp_path, **extra)
    return read_manifest(tmp_path)


def test_the_card_tells_what_was_removed_from_which_model_and_what_proves_it(tmp_path):
    manifest = manifest_of(tmp_path, base="someone/model")
    card = model_card(manifest, "its layers differ")
    assert card.startswith("---\nbase_model: someone/model\ntags:\n- pruned\n- neuronscope\n---\n")
    assert "| `first.up` | 1 | 8 | 6 |" in card
    record = manifest.history[0]
    assert record.proof is not None
    assert f"{record.proof.error:.1e} of the largest" in card
    assert record.parameters is not None
    assert f"Parameters: {record.parameters[0]:,} → {record.parameters[1]:,}." in card
    assert 'pruner.load_pruned("path/to/this/directory")' in card
    assert "`from_pretrained` refuses this directory: its layers differ." in card


def test_layers_of_one_kind_are_one_line(tmp_path):
    manifest = manifest_of(tmp_path)
    layer = manifest.history[0].layers["first.up"]
    history = [
        manifest.history[0].model_copy(update={"layers": {f"blocks.{n}.mlp.3x.up": layer for n in range(12)}}),
    ]
    kept = {name: list(range(6 - (name == "blocks.3.mlp.3x.up"))) for name in history[0].layers}
    card = model_card(manifest.model_copy(update={"history": history, "kept": kept}), "")
    assert "| `blocks.*.mlp.3x.up` | 12 | 8 | 5 to 6 |" in card


def test_a_plain_checkpoint_is_loaded_by_its_class(tmp_path):
    card = model_card(manifest_of(tmp_path).model_copy(update={"plain": True, "model": "LlamaForCausalLM"}), "")
    assert "library_name: transformers" in card
    assert 'LlamaForCausalLM.from_pretrained("path/to/this/directory")' in card
    assert "refuses" not in card


def test_a_base_that_is_no_name_on_the_hub_is_not_linked(tmp_path):
    for base in ("my.module:build", str(tmp_path), None):
        assert "base_model" not in model_card(manifest_of(tmp_path, base=base), "")


def test_without_a_pruning_or_a_proof_the_card_says_so(tmp_path):
    save_pruned(torch.nn.Linear(2, 2), tmp_path / "dense")
    assert "saved without having been pruned" in model_card(read_manifest(tmp_path / "dense"), "")
    manifest = manifest_of(tmp_path)
    unproven = manifest.model_copy(update={"history": [manifest.history[0].model_copy(update={"proof": None})]})
    assert "no comparison was made" in model_card(unproven, "")


def test_only_our_own_card_is_written_over(tmp_path):
    card = tmp_path / "README.md"
    assert may_be_written(card)
    card.write_text(model_card(manifest_of(tmp_path), ""))
    assert may_be_written(card)
    card.write_text("# My model\n\nMade with neuronscope.\n")
    assert not may_be_written(card)
