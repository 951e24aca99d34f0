"""What people read: how a text goes on with and without neurons, and the tokens that a neuron speaks up at."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neuronscope.ablation import Filler, by_neuron
from neuronscope.inputs import batches_of
from neuronscope.layers import Layer
from tracker.batches import Batch, forward
from tracker.errors import DataError
from tracker.neuron_map import NeuronGroup, NeuronMap, Read
from tracker.taps import tap

AROUND = 12
"""So many tokens of context on either side."""


def continuations(
    model: nn.Module,
    tokenizer: Any,
    neurons: NeuronMap,
    gone: Mapping[str, Filler],
    texts: Sequence[str],
    tokens: int = 20,
) -> list[dict[str, str]]:
    """Each text, and how the model goes on `before` and `after`, choosing the likeliest token each time.

    To be used under `evaluating`. Raises `DataError` for a model that does not write texts.
    """
    if not hasattr(model, "generate") or not getattr(model, "can_generate", lambda: False)() or tokenizer is None:
        raise DataError(f"{type(model).__name__} does not write texts.", hint="Ask for the impact alone.")
    groups = [neurons[name] for name in gone]

    def visit(group: NeuronGroup, read: Read, x: Tensor) -> Tensor:
        return gone[group.name](read, x, 0)

    found = []
    for text in texts:
        (batch,) = batches_of(model, tokenizer, text)
        before = _written(model, tokenizer, batch, tokens)
        with tap(model, groups, visit):
            after = _written(model, tokenizer, batch, tokens)
        found.append({"text": text, "before": before, "after": after})
    return found


def top_tokens(
    model: nn.Module, tokenizer: Any, layer: Layer, neuron: int, texts: Sequence[str], count: int = 10
) -> list[dict[str, Any]]:
    """The places of the texts at which |activation| of a neuron is largest, with what stands around them.

    Each with `text` (its number), `position`, `token`, `activation`, `before` and `after`; the largest first. To be
    used under `evaluating`.
    """
    ((name, (place,)),) = layer.split([neuron]).items()
    group = next(group for group in layer.groups if group.name == name)
    best: list[tuple[float, int, int, float, list[int]]] = []
    for number, text in enumerate(texts):
        (batch,) = batches_of(model, tokenizer, text)
        heard: list[Tensor] = []

        def visit(one: NeuronGroup, read: Read, x: Tensor, batch: Batch = batch, heard: list[Tensor] = heard) -> None:
            heard.append(by_neuron(x, read, one, batch)[:, place])

        with tap(model, [group], visit):
            forward(model, batch)
        ids = batch.kwargs["input_ids"][0].tolist()
        values = heard[0].float().tolist() if heard else []
        if len(values) != len(ids):
            continue  # what is read there is not one value a token: tokens sent to another expert, say
        for position, value in enumerate(values):
            heapq.heappush(best, (abs(value), -number, -position, value, ids))
            if len(best) > count:
                heapq.heappop(best)
    decode = tokenizer.decode
    return [
        {
            "text": -number,
            "position": -position,
            "token": decode(ids[-position : 1 - position]),
            "activation": value,
            "before": decode(ids[max(0, -position - AROUND) : -position]),
            "after": decode(ids[1 - position : 1 - position + AROUND]),
        }
        for _, number, position, value, ids in sorted(best, reverse=True)
    ]


def _written(model: Any, tokenizer: Any, batch: Batch, tokens: int) -> str:
    given = {key: batch.kwargs[key] for key in ("input_ids", "attention_mask") if key in batch.kwargs}
    with torch.no_grad():
        out = model.generate(
            **given, max_new_tokens=tokens, do_sample=False, num_beams=1, pad_token_id=tokenizer.pad_token_id
        )
    start = 0 if getattr(model.config, "is_encoder_decoder", False) else given["input_ids"].shape[1]
    written: str = tokenizer.decode(out[0][start:], skip_special_tokens=True)
    return written
