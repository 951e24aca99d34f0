import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from neuronscope.model_names import build_model, load_model
from pruner.apply import prune_
from pruner.checkpoint import save_pruned
from pruner.plan import PruningPlan
from tracker.discover import discover
from tracker.errors import MissingExtraError, ModelNameError
from tracker.fingerprint import content_fingerprint


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Makes a module that can be imported under the given name, with the given contents."""

    def make(name: str, **contents: Any) -> ModuleType:
        made = ModuleType(name)
        vars(made).update(contents)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return make


def test_a_callable_is_called_with_the_options(module: Callable[..., ModuleType]) -> None:
    module("my_models", build=lambda width=3: nn.Linear(width, 2))
    model = load_model("my_models:build", width=5)
    assert isinstance(model, nn.Linear)
    assert model.in_features == 5
    assert not model.training


def test_a_module_object_is_taken_as_it_is(module: Callable[..., ModuleType]) -> None:
    network = nn.Linear(3, 2)
    module("my_models", network=network)
    assert load_model("my_models:network") is network


def test_what_is_no_module_is_refused(module: Callable[..., ModuleType]) -> None:
    module("my_models", build=lambda: {"weight": 1})
    with pytest.raises(ModelNameError, match=r"'my_models:build' gave a dict, not a torch\.nn\.Module"):
        load_model("my_models:build")


@pytest.mark.parametrize(
    ("name", "library", "builder", "trained", "untrained"),
    [
        ("timm:tiny", "timm", "create_model", {"pretrained": True}, {"pretrained": False}),
        ("torchvision:tiny", "torchvision.models", "get_model", {"weights": "DEFAULT"}, {"weights": None}),
    ],
)
def test_the_zoos_give_trained_weights_to_load_and_none_to_build(
    module: Callable[..., ModuleType], name: str, library: str, builder: str, trained: Any, untrained: Any
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def create(name: str, **options: Any) -> nn.Module:
        calls.append((name, options))
        return nn.Linear(3, 2)

    module(library, **{builder: create}, get_model_builder=lambda _: create)
    load_model(name)
    build_model(name)
    assert calls == [("tiny", trained), ("tiny", untrained)]


def test_a_backbone_comes_without_weights_too(module: Callable[..., ModuleType]) -> None:
    calls: list[dict[str, Any]] = []

    def segmentation(*, weights: Any = "DEFAULT", weights_backbone: Any = "DEFAULT") -> nn.Module:
        calls.append({"weights": weights, "weights_backbone": weights_backbone})
        return nn.Linear(3, 2)

    def get_model(name: str, **options: Any) -> nn.Module:
        return segmentation(**options)

    module("torchvision.models", get_model=get_model, get_model_builder=lambda _: segmentation)
    build_model("torchvision:tiny")
    assert calls == [{"weights": None, "weights_backbone": None}]


@pytest.mark.parametrize(
    ("name", "extra"), [("timm:tiny", "timm"), ("torchvision:tiny", "vision"), ("tiny", "transformers")]
)
def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch, name: str, extra: str) -> None:
    for library in ("timm", "torchvision.models", "transformers"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"neuronscope\[{extra}\]"):
        load_model(name)


def test_an_unknown_name_in_a_zoo_is_named(module: Callable[..., ModuleType]) -> None:
    def create(name: str, **_: Any) -> nn.Module:
        raise RuntimeError(f"Unknown model ({name})")

    module("timm", create_model=create)
    with pytest.raises(ModelNameError, match=r"timm gives no model 'resnet-18'.*Unknown model \(resnet-18\)"):
        load_model("timm:resnet-18")


class Exploit:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_zoo_cannot_unpickle_code_even_if_it_asks_to(
    module: Callable[..., ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    torch.save({"weight": Exploit(tmp_path / "exploited")}, tmp_path / "weights.pth")

    def create(name: str, **_: Any) -> nn.Module:
        torch.load(tmp_path / "weights.pth", weights_only=False)
        return nn.Linear(3, 2)

    module("timm", create_model=create)
    with pytest.raises(ModelNameError, match="gives no model 'hostile': Weights only load failed"):
        load_model("timm:hostile")
    assert not (tmp_path / "exploited").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNameError, match=r"neither a pruning\.json nor a config\.json"):
        load_model(str(tmp_path))


@pytest.fixture
def bert(tmp_path: Path) -> nn.Module:
    """A tiny classifier with random weights, saved in `tmp_path / "bert"`."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, num_labels=5
    )
    model: nn.Module = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "bert")  # type: ignore[operator]
    return model


def test_a_transformers_directory_keeps_its_head_and_weights(bert: nn.Module, tmp_path: Path) -> None:
    model = load_model(str(tmp_path / "bert"))
    assert type(model) is type(bert)
    assert not model.training
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in bert.state_dict().items())


def test_building_needs_no_weights_and_takes_no_memory_on_the_meta_device(bert: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "bert" / "model.safetensors").unlink()
    with torch.device("meta"):
        model = build_model(str(tmp_path / "bert"))
    assert type(model) is type(bert)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in bert.state_dict().items()
    }
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_pruned_directory_knows_its_model_by_itself(bert: nn.Module, tmp_path: Path) -> None:
    discover(bert)
    prune_(bert, PruningPlan({"bert.encoder.layer.0.intermediate.dense": [0, 4]}))
    for base in ("someone/not-on-this-machine", "os:abort"):
        save_pruned(bert, tmp_path / "pruned", base=base)
        loaded = load_model(str(tmp_path / "pruned"))
        assert content_fingerprint(loaded) == content_fingerprint(bert)


def test_pickled_transformers_weights_are_not_read(bert: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "bert" / "model.safetensors").unlink()
    torch.save(bert.state_dict(), tmp_path / "bert" / "pytorch_model.bin")
    with pytest.raises(ModelNameError, match=r"no \*\.safetensors.*never read"):
        load_model(str(tmp_path / "bert"))


def test_remote_code_is_not_run(bert: nn.Module, tmp_path: Path) -> None:
    config = tmp_path / "bert" / "config.json"
    code = f"from pathlib import Path\nPath({str(tmp_path / 'exploited')!r}).touch()\n"
    (tmp_path / "bert" / "evil.py").write_text(code)
    auto = '"auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}, '
    config.write_text(config.read_text().replace('"model_type": "bert"', auto + '"model_type": "evil"'))
    with pytest.raises(ModelNameError, match=r"custom code.*never run.*module:callable"):
        load_model(str(tmp_path / "bert"))
    assert not (tmp_path / "exploited").exists()


def test_a_name_nobody_knows_says_what_was_tried(
    bert: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ModelNameError, match=r"no such directory, .*not module:callable.*transformers says.*Name a dir"
    ):
        load_model("no-such-model")
