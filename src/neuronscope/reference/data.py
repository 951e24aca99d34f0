"""Batches for the reference models: tokens of the standard library, and handwritten digits."""

from __future__ import annotations

import hashlib
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from neuronscope.data_names import digits
from neuronscope.reference.architectures import CONTEXT, LANGUAGE_MODELS, checked
from neuronscope.reference.corpus import Split, documents
from neuronscope.reference.shipped import place, tokenizer_of
from tracker.errors import DataError


def texts(split: Split = "train", limit: int | None = None) -> list[str]:
    """Sources of the standard library's modules, those to train on or those held out."""
    return [document.text for document in documents(_known(split))[:limit]]


def batches(
    name: str,
    split: Split = "train",
    *,
    count: int | None = None,
    batch_size: int = 16,
    length: int = CONTEXT,
    seed: int = 0,
) -> list[dict[str, Tensor]] | list[tuple[Tensor, Tensor]]:
    """Batches for the model called `name`.

    For a language model mappings of `input_ids` and `labels`, int64 (batch, length), `count` of them (all by default)
    from places that `seed` draws; for the digits tuples of images and labels (see `data_names.digits`).

    Raises `ModelNameError` for an unknown name, and `DataError` for an unknown split.
    """
    _known(split)
    if checked(name) not in LANGUAGE_MODELS:
        x, y = images(split)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        return [(x[rows], y[rows]) for rows in order.split(batch_size)][:count]
    stream = tokens(name, split)
    rows = stream[: len(stream) // length * length].view(-1, length)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    chosen = [rows[part] for part in order.split(batch_size) if len(part) == batch_size][:count]
    return [{"input_ids": ids, "labels": ids} for ids in chosen]


def images(split: Split) -> tuple[Tensor, Tensor]:
    """The digits of a part, in order: images (n, 1, 8, 8) in [0, 1], and labels (n,)."""
    x, y = digits()[0 if split == "train" else 1].dataset.tensors  # type: ignore[attr-defined]
    return x, y


def images_fingerprint() -> str:
    """SHA-256 over the values and labels of all digits, those to train on first."""
    digest = hashlib.sha256()
    for split in ("train", "held-out"):
        for part in images(split):
            digest.update(part.numpy().tobytes())
    return digest.hexdigest()


def windows(stream: Tensor, batch_size: int = 16) -> list[dict[str, Tensor]]:
    """A row of tokens cut into batches of whole windows of `CONTEXT`, in order; the cards measure on them."""
    rows = stream[: len(stream) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    return [{"input_ids": part} for part in rows.split(batch_size)]


@cache
def tokens(name: str, split: Split) -> Tensor:
    """All tokens of a part of the standard library in one row: documents in order, a separator before each."""
    return encoded(tokenizer_of(place(name)), split)


def encoded(tokenizer: Any, split: Split) -> Tensor:
    """The same by a tokenizer of `tokenizers`."""
    parts = tokenizer.encode_batch(texts(split))
    return torch.tensor(list(chain.from_iterable([0, *part.ids] for part in parts)), dtype=torch.int64)


def _known(split: Split) -> Split:
    if split not in ("train", "held-out"):
        raise DataError(f"There is no part '{split}' of the data.", hint="Name 'train' or 'held-out'.")
    return split
