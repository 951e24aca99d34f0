"""What is observed against the rows themselves: targets, the residual stream's drift, padding, held-out samples."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pruner.compensation.bench import Bench
from pruner.compensation.observation import observe
from tracker.batches import Batch, evaluating
from tracker.discover import discover
from tracker.errors import DataError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.relu(self.up(x)))
        return out


class Model(nn.Module):
    """Two residual blocks over tokens (batch, length, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def _bench(mask: Tensor | None = None) -> tuple[Bench, Tensor]:
    torch.manual_seed(0)
    model = Model().eval()
    x = torch.randn(16, 5, 6)
    neurons = discover(model, x)
    batch = Batch((x,), {} if mask is None else {"attention_mask": mask}, None, None if mask is None else mask.bool())
    return Bench.of(model, neurons, [g.name for g in neurons if g.exact], [batch]), x


def test_the_target_makes_up_for_the_drift_of_the_residual_stream() -> None:
    bench, x = _bench()
    with evaluating(bench.model):
        changed = copy.deepcopy(bench.model)
        changed.blocks[0].down.weight.data[:, :4] = 0
        dense, pruned = bench.stages(), bench.stages(changed)
        for stages in (dense, pruned):
            stages.advance(0)
        consumer = next(c for c in bench.consumers.found if c.module == "blocks.1.down")
        found = observe(bench.neurons, dense, pruned, 1, [consumer])["blocks.1.down.weight"].fit
        seen = x[torch.arange(16) % 8 != 7]
        r_dense, r_pruned = bench.model.blocks[0](seen), changed.blocks[0](seen)
        block = bench.model.blocks[1]
        wanted = block.down(torch.relu(block.up(r_dense))) + r_dense - r_pruned
        read = torch.relu(block.up(r_pruned))
    wanted, read = wanted.flatten(0, 1), read.flatten(0, 1)
    torch.testing.assert_close(found.mean_y, wanted.mean(0))
    torch.testing.assert_close(found.mean_x, read.mean(0))
    torch.testing.assert_close(found.yx, (wanted - wanted.mean(0)).T @ (read - read.mean(0)) / len(read))


def test_padding_is_not_observed() -> None:
    mask = torch.ones(16, 5, dtype=torch.int64)
    mask[:, 3:] = 0
    bench, x = _bench(mask)
    consumer = next(c for c in bench.consumers.found if c.module == "blocks.0.down")
    with evaluating(bench.model):
        stages = bench.stages()
        found = observe(bench.neurons, stages, stages, 0, [consumer])["blocks.0.down.weight"]
        block = bench.model.blocks[0]
        read = torch.relu(block.up(x[torch.arange(16) % 8 != 7][:, :3])).flatten(0, 1)
    assert (found.fit.count, found.held.count) == (14 * 3, 2 * 3)
    torch.testing.assert_close(found.fit.mean_x, read.mean(0))


def test_what_is_not_finite_is_an_error_that_names_the_layer() -> None:
    bench, _ = _bench()
    with evaluating(bench.model):
        bench.model.blocks[0].up.bias.data[0] = torch.inf
        stages = bench.stages()
        consumer = next(c for c in bench.consumers.found if c.module == "blocks.0.down")
        with pytest.raises(DataError, match=r"blocks\.0\.down"):
            observe(bench.neurons, stages, stages, 0, [consumer])
