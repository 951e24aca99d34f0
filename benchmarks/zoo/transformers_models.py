"""Architectures of transformers, random, from tiny configurations."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import transformers
from benchmarks.zoo.entries import Entry, Example


def entries() -> Iterator[Entry]:
    """All of them."""

    def build():
        c = transformers.LlamaConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=8,
            num_key_value_heads=2,
            vocab_size=100,
        )
        return Example(transformers.LlamaForCausalLM(c), (torch.randint(3, 100, (2, 12)),), {"use_cache": False})

    yield Entry("transformers", "LlamaForCausalLM", build)
