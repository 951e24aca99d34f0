"""The reference models that come with the package, read from files: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from neuronscope.reference.architectures import NAMES, build, checked
from tracker.errors import ModelNameError
from tracker.extras import require

WEIGHTS, CONFIG, TOKENIZER, CARD = "model.safetensors", "config.json", "tokenizer.json", "README.md"
SEPARATOR = "<|end|>"
_SHIPPED = Path(__file__).parent / "models"


class Reference(NamedTuple):
    """A trained model in float32 and evaluation mode, its tokenizer (None for images), and where its files are."""

    model: nn.Module
    tokenizer: Any
    directory: Path


def names() -> tuple[str, ...]:
    """The models that `load` knows."""
    return NAMES


def load(name: str) -> Reference:
    """The trained model called `name`.

    Raises `ModelNameError` for an unknown name and `MissingExtraError` without transformers.
    """
    directory = place(name)
    if not (directory / WEIGHTS).is_file():
        raise ModelNameError(
            f"The reference model '{name}' is not there.", hint=f"Make it: python -m neuronscope.reference {name}"
        )
    if name == "digits-cnn":
        with torch.random.fork_rng(devices=[]):
            model = build(name)
        model.load_state_dict(load_file(directory / WEIGHTS))
        return Reference(model.eval(), None, directory)
    transformers = require("transformers", "transformers")
    config = transformers.AutoConfig.from_pretrained(directory)
    kind = getattr(transformers, config.architectures[0])
    model = kind.from_pretrained(directory, dtype=torch.float32, use_safetensors=True)
    tokenizer = None
    if (directory / TOKENIZER).is_file():
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(directory / TOKENIZER), eos_token=SEPARATOR, pad_token=SEPARATOR
        )
    return Reference(model.eval(), tokenizer, directory)


def save(model: nn.Module, directory: Path, tokenizer: Any = None) -> None:
    """Write a model's files: language models in bfloat16, the others in float32."""
    directory.mkdir(parents=True, exist_ok=True)
    if not hasattr(model, "save_pretrained"):
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, directory / WEIGHTS)
        return
    if tokenizer is not None:
        model = model.to(torch.bfloat16)
        tokenizer.save(str(directory / TOKENIZER))
    model.save_pretrained(directory)  # type: ignore[operator]


def place(name: str) -> Path:
    """The directory of a reference model's files."""
    return _SHIPPED / checked(name)


def tokenizer_of(directory: Path) -> Any:
    """The tokenizer stored beside a model."""
    return require("tokenizers", "transformers").Tokenizer.from_file(str(directory / TOKENIZER))
