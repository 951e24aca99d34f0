"""A model run block by block gives what it gives at once."""

from typing import Any

import pytest
import torch
from torch import nn

from pruner.compensation.calibration import Calibration
from pruner.compensation.stages import Stages, course_of
from tracker.batches import Batch, evaluating

transformers = pytest.importorskip("transformers")


def models() -> dict[str, Any]:
    common = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    return {
        "bert": transformers.BertModel(transformers.BertConfig(**common, intermediate_size=32)),
        "gpt2": transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=60, n_positions=32, n_embd=16, n_layer=3, n_head=2, bos_token_id=0)
        ),
        "llama": transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**common, intermediate_size=32, num_key_value_heads=1)
        ),
    }


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_every_block_gets_what_it_gets_in_the_whole_model(name: str) -> None:
    model = models()[name].eval()
    ids = torch.randint(1, 60, (4, 9))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    batch = Batch((), {"input_ids": ids, "attention_mask": mask}, None, mask.bool())
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
    inside = [n for n in linear if ".layer" in n or ".h." in n or ".layers." in n]
    with evaluating(model):
        course = course_of(model, inside, [batch])
        assert len(course.blocks) == 3
        stages = Stages(model, course, Calibration((batch,), frozenset()))
        written = []
        handle = model.get_submodule(course.blocks[2]).register_forward_hook(lambda *call: written.append(call[2]))
        model(**batch.kwargs)
        handle.remove()
        whole = written[0] if isinstance(written[0], torch.Tensor) else written[0][0]
        for stage in range(2):
            stages.advance(stage)
        alone = stages.run(2, 0)
        torch.testing.assert_close(alone if isinstance(alone, torch.Tensor) else alone[0], whole)
        together = Stages(model, course, Calibration((batch,), frozenset())).run(0, 0, last=2)
        torch.testing.assert_close(together if isinstance(together, torch.Tensor) else together[0], whole)


def test_a_model_that_calls_a_block_twice_runs_as_a_whole() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in [*self.blocks, *self.blocks]:
                x = torch.relu(block(x))
            return x

    model = Loop()
    with evaluating(model):
        assert course_of(model, ["blocks.0", "blocks.1"], [Batch((torch.randn(3, 4),))]).blocks == ()
