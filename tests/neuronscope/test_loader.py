from pathlib import Path

import pytest
import torch

from neuronscope.loader import MultiModelLoader
from neuronscope.model_names import aliased
from tracker.errors import ModelNameError

pytest.importorskip("transformers")


def test_names_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURONSCOPE_MODEL_ALIASES", " gpt2 = stdlib-gpt, mine=some.module:model")
    assert aliased("gpt2") == "stdlib-gpt"
    assert aliased("mine") == "some.module:model"
    assert aliased("other") == "other"
    model, tokenizer = MultiModelLoader().load_model("gpt2")
    assert not model.training
    assert tokenizer("def f():", return_tensors="pt")["input_ids"].shape[0] == 1
    monkeypatch.setenv("NEURONSCOPE_MODEL_ALIASES", "gpt2")
    with pytest.raises(ModelNameError, match="'gpt2' without a meaning"):
        aliased("gpt2")


def test_a_directory_brings_its_tokenizer(tmp_path: Path) -> None:
    model, tokenizer = MultiModelLoader().load_model("stdlib-gpt")
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    again, reader = MultiModelLoader(cache_dir=tmp_path).load_model(str(tmp_path / "m"))
    text = "import os"
    assert reader(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert torch.equal(again.transformer.wte.weight, model.transformer.wte.weight)


def test_models_without_a_tokenizer() -> None:
    assert MultiModelLoader().load_model("digits-vit")[1] is None
    assert MultiModelLoader().load_model("neuronscope.digits:DigitsCNN")[1] is None
