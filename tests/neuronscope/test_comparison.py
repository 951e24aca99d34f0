import copy

import pytest
import torch

from neuronscope import reference
from neuronscope.comparison import compare_models
from neuronscope.inputs import batches_of
from pruner import PruningPlan, prune_
from tracker import discover
from tracker.errors import DataError

pytest.importorskip("transformers")


def test_a_model_and_what_was_pruned_from_it() -> None:
    dense = reference.load("digits-vit").model
    images, labels = reference.batches("digits-vit", "held-out", count=1, batch_size=32)[0]
    neurons = discover(dense, images)
    gone = copy.deepcopy(dense)
    (name, *_) = [group.name for group in neurons if group.kind == "mlp"]
    prune_(gone, PruningPlan({name: range(10)}), discover(gone, images))
    found = compare_models({"dense": dense, "gone": gone}, lambda model: batches_of(model, None, images))
    assert found["reference"] == "dense"
    one, other = found["models"]["dense"], found["models"]["gone"]
    assert one["metrics"] is None
    assert one["parameters"] - other["parameters"] == 10 * (64 + 64 + 1)
    assert 0 < other["metrics"]["score"] < 0.1
    assert other["metrics"]["places"] == len(labels)
    layer = found["layers"]["gone"][0]
    assert [entry["of"] for entry in layer["neurons"]] == list(range(10, neurons[name].size))
    assert layer["same"] == layer["after"] == neurons[name].size - 10
    assert all(entry["correlation"] == pytest.approx(1, abs=1e-4) for entry in layer["neurons"])


def test_language_models_have_a_loss_and_too_few_places_match_nothing() -> None:
    loaded = reference.load("stdlib-gpt")
    twin = copy.deepcopy(loaded.model)
    text = "import os"
    found = compare_models({"a": loaded.model, "b": twin}, lambda model: batches_of(model, loaded.tokenizer, text))
    ids = loaded.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = float(loaded.model(ids, labels=ids).loss)
    assert found["models"]["b"]["loss"] == pytest.approx(expected, rel=1e-4)
    assert found["models"]["b"]["metrics"]["score"] == pytest.approx(0, abs=1e-6)
    assert all(layer["neurons"] is None and layer["before"] == 768 for layer in found["layers"]["b"])
    with pytest.raises(DataError, match="nothing to compare"):
        compare_models({"a": loaded.model}, lambda model: batches_of(model, loaded.tokenizer, text))
