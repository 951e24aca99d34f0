"""How good a reference model is on data it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tracker.batches import evaluating


def measured(model: nn.Module, batches: Sequence[Any]) -> dict[str, float]:
    """`loss` (nats, a token or an image) and `accuracy` (share of first choices that are right) on `batches`.

    Tokens are predicted from those before them; images by their labels.
    """
    device = next(model.parameters()).device
    loss, right, count = 0.0, 0, 0
    with evaluating(model):
        for batch in batches:
            logits, targets = _predictions(model, batch, device)
            loss += float(F.cross_entropy(logits, targets, reduction="sum"))
            right += int((logits.argmax(-1) == targets).sum())
            count += len(targets)
    return {"loss": loss / max(count, 1), "accuracy": right / max(count, 1)}


def unigram_loss(train: Tensor, held_out: Tensor, vocabulary: int) -> float:
    """Nats a token of the model that only knows how frequent tokens are (add-one smoothing)."""
    counts = torch.bincount(train, minlength=vocabulary).double() + 1
    return float(-(counts / counts.sum()).log()[held_out].mean())


def _predictions(model: nn.Module, batch: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    if isinstance(batch, dict):
        ids = batch["input_ids"].to(device)
        logits = model(input_ids=ids).logits[:, :-1].float()
        return logits.flatten(0, 1), ids[:, 1:].flatten()
    images, labels = (part.to(device) for part in batch)
    output = model(images)
    return getattr(output, "logits", output).float(), labels
