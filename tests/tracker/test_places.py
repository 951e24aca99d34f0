"""Places are lines of the model's own code, not of ours or PyTorch's."""

import pytest
import torch
from torch import nn

from tracker.places import raising, running


class Asks(nn.Module):
    """Says where it runs, or fails inside of PyTorch."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.fails = fails

    def forward(self, x: torch.Tensor) -> object:
        return torch.nn.functional.linear(x, x) if self.fails else running()


def test_the_running_line() -> None:
    assert Asks(False)(torch.ones(2, 3)) == f"test_places.py:{Asks.forward.__code__.co_firstlineno + 1}"


def test_the_line_that_let_an_error_through() -> None:
    with pytest.raises(RuntimeError) as caught:
        nn.Sequential(Asks(True))(torch.ones(2, 3, 4))
    assert raising(caught.value) == f"test_places.py:{Asks.forward.__code__.co_firstlineno + 1}"


def test_errors_that_never_were_raised_have_no_place() -> None:
    assert raising(ValueError("made, not raised")) == ""
