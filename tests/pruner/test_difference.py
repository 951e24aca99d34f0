"""What is measured between the answers of two models."""

import pytest
import torch
from torch import Tensor

from pruner.difference import Difference, accuracy, between
from tracker.batches import Batch

TARGET = torch.tensor([0, 1, -100])


def batch(target: Tensor | None = None) -> Batch:
    return Batch(target=target)


def test_the_error_is_relative_to_all_that_was_said_before() -> None:
    before = [{"output": torch.tensor([[3.0, 0.0]])}, {"output": torch.tensor([[0.0, 4.0]])}]
    after = [{"output": torch.tensor([[3.0, 0.0]])}, {"output": torch.tensor([[1.0, 4.0]])}]
    assert between(before, after, [batch(), batch()]) == Difference(0.2, 1.0)
    assert between(before, before, [batch(), batch()]) == Difference(0.0, 1.0)


def test_where_nothing_was_said_before_anything_is_all_new() -> None:
    nothing, something = [{"output": torch.zeros(1, 2)}], [{"output": torch.ones(1, 2)}]
    assert between(nothing, nothing, [batch()]).relative_error == 0
    assert between(nothing, something, [batch()]).relative_error == 1


def test_logits_come_before_other_outputs() -> None:
    before = [{"output.loss": torch.ones(()), "output.logits": torch.eye(2)}]
    after = [{"output.loss": torch.zeros(()), "output.logits": torch.eye(2)[[0, 0]]}]
    assert between(before, after, [batch()]) == Difference(1.0, 0.5)


@pytest.mark.parametrize(
    ("output", "target", "classes"),
    [
        (torch.randn(3, 5), None, True),
        (torch.randn(3, 4, 5), None, False),  # an image, or hidden states
        (torch.randn(3, 4, 5), torch.zeros(3, 4, dtype=torch.long), True),
        (torch.randn(3, 4, 5), torch.zeros(3, 4), False),
        (torch.randn(3, 1), None, False),
        (torch.randn(()), None, False),
        (torch.randn(3, 5, dtype=torch.complex64), None, False),
    ],
)
def test_only_classes_have_a_first_choice(output: Tensor, target: Tensor | None, classes: bool) -> None:
    assert (between([{"output": output}], [{"output": output}], [batch(target)]).top1_agreement == 1.0) is classes


def test_accuracy_is_that_of_the_targets_that_count() -> None:
    answers = [{"output": torch.tensor([[2.0, 1.0], [2.0, 1.0], [0.0, 1.0]])}]
    assert accuracy(answers, [batch(TARGET)]) == 0.5
    assert accuracy(answers, [batch()]) is None
    assert accuracy(answers, [batch(TARGET.float())]) is None
    assert accuracy(answers, [batch(TARGET[:2])]) is None
    assert accuracy(answers, [batch(torch.full((3,), -100))]) is None
