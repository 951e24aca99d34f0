"""A rule for an operator, added from outside."""

from pathlib import Path

import pytest
import torch
from tests.examples.entry_points import answer_with_installed

from examples import operator_rule as example
from pruner import PruningPlan, prune_
from tracker import discover
from tracker.operators import registry


def test_without_a_rule_the_neurons_are_frozen_and_the_operator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(registry._RULES, torch.ops.examples.soft_threshold)
    neurons = discover(example.Shrinking(), torch.randn(16, 8))
    assert len(neurons) == 0
    assert list(neurons.operators_without_rule) == ["examples.soft_threshold.default"]


def test_with_the_rule_they_are_found() -> None:
    neurons = discover(example.Shrinking(), torch.randn(16, 8))
    assert [(group.name, group.size, group.exact) for group in neurons] == [("fc1", 32, True)]
    assert not neurons.operators_without_rule


def test_and_removing_them_is_proven() -> None:
    model, inputs = example.Shrinking(), torch.randn(16, 8)
    discover(model, inputs)
    result = prune_(model, PruningPlan({"fc1": range(0, 32, 2)}))
    assert model.fc1.weight.shape == (16, 8)
    assert result.proof is not None
    assert result.proof.holds
    assert result.proof.error < 1e-5


def test_an_installed_package_brings_it(tmp_path: Path) -> None:
    code = """
        import sys, torch
        from tracker import discover
        before = "examples.operator_rule" in sys.modules
        discover(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)), torch.randn(2, 4))
        print(before, "examples.operator_rule" in sys.modules)
    """
    assert answer_with_installed(example, tmp_path, code) == "False True"
