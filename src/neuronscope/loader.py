"""A model by its name, with whatever reads its inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from neuronscope.model_names import aliased, base_of, load_model
from neuronscope.quantized import BACKENDS, quantize
from neuronscope.reference.architectures import NAMES as REFERENCES
from neuronscope.reference.shipped import load
from tracker.extras import require


class MultiModelLoader:
    """Loads models by name; see `neuronscope.model_names.load_model` for the names.

    `NEURONSCOPE_MODEL_ALIASES` gives names another meaning: with `gpt2=stdlib-gpt` the name "gpt2" leads to the
    language model that comes with the package, and no network is needed.

    Args:
        cache_dir: where models from the hub are kept; by default where transformers keeps them.
        use_quantization: keep the weights of linear layers in 8 bits; see `neuronscope.quantized`.
    """

    def __init__(self, cache_dir: str | Path | None = None, use_quantization: bool = False) -> None:
        self.use_quantization = use_quantization
        self.cache_dir = None if cache_dir is None else str(cache_dir)

    def load_model(self, name: str) -> tuple[nn.Module, Any]:
        """The model, in evaluation mode, and its tokenizer, or image processor; None where it has neither.

        Raises what `neuronscope.model_names.load_model` raises, and `MissingExtraError` for quantised weights without
        torchao, or bitsandbytes where there is a CUDA device.
        """
        if self.use_quantization:
            require(*BACKENDS["cuda" if torch.cuda.is_available() else "cpu"])
        model, reader = self._plain(name)
        return quantize(model) if self.use_quantization else model, reader

    def _plain(self, name: str) -> tuple[nn.Module, Any]:
        meant = aliased(name)
        if meant in REFERENCES:
            reference = load(meant)
            return reference.model, reference.tokenizer
        hub = ":" not in meant
        if (Path(meant) / "pruning.json").is_file():
            base = base_of(meant)
            return load_model(meant), self.reader(base)
        options = {"cache_dir": self.cache_dir} if hub and self.cache_dir and not Path(meant).is_dir() else {}
        return load_model(meant, **options), self.reader(meant) if hub else None

    def reader(self, name: str) -> Any:
        """The tokenizer, or image processor, of the model called `name`; None where it has neither."""
        meant = aliased(name)
        if meant in REFERENCES:
            return load(meant).tokenizer
        if ":" in meant:
            return None
        transformers = require("transformers", "transformers")
        for kind in (transformers.AutoTokenizer, transformers.AutoImageProcessor):
            try:
                return kind.from_pretrained(meant, cache_dir=self.cache_dir, trust_remote_code=False)
            except (OSError, ValueError, KeyError, ImportError):
                continue
        return None
