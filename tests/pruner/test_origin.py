"""Where a model comes from, with stand-ins for timm and torchvision and the real transformers."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import pruner
from pruner.checkpoint import load_pruned, save_pruned
from pruner.manifest import read_manifest
from pruner.origin import Origin
from pruner.plan import PruningPlan
from tracker.discover import discover
from tracker.errors import CheckpointError, MissingExtraError

CALLS: list[dict[str, Any]] = []


class Net(nn.Module):
    def __init__(self, num_classes: int = 10, in_chans: int = 3, global_pool: str = "avg") -> None:
        super().__init__()
        self.num_classes, self.global_pool = num_classes, global_pool
        self.conv1, self.conv2 = nn.Conv2d(in_chans, 8, 3), nn.Conv2d(8, 6, 3)
        self.head = nn.Linear(6, num_classes)
        self.pretrained_cfg = {"architecture": "net"}

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(torch.relu(self.conv1(x))).relu()
        out: Tensor = self.head(x.amax((2, 3)) if self.global_pool == "max" else x.mean((2, 3)))
        return out


def create_model(name: str, pretrained: bool = True, **options: Any) -> nn.Module:
    CALLS.append({"name": name, "pretrained": pretrained, **options})
    if name != "net":
        raise RuntimeError(f"Unknown model ({name})")
    return Net(**options)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    def make(name: str, **contents: Any) -> ModuleType:
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    CALLS.clear()
    return make


def pruned(model: nn.Module, channels: int = 3) -> nn.Module:
    discover(model, torch.randn(2, channels, 9, 9))
    pruner.prune_(model, PruningPlan({"conv1": [0, 3, 5]}))
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [{}, {"num_classes": 7}, {"num_classes": 7, "in_chans": 1}, {"global_pool": "max"}],
)
def test_a_timm_model_reloads_from_the_directory_alone(fake, options, tmp_path, monkeypatch):
    fake("timm", create_model=create_model)
    monkeypatch.setattr(Net, "__module__", "timm.models.net")
    channels = options.get("in_chans", 3)
    model = pruned(create_model("net", **options), channels)
    save_pruned(model, tmp_path)
    origin = read_manifest(tmp_path).origin
    assert origin is not None
    assert (origin.library, origin.name, origin.options) == ("timm", "net", options)
    CALLS.clear()
    loaded = load_pruned(tmp_path)
    x = torch.randn(2, channels, 9, 9)
    assert torch.equal(loaded(x), model(x))
    assert all(call["pretrained"] is False for call in CALLS)


def test_a_timm_model_that_was_changed_by_hand_has_no_origin(fake, tmp_path, monkeypatch):
    fake("timm", create_model=create_model)
    monkeypatch.setattr(Net, "__module__", "timm.models.net")
    model = create_model("net")
    model.head = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    save_pruned(pruned(model), tmp_path / "head")
    assert read_manifest(tmp_path / "head").origin is None
    model = create_model("net")
    model.global_pool = "max"
    model.pretrained_cfg = {}
    save_pruned(pruned(model), tmp_path / "function")
    with pytest.raises(CheckpointError, match=r"does not say how to build it.*model="):
        load_pruned(tmp_path / "function")


def test_a_torchvision_model_is_found_by_its_class_and_shapes(fake, tmp_path, monkeypatch):
    built: list[dict[str, Any]] = []

    class Small(Net):
        pass

    class Large(Net):
        def __init__(self, num_classes: int = 10) -> None:
            super().__init__(num_classes)
            self.conv2 = nn.Conv2d(8, 6, 5)

    def small(*, weights: Any = "DEFAULT", weights_backbone: Any = "DEFAULT", num_classes: int = 10) -> nn.Module:
        built.append({"weights": weights, "weights_backbone": weights_backbone})
        return Small(num_classes)

    def large(*, weights: Any = "DEFAULT", num_classes: int = 10) -> nn.Module:
        built.append({"weights": weights})
        return Large(num_classes)

    builders = {"other": small, "large": large, "small": small}
    for one in (small, large, Small, Large):
        monkeypatch.setattr(one, "__module__", "torchvision.models.net")
    fake("torchvision")
    fake(
        "torchvision.models",
        list_models=lambda: [*builders],
        get_model_builder=builders.__getitem__,
        get_model=lambda name, **options: builders[name](**options),
    )
    model = pruned(Large(5))
    save_pruned(model, tmp_path)
    origin = read_manifest(tmp_path).origin
    assert origin is not None
    assert (origin.library, origin.name, origin.options) == ("torchvision", "large", {"num_classes": 5})
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(load_pruned(tmp_path)(x), model(x))
    save_pruned(pruned(Small()), tmp_path / "named", base="torchvision.models:small")
    origin = read_manifest(tmp_path / "named").origin
    assert origin is not None
    assert (origin.name, origin.options) == ("small", {})
    assert all(value is None for call in built for value in call.values()), "no weights are asked for"


@pytest.mark.parametrize(
    ("library", "name", "options"),
    [
        ("timm", "hf-hub:evil/model", {}),
        ("timm", "local-dir:evil", {}),
        ("timm", "net", {"checkpoint_path": "evil.pth"}),
        ("timm", "net", {"pretrained": True}),
        ("timm", "net", {"pretrained_cfg": {"file": "evil.pth"}}),
        ("torchvision", "net", {"weights": "DEFAULT"}),
        ("torchvision", "net", {"weights_backbone": "DEFAULT"}),
        ("transformers", "os.system", {}),
        ("transformers", "AutoModel", {}),
        ("transformers", "pipeline", {}),
        ("transformers", "__name__", {}),
    ],
)
def test_an_origin_from_a_stranger_builds_architectures_and_nothing_else(fake, library, name, options):
    pytest.importorskip("transformers")
    fake("timm", create_model=create_model)
    fake("torchvision")
    with pytest.raises(CheckpointError):
        Origin(library=library, name=name, options=options).build()
    assert CALLS == []


def test_only_three_libraries_are_known():
    with pytest.raises(ValidationError):
        Origin(library="os", name="abort", options={})  # type: ignore[arg-type]


def test_a_missing_library_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"neuronscope\[timm\]"):
        Origin(library="timm", name="net", options={}).build()


def test_what_a_library_cannot_build_is_named(fake):
    fake("timm", create_model=create_model, __version__="1.2")
    with pytest.raises(CheckpointError, match=r"timm 1\.2 does not build gone: Unknown model"):
        Origin(library="timm", name="gone", options={}).build()


def test_a_configuration_can_ask_for_no_code_kernels_or_weights():
    transformers = pytest.importorskip("transformers")
    from pruner.origin import config_object

    options = {
        "hidden_size": 8,
        "num_attention_heads": 2,
        "attn_implementation": "evil/kernels",
        "_attn_implementation_internal": "evil/kernels",
        "auto_map": {"AutoModel": "evil--modeling.Evil"},
        "use_pretrained_backbone": True,
        "nested": {"use_pretrained_backbone": True, "experts_implementation": "evil/kernels"},
    }
    config = config_object(transformers.BertModel, options)
    assert config.hidden_size == 8
    assert config._attn_implementation is None
    assert not hasattr(config, "auto_map")
    assert config.use_pretrained_backbone is False
    assert config.nested == {"use_pretrained_backbone": False}


def test_infinity_in_a_configuration_survives_json():
    transformers = pytest.importorskip("transformers")
    from pruner.origin import config_object, configuration

    config = transformers.BertConfig(hidden_size=8, num_attention_heads=2, limits=[0.0, float("inf")])
    with torch.device("meta"):
        model = transformers.BertModel(config)
    options = configuration(model)
    assert options["limits"] == [0.0, {"__float__": "Infinity"}]
    assert config_object(transformers.BertModel, options).limits == [0.0, float("inf")]
