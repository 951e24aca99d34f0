"""A model by its name, with whatever reads its inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from neuronscope.model_names import aliased, load_model
from neuronscope.reference.architectures import NAMES as REFERENCES
from neuronscope.reference.shipped import load
from tracker.errors import ConfigError
from tracker.extras import require


class MultiModelLoader:
    """Loads models by name; see `neuronscope.model_names.load_model` for the names.

    `NEURONSCOPE_MODEL_ALIASES` gives names another meaning: with `gpt2=stdlib-gpt` the name "gpt2" leads to the
    language model that comes with the package, and no network is needed.

    Args:
        cache_dir: where models from the hub are kept; by default where transformers keeps them.
        use_quantization: not possible in this version.
    """

    def __init__(self, cache_dir: str | Path | None = None, use_quantization: bool = False) -> None:
        if use_quantization:
            raise ConfigError(
                "Models cannot be loaded quantised in this version.",
                hint="Load them as they are; model.to(torch.bfloat16) halves their memory.",
            )
        self.cache_dir = None if cache_dir is None else str(cache_dir)

    def load_model(self, name: str) -> tuple[nn.Module, Any]:
        """The model, in evaluation mode, and its tokenizer, or image processor; None where it has neither.

        Raises what `neuronscope.model_names.load_model` raises.
        """
        meant = aliased(name)
        if meant in REFERENCES:
            reference = load(meant)
            return reference.model, reference.tokenizer
        hub = ":" not in meant
        options = {"cache_dir": self.cache_dir} if hub and self.cache_dir and not Path(meant).is_dir() else {}
        return load_model(meant, **options), self._reader(meant) if hub else None

    def _reader(self, name: str) -> Any:
        transformers = require("transformers", "transformers")
        for kind in (transformers.AutoTokenizer, transformers.AutoImageProcessor):
            try:
                return kind.from_pretrained(name, cache_dir=self.cache_dir, trust_remote_code=False)
            except (OSError, ValueError, KeyError, ImportError):
                continue
        return None
