"""Where a model comes from: the library, the name in it and the options that build its dense architecture again.

Nothing on a model says this for certain, so what it does say (its class, its configuration, its number of classes) is
tried: an origin has to build, on the meta device, exactly the names and shapes that the model had before it was
pruned. With it a checkpoint loads by itself.

An origin also comes back from files of strangers. It can only build architectures of three libraries, with options
that choose sizes: no code, no paths, no download.
"""

from __future__ import annotations

import inspect
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from pruner.skeleton import built_by
from tracker.errors import CheckpointError
from tracker.extras import require
from tracker.fingerprint import structure_fingerprint
from tracker.rewriting import author_class

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_EXTRAS = {"transformers": "transformers", "timm": "timm", "torchvision": "vision"}
_SIZES = {
    "timm": {"num_classes", "in_chans", "img_size", "features_only", "global_pool"},
    "torchvision": {"num_classes", "aux_logits"},
}


class Origin(BaseModel):
    """How to build a dense architecture, without its weights.

    `name` is a class of transformers and `options` its configuration, or `name` is a model of timm or torchvision and
    `options` are keyword arguments.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    library: Literal["transformers", "timm", "torchvision"]
    name: Annotated[str, Field(max_length=256)]
    options: dict[str, Any]

    def build(self) -> nn.Module:
        """The dense model, on the meta device where it can be built there.

        Raises:
            MissingExtraError: the library is not installed.
            CheckpointError: there is no such model in it, or the options are none that choose sizes.
        """
        library = require(self.library, _EXTRAS[self.library])
        if not _NAME.fullmatch(self.name) or not _SIZES.get(self.library, {*self.options}).issuperset(self.options):
            raise CheckpointError(
                f"The checkpoint was made from {self.name[:100]!r} of {self.library} with the options "
                f"{sorted(self.options)}, which is not a plain choice of sizes.",
                hint="If you trust it, build the dense model yourself: load_pruned(directory, model=...).",
            )
        build = _BUILDERS[self.library]
        try:
            return built_by(lambda: build(library, self.name, self.options))
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"{self.library} {getattr(library, '__version__', '')} does not build {self.name}: "
                f"{next(iter(str(error).splitlines()), type(error).__name__)[:200]}.",
                hint="Use the version the model was pruned with, or pass the dense model: "
                "load_pruned(directory, model=...).",
            ) from error


def origins(model: nn.Module, base: str | None, dense: str) -> Iterator[tuple[Origin, nn.Module]]:
    """Origins that `model` may have, each with what it builds: the class of `model`, of the structure `dense`.

    `base` may name it ("timm:NAME", "torchvision:NAME", "torchvision.models:NAME"); by default its class tells. What a
    model computes is more than its structure (which pooling? which activation?), so the caller has to compare.
    """
    for candidate in _candidates(model, base):
        try:
            built = candidate.build()
        except (CheckpointError, ImportError):
            continue
        if type(built).__qualname__ == type(model).__qualname__ and structure_fingerprint(built) == dense:
            yield candidate, built


def transformers_class(model: nn.Module) -> Any:
    """The class of `model` if it is one of transformers itself, else None."""
    kind = author_class(type(model))
    if not kind.__module__.startswith("transformers."):
        return None
    return kind if getattr(import_module("transformers"), kind.__name__, None) is kind else None


def configuration(model: Any) -> dict[str, Any]:
    """A transformers model's configuration as JSON-ready data, without what names code or files."""
    text = model.config.to_json_string(use_diff=False)
    options: dict[str, Any] = _without_code(json.loads(text, parse_constant=lambda word: {"__float__": word}))
    return options


def config_object(kind: Any, options: Mapping[str, Any]) -> Any:
    """The configuration of a class of transformers, from what `configuration` gave."""
    return kind.config_class.from_dict(_with_floats(_without_code(dict(options))))


def _candidates(model: nn.Module, base: str | None) -> Iterator[Origin]:
    package = type(model).__module__.partition(".")[0]
    library, _, name = (base or "").partition(":")
    if library in ("timm", "torchvision", "torchvision.models"):
        package = library.partition(".")[0]
    else:
        name = ""
    if package == "transformers" and transformers_class(model) is not None:
        yield Origin(library="transformers", name=type(model).__name__, options=configuration(model))
    elif package == "timm":
        yield from _of_timm(model, name)
    elif package == "torchvision":
        yield from _of_torchvision(model, name)


def _of_timm(model: Any, name: str) -> Iterator[Origin]:
    """timm leaves the name in the configuration of the weights; the sizes that differ from the default are tried."""
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    name = name or str(config.get("architecture", ""))
    stem = next((p for p in model.parameters() if p.dim() == 4), None)
    image = getattr(getattr(model, "patch_embed", None), "img_size", None)
    pool = getattr(model, "global_pool", None)
    found = {
        "num_classes": getattr(model, "num_classes", None),
        "in_chans": stem.shape[1] if stem is not None else None,
        "img_size": list(image) if isinstance(image, tuple) else image,
        "global_pool": getattr(pool, "pool_type", pool),
    }
    known = {key: value for key, value in found.items() if type(value) in (int, str, list)}
    if type(model).__name__.startswith("Feature"):
        yield Origin(library="timm", name=name, options={"features_only": True})
    for count in range(len(known) + 1):
        for keys in itertools.combinations(known, count):
            yield Origin(library="timm", name=name, options={key: known[key] for key in keys})


def _of_torchvision(model: nn.Module, name: str) -> Iterator[Origin]:
    """torchvision leaves no name: every builder in the module of the model's class is tried."""
    models = import_module("torchvision.models")
    home = type(model).__module__
    names = (
        [name] if name else [one for one in models.list_models() if models.get_model_builder(one).__module__ == home]
    )
    last = next((m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear | nn.Conv2d)), None)
    classes = getattr(last, "out_features", getattr(last, "out_channels", None))
    for options in ({}, {"num_classes": classes}, {"num_classes": classes, "aux_logits": False}):
        for one in names:
            yield Origin(library="torchvision", name=one, options=options)


def _build_transformers(library: Any, name: str, options: dict[str, Any]) -> nn.Module:
    kind = getattr(library, name, None)
    if not (isinstance(kind, type) and issubclass(kind, library.PreTrainedModel)):
        raise CheckpointError(f"transformers has no model class {name}.", hint="Install a version that has it.")
    built: nn.Module = kind(config_object(kind, options))
    return built


def _build_timm(library: Any, name: str, options: dict[str, Any]) -> nn.Module:
    built: nn.Module = library.create_model(name, **options, pretrained=False)
    return built


def _build_torchvision(library: Any, name: str, options: dict[str, Any]) -> nn.Module:
    models = require("torchvision.models", "vision")
    asked = inspect.signature(models.get_model_builder(name)).parameters
    weightless = {key: None for key in ("weights", "weights_backbone") if key in asked}
    built: nn.Module = models.get_model(name, **options, **weightless)
    return built


_BUILDERS: dict[str, Callable[[Any, str, dict[str, Any]], nn.Module]] = {
    "transformers": _build_transformers,
    "timm": _build_timm,
    "torchvision": _build_torchvision,
}


def _without_code(value: Any) -> Any:
    """A configuration without what makes transformers fetch something: kernels, code, weights of a backbone."""
    if isinstance(value, list):
        return [_without_code(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: False if key.startswith("use_pretrained") else _without_code(item)
        for key, item in value.items()
        if "implementation" not in key and key not in ("auto_map", "_name_or_path", "transformers_weights")
    }


def _with_floats(value: Any) -> Any:
    """Infinity and NaN, which JSON does not have and transformers writes as `{"__float__": "Infinity"}`, as numbers."""
    if isinstance(value, list):
        return [_with_floats(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__float__"}:
        return float(value["__float__"])
    return {key: _with_floats(item) for key, item in value.items()}
