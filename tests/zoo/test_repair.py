"""All of the zoo's transformers through `compress`: none fails, and none comes out further from the dense answers."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from benchmarks.zoo.entries import Entry, entries_of
from torch import Tensor
from torch.utils._pytree import tree_map_only

import pruner
from pruner.compensation import pipeline
from tracker.discover import discover

FAST = """
GPT2LMHeadModel GPTJForCausalLM MixtralForCausalLM GptOssForCausalLM DbrxForCausalLM
SwitchTransformersForConditionalGeneration
T5ForConditionalGeneration XLMModel MambaForCausalLM ResNetForImageClassification LevitModel
""".split()


def entries() -> list[Any]:
    return [
        pytest.param(entry, id=entry.name, marks=() if entry.name in FAST else pytest.mark.slow)
        for entry in entries_of("transformers")
    ]


def shuffled(inputs: Any, seed: int) -> Any:
    """Other inputs of the same shapes; masks and the like stay."""
    random = torch.Generator().manual_seed(seed)

    def other(x: Tensor) -> Tensor:
        if x.is_floating_point():
            return torch.randn(x.shape, generator=random).to(x.dtype)
        if x.dtype == torch.bool or x.unique().numel() <= 2:
            return x
        return x.flatten()[torch.randperm(x.numel(), generator=random)].view(x.shape)

    return tree_map_only(Tensor, other, inputs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("entry", entries())
def test_a_repair_of_any_architecture(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pipeline.EFFORTS, "default", pipeline.Work(copies=1, block_steps=4, answer_steps=4))
    example = entry.fresh()
    model = example.model
    given = {**dict(zip(inspect.signature(model.forward).parameters, example.args, strict=False)), **example.kwargs}
    neurons = discover(model, example_kwargs=given)
    if not any(group.exact for group in neurons):
        pytest.skip("no layer is exact")
    quiet = pruner.create_default_config().update(logging={"log_to_console": False})
    results = pruner.compress(model, [shuffled(given, i) for i in range(4)], ratio=0.5, config=quiet)
    distances = results["repair"]["distances"]
    assert results["verification"]["summary"]["overall_success"]
    assert distances[results["repair"]["kept"]] <= distances["removed"]
    exact = sum(group.size for group in neurons if group.exact)
    assert results["neurons_pruned"] == pytest.approx(exact / 2, rel=0.05, abs=len(neurons))
