"""What the reference models are: their configurations, by name and size."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from tracker.errors import ModelNameError, nearest
from tracker.extras import require

Size = Literal["small", "large"]

LANGUAGE_MODELS = ("stdlib-gpt", "stdlib-llama")
CLASSIFIERS = ("digits-vit", "digits-cnn")
NAMES = (*LANGUAGE_MODELS, *CLASSIFIERS)

VOCABULARY = 6144
CONTEXT = 256
_WIDTHS: dict[Size, tuple[int, int, int]] = {"small": (192, 6, 6), "large": (512, 8, 8)}  # width, layers, heads


def build(name: str, size: Size = "small") -> nn.Module:
    """The untrained model called `name`; its weights come from torch's generator.

    Raises `ModelNameError` for an unknown name, `MissingExtraError` without transformers.
    """
    if name == "digits-cnn":
        from neuronscope.digits import DigitsCNN

        return DigitsCNN()
    transformers = require("transformers", "transformers")
    model: nn.Module = _KINDS[checked(name)](transformers, size)
    return model


def checked(name: str) -> str:
    """The name, if there is such a model; raises `ModelNameError`."""
    if name not in NAMES:
        raise ModelNameError(
            f"There is no reference model '{name}'.{nearest(name, NAMES)}", hint=f"Name one of {', '.join(NAMES)}."
        )
    return name


def _gpt(transformers: Any, size: Size) -> nn.Module:
    width, layers, heads = _WIDTHS[size]
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model: nn.Module = transformers.GPT2LMHeadModel(config)
    return model


def _llama(transformers: Any, size: Size) -> nn.Module:
    width, layers, heads = _WIDTHS[size]
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2 if size == "large" else heads // 3,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    model: nn.Module = transformers.LlamaForCausalLM(config)
    return model


def _vit(transformers: Any, size: Size) -> nn.Module:
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=64 if size == "small" else 192,
        intermediate_size=256 if size == "small" else 768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_labels=10,
    )
    model: nn.Module = transformers.ViTForImageClassification(config)
    return model


_KINDS = {"stdlib-gpt": _gpt, "stdlib-llama": _llama, "digits-vit": _vit}
