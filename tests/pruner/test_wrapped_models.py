"""Models that are spread over devices, and wrappers seen through the whole engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.pruner.small_net import PLAN, X, expected, net, pruned, says
from torch import nn

from pruner.apply import check, prune_
from pruner.engine import PruningEngine
from pruner.lineage import pruning_history
from pruner.workflow import IntegratedTrackingPruningWorkflow
from tracker.discover import discover
from tracker.errors import DiscoveryError


def test_a_data_parallel_model_is_pruned_inside() -> None:
    wrapped = nn.DataParallel(net())
    wanted = expected(wrapped.module)
    pruned(wrapped)
    says(wrapped, wanted)
    assert len(pruning_history(wrapped)) == 1


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_distributed_model_is_refused_until_it_is_unwrapped(process_group: None) -> None:
    wrapped = nn.parallel.DistributedDataParallel(net())
    neurons = discover(wrapped, X)
    for act in (prune_, check):
        with pytest.raises(DiscoveryError, match="wrap it again"):
            act(wrapped, PLAN, neurons)
    model = wrapped.module
    wanted = expected(model)
    assert prune_(model, PLAN, neurons).proof
    again = nn.parallel.DistributedDataParallel(model)
    says(again, wanted)
    again(X).sum().backward()
    assert model.fc1.weight.grad.shape == (5, 5)


def test_the_engine_and_the_workflow_refuse_a_distributed_model_too(process_group: None, tmp_path: Path) -> None:
    wrapped = nn.parallel.DistributedDataParallel(net())
    for act in (
        lambda: PruningEngine().prune_by_magnitude(wrapped, data_loader=[X]),
        lambda: IntegratedTrackingPruningWorkflow(output_dir=tmp_path).run_complete_workflow(wrapped, [X]),
    ):
        with pytest.raises(DiscoveryError, match="wrap it again"):
            act()
    assert wrapped.module.fc1.weight.shape == (8, 5)


def test_a_model_that_cannot_be_cut_is_refused_with_a_map_too() -> None:
    model = net()
    neurons = discover(model, X)
    model.fc2.weight = nn.Parameter(model.fc2.weight.detach().to_sparse())
    with pytest.raises(DiscoveryError, match="sparse"):
        prune_(model, PLAN, neurons)
    assert model.fc1.weight.shape == (8, 5)


# Through the whole engine


def test_the_engine_takes_wrapped_models() -> None:
    torch.compiler.reset()
    for wrap in (nn.DataParallel, lambda model: torch.compile(model, backend="eager")):
        model = wrap(net())
        PruningEngine().prune_by_magnitude(model, data_loader=[X])
        assert len(pruning_history(model)) == 1
        assert model(X).shape == (4, 3)
