"""A rule for an operator of your own, added from outside.

Discovery follows neurons through the operators that a model runs. One that it does not know freezes what enters it, and
is named; a rule says what the operator does to the neurons.

    python examples/operator_rule.py

A program of your own imports the module that has the rule. An installed package brings it by these lines of its
pyproject.toml: then the module is imported before the first discovery.

    [project.entry-points."tracker.operators"]
    soft_threshold = "examples.operator_rule"
"""

import torch
from torch import Tensor, nn

from tracker import discover
from tracker.flow import Flow
from tracker.operators import operator_rule


@torch.library.custom_op("examples::soft_threshold", mutates_args=())
def soft_threshold(x: Tensor, limit: float) -> Tensor:
    """Values closer to zero than `limit` become zero, the others move towards it by as much."""
    return x.sign() * (x.abs() - limit).clamp(min=0)


@soft_threshold.register_fake
def _(x: Tensor, limit: float) -> Tensor:
    return torch.empty_like(x)


@operator_rule(torch.ops.examples.soft_threshold)
def each_value_for_itself(flow: Flow, out: Tensor, x: Tensor, limit: float) -> None:
    """What comes out carries the neurons of what went in, axis by axis."""
    flow.put(out, flow.blocks(x))


class Shrinking(nn.Module):
    """Two linear layers around the operator: (batch, 8) to (batch, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(8, 32)
        self.fc2 = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.fc2(torch.ops.examples.soft_threshold(self.fc1(x), 0.1))
        return logits


if __name__ == "__main__":
    print(discover(Shrinking(), torch.randn(16, 8)))
