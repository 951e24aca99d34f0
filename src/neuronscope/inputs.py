"""What a person gives to try a model with, and the batches that become of it: texts, tokens, or images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from tracker.batches import Batch, as_batch
from tracker.errors import DataError

MOST_TOKENS = 512
"""Texts are cut here, or where the model's own positions end."""


def batches_of(
    model: nn.Module, tokenizer: Any, given: Sequence[Any] | str | Tensor | Mapping[str, Any], batch_size: int = 10
) -> list[Batch]:
    """Batches of at most `batch_size` inputs.

    Args:
        model: that will read them.
        tokenizer: for texts; padded on the right, and what is padded does not count.
        given: a text, some texts, an image (channels, height, width) or some (n, …), or a mapping of keyword arguments.
        batch_size: how many go through the model at a time.

    Raises `DataError`: nothing is given, a text is empty, or texts are given without a tokenizer.
    """
    if type(batch_size) is not int or batch_size < 1:
        raise DataError(f"batch_size = {batch_size!r} is no number of inputs.", hint="Give a whole number from 1 up.")
    if isinstance(given, str):
        given = [given]
    if isinstance(given, Mapping):
        return [as_batch(dict(given), model)]
    if isinstance(given, Tensor):
        images = given.unsqueeze(0) if given.dim() == 3 else given
        return [as_batch(part, model) for part in images.split(batch_size)]
    items = list(given)
    if not items:
        raise DataError("No inputs are given.", hint="Give at least one text.")
    if all(isinstance(item, Tensor) for item in items):
        return [batch for item in items for batch in batches_of(model, tokenizer, item, batch_size)]
    for item in items:
        if not isinstance(item, str) or not item.strip():
            what = "is empty" if isinstance(item, str) else f"is a {type(item).__name__}"
            raise DataError(f"One of the texts {what}.", hint="Give texts of at least one character.")
    if tokenizer is None:
        raise DataError(f"{type(model).__name__} has no tokenizer to read texts.", hint="Give images, or tokens.")
    return [_encoded(model, tokenizer, items[start : start + batch_size]) for start in range(0, len(items), batch_size)]


def _encoded(model: nn.Module, tokenizer: Any, texts: list[str]) -> Batch:
    if getattr(tokenizer, "pad_token", None) is None and getattr(tokenizer, "eos_token", None) is not None:
        tokenizer.pad_token = tokenizer.eos_token  # GPT-2's has none
    config = getattr(model, "config", None)
    places = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    length = min(MOST_TOKENS, places) if isinstance(places, int) and places > 0 else MOST_TOKENS
    options = {"padding": True, "padding_side": "right", "truncation": True, "max_length": length}
    encoded = dict(tokenizer(texts, return_tensors="pt", **options))
    if encoded["input_ids"].shape[1] == 0:
        raise DataError("The texts are no tokens at all.", hint="Give longer texts.")
    encoded.pop("token_type_ids", None)
    if getattr(config, "is_encoder_decoder", False):
        encoded["decoder_input_ids"] = encoded["input_ids"]
    return as_batch(encoded, model)
