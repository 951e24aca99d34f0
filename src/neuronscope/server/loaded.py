"""A model in a worker, with whatever looks at it, and the inputs that jobs are done on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from neuronscope.impact import PruningImpactAnalyzer
from neuronscope.inputs import batches_of
from neuronscope.samples import sample_inputs
from neuronscope.weights import WeightAnalyzer
from tracker.batches import Batch

Params = Mapping[str, Any]
Json = dict[str, Any]


@dataclass
class Loaded:
    """A model that was loaded, and what looks at it."""

    name: str
    model: nn.Module
    tokenizer: Any
    analyzer: PruningImpactAnalyzer
    weights: WeightAnalyzer
    fingerprint: str

    def inputs(self, params: Params) -> Any:
        """What the client gave, or real samples."""
        return params.get("input_texts") or sample_inputs(self.model, self.tokenizer)

    def data(self, params: Params, split: str = "train") -> list[dict[str, Any]]:
        """The same as batches that `pruner` takes, for language models with labels."""
        given = params.get("input_texts") or sample_inputs(self.model, self.tokenizer, 32, split)
        batches = batches_of(self.model, self.tokenizer, given, 8)
        return [_as_data(batch) for batch in batches]


def _as_data(batch: Batch) -> Any:
    if batch.kwargs:
        found = dict(batch.kwargs)
        ids = found.get("input_ids")
        if ids is not None and "decoder_input_ids" not in found:
            found["labels"] = ids.masked_fill(~batch.mask, -100) if batch.mask is not None else ids
        return found
    return batch.args[0]
