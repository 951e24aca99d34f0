"""Two processes that train one model prune it alike."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.ranks import on_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pruner import PruningPlan, prune_
from pruner.distributed import agreed
from tracker import discover
from tracker.errors import PlanError


def work(rank: int, folder: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    neurons = discover(model, torch.randn(2, 6))
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def step(number: int) -> None:
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(10 * number + rank))
        optimizer.zero_grad()
        ddp(x).square().mean().backward()
        optimizer.step()

    step(1)
    own = PruningPlan({"0": range(rank, 8 + rank)}, neurons.fingerprint)  # what each would have removed by itself
    prune_(ddp.module, agreed(own), neurons, optimizer=optimizer)
    ddp = DistributedDataParallel(ddp.module)
    step(2)
    step(3)
    other = PruningPlan({"0": [0]}, "another" if rank else neurons.fingerprint)
    refused = ""
    try:
        agreed(other)
    except PlanError as error:
        refused = str(error)
    torch.save({"weights": model.state_dict(), "refused": refused}, folder / f"{rank}.pt")


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this PyTorch has no gloo")
def test_ranks_prune_alike_and_go_on_training_in_step(tmp_path):
    on_ranks(work, tmp_path)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert one["weights"]["0.weight"].shape == (8, 6)
    for name, value in one["weights"].items():
        assert torch.equal(value, other["weights"][name]), name
    assert one["refused"] == ""
    assert "Rank 0 plans for a model of structure" in other["refused"]


def test_a_single_process_agrees_with_itself():
    plan = PruningPlan({"0": [1]})
    assert agreed(plan) is plan
