"""Training the reference models: a language model on the standard library, a classifier on the digits."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuronscope.reference.architectures import CONTEXT, VOCABULARY, Size, build
from neuronscope.reference.data import windows
from neuronscope.reference.measure import measured
from neuronscope.reference.unfinished import Keeper
from tracker.extras import require
from tracker.progress import progress

BATCH = 8
LEARNING_RATE = 2e-3
EVERY = 250
"""Steps after which the weights are judged and the run is written down."""

_WARM_UP = 100
_JUDGES = 100  # one training token in so many is not trained on


class Trained(NamedTuple):
    """How a training went: steps, samples (tokens or images) seen, seconds, and the step whose weights are kept."""

    steps: int
    samples: int
    seconds: float
    kept: int


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
    name: str,
    stream: Tensor,
    *,
    size: Size,
    steps: int | None,
    seed: int,
    device: torch.device,
    minutes: float | None = None,
    unfinished: Path | None = None,
) -> tuple[nn.Module, Trained]:
    """A language model trained on a row of tokens, `BATCH` × `CONTEXT` of them a step, under bfloat16 autocast.

    The end of the row is not trained on: of the weights after every `EVERY` steps, those with the least loss there are
    kept. Training ends after `steps` or `minutes`, whichever is first, and the learning rate follows that. `unfinished`
    is a file: a run that was stopped goes on from it, and it stays there for the caller to delete.

    Raises `CheckpointError` where `unfinished` is broken or of another run.
    """
    torch.manual_seed(seed)
    model = build(name, size).to(device)
    random = torch.Generator().manual_seed(seed)
    judges = max(CONTEXT, len(stream) // _JUDGES)
    rows = _windows(stream[:-judges], random)
    judging = windows(stream[-judges:])

    def loss() -> Tensor:
        ids = next(rows).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = model(input_ids=ids).logits[:, :-1]
        return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    def judge() -> float:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return measured(model, judging)["loss"]

    optimizer = _adamw(model, weight_decay=0.1)
    tokens = hashlib.sha256(stream.numpy().tobytes()).hexdigest()
    settings = {"name": name, "size": size, "steps": steps, "minutes": minutes, "seed": seed, "tokens": tokens}
    keeper = Keeper(model, optimizer, random, judge, settings=settings, path=unfinished)
    taken = _fit(model, optimizer, loss, steps, minutes, keeper)
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

    _fit(model, _adamw(model, weight_decay=0.05), loss, steps)
    return model.eval()


def _windows(stream: Tensor, random: torch.Generator) -> Iterator[Tensor]:
    """Batches of windows from random places, without end."""
    offsets = torch.arange(CONTEXT)
    while True:
        starts = torch.randint(len(stream) - CONTEXT, (BATCH, 1), generator=random)
        yield stream[starts + offsets]


def _adamw(model: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    """Matrices decay, vectors do not."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.98),
    )


def _fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], Tensor],
    steps: int | None,
    minutes: float | None = None,
    keeper: Keeper | None = None,
) -> Trained:
    """Warm-up and cosine; the last weights stay, or those that the keeper likes best."""
    first, spent = keeper.resume() if keeper else (0, 0.0)
    model.train()
    start, taken = time.monotonic() - spent, first
    for step in progress(count(first), "Training", total=steps):
        by_clock = (time.monotonic() - start) / (60 * minutes) if minutes else 0.0
        done = max(step / steps if steps else 0.0, by_clock)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / _WARM_UP) * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        taken = step + 1
        if keeper and taken % EVERY == 0:
            keeper.keep(taken, time.monotonic() - start)
    kept = keeper.finish(taken) if keeper else taken
    return Trained(taken, 0, time.monotonic() - start, kept)
