"""Batches for the reference models: tokens of the standard library, and handwritten digits."""

from __future__ import annotations

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
        train, test = digits(batch_size)
        own = train.dataset if split == "train" else test.dataset
        order = torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
        pairs = [
            tuple(torch.stack(part) for part in zip(*[own[int(i)] for i in rows], strict=True))
            for rows in order.split(batch_size)
        ]
        return pairs[:count]  # type: ignore[return-value]
    stream = tokens(name, split)
    rows = stream[: len(stream) // length * length].view(-1, length)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    chosen = [rows[part] for part in order.split(batch_size) if len(part) == batch_size][:count]
    return [{"input_ids": ids, "labels": ids} for ids in chosen]


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
