"""One word for any model: a directory, a reference model, `module:callable`, `timm:NAME`, or a transformers name.

Nothing is ever unpickled into code: transformers models are read from safetensors only and without their remote code,
and while timm and torchvision read theirs, `torch.load` may build tensors and nothing else.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from torch import nn

from neuronscope.imports import import_object
from neuronscope.reference.architectures import NAMES as REFERENCES
from neuronscope.reference.architectures import build
from neuronscope.reference.shipped import load
from tracker.errors import ModelNameError
from tracker.extras import require

ALIASES = "NEURONSCOPE_MODEL_ALIASES"
FORMS = "a directory, stdlib-gpt, digits-cnn, module:callable, timm:NAME, torchvision:NAME, or a transformers name"


def load_model(name: str, *, original: str | None = None, **options: Any) -> nn.Module:
    """The model called `name`, with its trained weights, in eval mode.

    - a directory: one of this project's checkpoints (`pruning.json`), or a transformers one (`config.json`);
    - `stdlib-gpt`, `stdlib-llama`, `digits-vit`, `digits-cnn`: trained models that come with this package;
    - `module:callable`: what the callable returns, or the object itself if it is a module already;
    - `timm:NAME`, `torchvision:NAME`: the library's default pretrained weights;
    - anything else: a transformers name, from the local cache or the hub.

    `NEURONSCOPE_MODEL_ALIASES` ("gpt2=stdlib-gpt,bert=./bert") comes first: names in it mean what it says.

    `original` names the model that a pruned checkpoint was made from. It must be given where that is a
    `module:callable`: a file from elsewhere does not get to say which code runs. `options` go to whatever builds the
    model.

    Raises:
        ModelNameError: the name leads to no model; the message says what was tried.
        MissingExtraError: the library behind the name is not installed.
        CheckpointError: the directory's checkpoint is not whole.
    """
    name = aliased(name)
    if Path(name).is_dir():
        model = _from_directory(Path(name), original, options)
    elif name in REFERENCES:
        model = load(name).model
    elif name.startswith("timm:"):
        model = _from_timm(name.removeprefix("timm:"), options)
    elif name.startswith("torchvision:"):
        model = _from_torchvision(name.removeprefix("torchvision:"), options)
    elif ":" in name:
        model = _from_callable(name, options)
    else:
        model = _from_transformers(name, options)
    return model.eval()


def aliased(name: str) -> str:
    """What a name means by `NEURONSCOPE_MODEL_ALIASES`; raises `ModelNameError` where that is malformed."""
    pairs = [pair.partition("=") for pair in os.environ.get(ALIASES, "").split(",") if pair.strip()]
    wrong = next((before for before, equals, after in pairs if not (before.strip() and equals and after.strip())), None)
    if wrong is not None:
        raise ModelNameError(f"{ALIASES} has an entry '{wrong}' without a meaning.", hint="Write gpt2=stdlib-gpt.")
    return {before.strip(): after.strip() for before, _, after in pairs}.get(name, name)


def build_model(name: str) -> nn.Module:
    """The architecture of the model called `name`, without reading trained weights: what a checkpoint is loaded into.

    Raises what `load_model` raises.
    """
    if name in REFERENCES:
        return build(name).eval()
    if name.startswith("timm:"):
        return load_model(name, pretrained=False)
    if name.startswith("torchvision:"):
        return load_model(name, **_without_weights(name.removeprefix("torchvision:")))
    if ":" in name and not Path(name).is_dir():
        return load_model(name)
    transformers = require("transformers", "transformers")
    config, kind = _transformers_class(transformers, name)
    model: nn.Module = kind._from_config(config) if kind is not transformers.AutoModel else kind.from_config(config)
    return model.eval()


def base_of(name: str, original: str | None = None) -> str:
    """How to name the dense model behind the model called `name`, for the checkpoint that it will be pruned into.

    For a checkpoint that is the model it was made from itself. Raises what `load_model` raises for the checkpoint.
    """
    if original is None and (Path(name) / "pruning.json").is_file():
        from pruner.manifest import read_manifest

        original = read_manifest(name).base
    return original or name


def _from_directory(directory: Path, original: str | None, options: dict[str, Any]) -> nn.Module:
    if (directory / "pruning.json").is_file():
        from pruner.checkpoint import load_pruned

        return load_pruned(directory, partial(build_model, original) if original else None, resolve=_build_without_code)
    if not (directory / "config.json").is_file():
        hint = f"Name {FORMS}."
        raise ModelNameError(f"The directory {directory} has neither a pruning.json nor a config.json.", hint=hint)
    if not any(directory.glob("*.safetensors")):
        what = f"The directory {directory} has a config.json but no *.safetensors file."
        raise ModelNameError(what, hint="Pickled weights are never read: save them with safetensors.")
    return _from_transformers(str(directory), options)


def _build_without_code(name: str) -> nn.Module:
    """The architecture that a checkpoint's own files name, unless that would run code of their choice."""
    if ":" in name and not name.startswith(("timm:", "torchvision:")):
        hint = "If you trust it, name it as the original model yourself."
        raise ModelNameError(f"The checkpoint was made from '{name}', which is code to be run.", hint=hint)
    return build_model(name)


def _from_callable(name: str, options: dict[str, Any]) -> nn.Module:
    found = import_object(name, ModelNameError)
    model = found if isinstance(found, nn.Module) else found(**options)
    if not isinstance(model, nn.Module):
        what = f"'{name}' gave a {type(model).__name__}, not a torch.nn.Module."
        raise ModelNameError(what, hint="Name a callable that returns the model.")
    return model


def _from_timm(name: str, options: dict[str, Any]) -> nn.Module:
    return _from_zoo("timm", name, require("timm", "timm").create_model, {"pretrained": True} | options)


def _from_torchvision(name: str, options: dict[str, Any]) -> nn.Module:
    return _from_zoo(
        "torchvision", name, require("torchvision.models", "vision").get_model, {"weights": "DEFAULT"} | options
    )


def _without_weights(name: str) -> dict[str, None]:
    """Options for a torchvision model without trained weights, also of the backbone that some are built on."""
    try:
        builder = require("torchvision.models", "vision").get_model_builder(name)
    except ValueError:  # an unknown name, of which loading says more
        return {"weights": None}
    return {"weights": None} | {key: None for key in ("weights_backbone",) if key in signature(builder).parameters}


def _from_zoo(zoo: str, name: str, create: Callable[..., nn.Module], options: dict[str, Any]) -> nn.Module:
    try:
        with _tensors_only():
            return create(name, **options)
    except (OSError, RuntimeError, ValueError, LookupError, UnpicklingError) as error:
        hint = f"Check the name in {zoo}'s list of models, and that its weights can be downloaded."
        raise ModelNameError(f"{zoo} gives no model '{name}': {_first_line(error)}.", hint=hint) from error


def _from_transformers(name: str, options: dict[str, Any]) -> nn.Module:
    transformers = require("transformers", "transformers")
    _, kind = _transformers_class(transformers, name)
    try:
        model: nn.Module = kind.from_pretrained(name, use_safetensors=True, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise _not_in_transformers(name, error) from error
    return model


def _transformers_class(transformers: Any, name: str) -> tuple[Any, Any]:
    """The configuration, and the class that its `architectures` name, so that a classifier keeps its head."""
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _not_in_transformers(name, error) from error
    architecture = next(iter(config.architectures or []), "AutoModel")
    return config, getattr(transformers, architecture, transformers.AutoModel)


def _not_in_transformers(name: str, error: Exception) -> ModelNameError:
    if Path(name).is_dir():
        what = f"transformers cannot load the model in {name}: {_first_line(error)}."
        hint = "A model's own code is never run from here: build it in Python and name it as module:callable."
        return ModelNameError(what, hint=hint if "custom code" in what else "")
    tried = "there is no such directory, it is not module:callable, and transformers says"
    return ModelNameError(f"No model '{name}': {tried}: {_first_line(error)}.", hint=f"Name {FORMS}.")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(" .:")


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Make `torch.load` refuse everything but tensors, whatever the library that calls it asks for."""
    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before
