"""Models in unusual places: slots, lists, copies, averages, pipelines; pruned again and again."""

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from tests.pruner.small_net import GONE, PLAN, Net, X, expected, net, pruned, says
from torch import Tensor, nn
from torch.nn.functional import linear

from pruner.apply import prune_
from pruner.lineage import pruning_history
from pruner.plan import PruningPlan
from tracker.discover import discover
from tracker.errors import DiscoveryError


def test_attributes_in_slots_are_left_alone() -> None:
    class Slotted(Net):
        __slots__ = ("divisor", "last")

        def __init__(self) -> None:
            super().__init__()
            self.divisor = 8

        def forward(self, x: Tensor) -> Tensor:
            self.last = torch.relu(self.fc1(x))
            return self.fc2(self.last) / self.divisor

    model = Slotted().double()
    wanted = expected(model) / 8
    pruned(model)
    says(model, wanted)
    assert model.divisor == 8
    assert model.last.shape == (4, 5)


def test_a_second_and_a_third_pruning() -> None:
    model = net()
    first, second = ([p.detach().clone() for p in layer.parameters()] for layer in (model.fc1, model.fc2))
    left = list(range(8))
    for gone in ([1], [0, 3], [2]):
        left = [neuron for at, neuron in enumerate(left) if at not in gone]
        pruned(model, plan=PruningPlan({"fc1": gone}))
        hidden = torch.relu(linear(X, first[0][left], first[1][left]))
        says(model, linear(hidden, second[0][:, left], second[1]))
    assert len(pruning_history(model)) == 3


def _saved(model: nn.Module) -> nn.Module:
    memory = io.BytesIO()
    torch.save(model, memory)
    memory.seek(0)
    loaded: nn.Module = torch.load(memory, weights_only=False)
    return loaded


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), _saved],  # noqa: S301 (just written)
    ids="copied pickled saved".split(),
)
def test_copies_are_pruned_for_themselves(again: Callable[[nn.Module], nn.Module]) -> None:
    model = net()
    neurons = discover(model, X)
    wanted, whole = expected(model), model(X).detach()
    copied = again(model)
    prune_(copied, PLAN, neurons)
    says(copied, wanted)
    says(model, whole)
    twice = again(copied)
    pruned(twice, plan=PruningPlan({"fc1": [0]}))
    assert len(pruning_history(twice)) == 2
    says(copied, wanted)


def test_an_averaged_model_is_pruned_as_a_model() -> None:
    averaged = torch.optim.swa_utils.AveragedModel(net())
    wanted = expected(averaged.module)
    pruned(averaged, plan=PruningPlan({"module.fc1": GONE}))
    says(averaged, wanted)


def test_layers_in_a_plain_list_keep_their_width() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.Linear(5, 8).double()]
            self.rest = Net().double()
            self.rest.fc1 = nn.Linear(8, 8).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(torch.relu(self.layers[0](x)))

    model = Hidden()
    wanted = expected(model.rest, torch.relu(model.layers[0](X)).detach())
    pruned(model, plan=PruningPlan({"rest.fc1": GONE}))
    says(model, wanted)
    assert model.layers[0].weight.shape == (8, 5)


def test_the_models_of_a_pipeline_are_pruned_one_by_one() -> None:
    pipeline = {"encoder": net(), "decoder": net()}
    with pytest.raises(DiscoveryError, match="'encoder', 'decoder'"):
        discover(pipeline, X)
    for model in pipeline.values():
        pruned(model)
