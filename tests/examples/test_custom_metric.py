"""A metric added from outside."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.examples.entry_points import answer_with_installed

from examples import custom_metric as example
from neuronscope import reference
from neuronscope.data_names import digits
from neuronscope.digits import DigitsCNN
from pruner import compute_metrics, metrics
from tracker import discover
from tracker.batches import Batch


@pytest.fixture
def registered() -> Iterator[None]:
    metrics.register("agreement")(example.agreement)
    yield
    metrics.unregister("agreement")


def test_it_counts_equal_answers() -> None:
    original = torch.nn.Linear(2, 2, bias=False)
    other = copy.deepcopy(original)
    original.weight.data = torch.eye(2)
    other.weight.data = torch.tensor([[1.0, 0.0], [1.0, 0.5]])  # answers 1 wherever the second input is positive
    inputs = torch.tensor([[3.0, 1.0], [3.0, -1.0], [1.0, 2.0], [2.0, -2.0]])
    assert example.agreement(other, original, Batch((inputs,))) == 0.75


def test_it_is_among_the_metrics(registered: None) -> None:
    model = DigitsCNN().eval()
    discover(model, torch.rand(4, 1, 8, 8))
    assert compute_metrics(model, model)["custom"] == {"agreement": 1.0}


def test_pruning_moves_it(registered: None) -> None:
    found = example.agreements(reference.load("digits-cnn").model, digits()[1], [0.0, 0.6])
    assert found[0.0] == 1.0
    assert found[0.6] < 1.0


def test_an_installed_package_offers_it(tmp_path: Path) -> None:
    code = """
        import torch
        from pruner import compute_metrics
        from tracker import discover
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        discover(model, torch.randn(5, 4))
        print(compute_metrics(model, model)["custom"])
    """
    assert answer_with_installed(example, tmp_path, code) == "{'agreement': 1.0}"
