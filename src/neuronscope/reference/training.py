"""Training the reference models: a language model on the standard library, a classifier on the digits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuronscope.reference.architectures import CONTEXT, VOCABULARY, Size, build
from tracker.extras import require
from tracker.progress import progress

BATCH = 8
LEARNING_RATE = 2e-3
_WARM_UP = 100


class Trained(NamedTuple):
    """How a training went: steps taken, samples (tokens or images) seen, and seconds."""

    steps: int
    samples: int
    seconds: float


def train_tokenizer(texts: list[str]) -> Any:
    """A byte-level BPE tokenizer of `VOCABULARY` pieces; piece 0 separates documents."""
    tokenizers = require("tokenizers", "transformers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_language_model(
    name: str, stream: Tensor, *, size: Size, steps: int, seed: int, device: torch.device, minutes: float | None = None
) -> tuple[nn.Module, Trained]:
    """A language model trained on a row of tokens, `BATCH` × `CONTEXT` of them a step, under bfloat16 autocast.

    With `minutes` the learning rate follows the clock, and `steps` is only the most there are.
    """
    torch.manual_seed(seed)
    model = build(name, size).to(device)
    rows = _windows(stream, seed)

    def loss() -> Tensor:
        ids = next(rows).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = model(input_ids=ids).logits[:, :-1]
        return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    taken = _fit(model, loss, steps, minutes, weight_decay=0.1)
    return model.eval(), taken._replace(samples=taken.steps * BATCH * CONTEXT)


def train_vit(images: Tensor, labels: Tensor, *, size: Size, steps: int, seed: int, device: torch.device) -> nn.Module:
    """A vision transformer trained on images (n, 1, 8, 8), shifted by up to one pixel every other time."""
    torch.manual_seed(seed)
    model = build("digits-vit", size).to(device)
    random = torch.Generator().manual_seed(seed)

    counter = iter(range(steps))

    def loss() -> Tensor:
        step = next(counter)
        rows = torch.randint(len(images), (64,), generator=random)
        dy, dx = (int(torch.randint(-1, 2, (), generator=random)) * int(step % 2) for _ in range(2))
        shifted = F.pad(images[rows], (1, 1, 1, 1))[:, :, 1 + dy : 9 + dy, 1 + dx : 9 + dx]
        return F.cross_entropy(model(shifted.to(device)).logits, labels[rows].to(device))

    _fit(model, loss, steps, None, weight_decay=0.05)
    return model.eval()


def _windows(stream: Tensor, seed: int) -> Iterator[Tensor]:
    """Batches of windows from random places, without end."""
    random = torch.Generator().manual_seed(seed)
    offsets = torch.arange(CONTEXT)
    while True:
        starts = torch.randint(len(stream) - CONTEXT, (BATCH, 1), generator=random)
        yield stream[starts + offsets]


def _fit(
    model: nn.Module, loss: Callable[[], Tensor], steps: int, minutes: float | None, weight_decay: float
) -> Trained:
    """AdamW, warm-up and cosine; matrices decay, vectors do not."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.98),
    )
    model.train()
    start, taken = time.monotonic(), 0
    for step in progress(range(steps), "Training"):
        done = step / steps if minutes is None else (time.monotonic() - start) / (60 * minutes)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / _WARM_UP) * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        taken = step + 1
    return Trained(taken, 0, time.monotonic() - start)
