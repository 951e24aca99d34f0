"""A backup brings a model back bit for bit: shapes, values, integers, gradients and the optimizer."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from tests.pruner import small_cnn
from tests.pruner.small_cnn import SmallCNN
from torch import nn

from pruner.apply import prune_
from pruner.backup import Backup, by_reference
from pruner.lineage import pruning_history
from pruner.plan import PruningPlan
from tracker.discover import discover
from tracker.errors import PlanError

PLAN = PruningPlan({"conv1": [0, 3], "conv2": [5], "fc1": range(64)})


def trained() -> tuple[SmallCNN, torch.optim.Adam]:
    model = small_cnn.model().train()
    discover(model, small_cnn.images())
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer)
    return model, optimizer


def step(model: SmallCNN, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(small_cnn.images()).square().sum().backward()
    optimizer.step()


def everything(model: SmallCNN, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return deepcopy(
        {
            "weights": dict(model.state_dict()),
            "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
            "state": {name: dict(optimizer.state[parameter]) for name, parameter in model.named_parameters()},
            "integers": [(m.out_channels, m.in_channels) for m in (model.conv1, model.conv2)]
            + [(m.out_features, m.in_features) for m in (model.fc1, model.fc2)],
            "norm": model.bn1.num_features,
            "history": pruning_history(model),
        }
    )


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


def test_brings_back_a_model_that_was_pruned_and_trained_on() -> None:
    model, optimizer = trained()
    before, weight = everything(model, optimizer), model.conv1.weight
    backup = Backup(model, optimizer)
    prune_(model, PLAN, optimizer=optimizer)
    step(model, optimizer)
    assert not same(everything(model, optimizer), before)
    backup.restore(model)
    assert same(everything(model, optimizer), before)
    assert model.conv1.weight is weight
    step(model, optimizer)


def test_can_be_used_again() -> None:
    model, optimizer = trained()
    before = everything(model, optimizer)
    backup = Backup(model, optimizer)
    for _ in range(2):
        step(model, optimizer)
        backup.restore(model)
        assert same(everything(model, optimizer), before)


def test_by_reference_undoes_a_pruning_without_a_copy() -> None:
    model, optimizer = trained()
    before, storage = everything(model, optimizer), model.conv1.weight.data_ptr()
    backup = Backup(model, optimizer, keep=by_reference)
    prune_(model, PLAN, optimizer=optimizer)
    backup.restore(model)
    assert same(everything(model, optimizer), before)
    assert model.conv1.weight.data_ptr() == storage


def test_forgets_gradients_that_came_later() -> None:
    model = small_cnn.model()
    backup = Backup(model)
    model(small_cnn.images()).sum().backward()
    backup.restore(model)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_another_model_is_refused_and_left_alone() -> None:
    backup = Backup(small_cnn.model())
    other = nn.Linear(2, 2)
    before = deepcopy(other.state_dict())
    with pytest.raises(PlanError, match="does not fit the model"):
        backup.restore(other)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
