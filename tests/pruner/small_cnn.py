"""A small CNN with 202 neurons in 3 layers, as in the guide's log, and its neuron map written by hand.

The map lets unit tests stand on their own; `test_small_cnn.py` compares it with what `discover` finds.
"""

import numpy as np
import torch
from torch import Tensor, nn

from tracker.fingerprint import structure_fingerprint
from tracker.neuron_map import Integer, NeuronGroup, NeuronMap, Positions, Read, Site

CONV1, CONV2, FC1, CLASSES = 10, 64, 128, 10


class SmallCNN(nn.Module):
    """Digits of 8 × 8 pixels in, ten logits out."""

    def __init__(self, conv1: int = CONV1, conv2: int = CONV2, fc1: int = FC1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, conv1, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(conv1)
        self.conv2 = nn.Conv2d(conv1, conv2, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc1 = nn.Linear(conv2 * 4, fc1)
        self.fc2 = nn.Linear(fc1, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 1, 8, 8) to logits (n, 10)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        x = torch.relu(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc2(x)
        return logits


def images(batch: int = 4, seed: int = 1) -> Tensor:
    """Input that the model takes, shape (batch, 1, 8, 8)."""
    return torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def model(seed: int = 0) -> SmallCNN:
    """The CNN with reproducible random weights, norms and biases, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        cnn = SmallCNN()
        for tensor in (cnn.bn1.weight, cnn.bn1.bias, cnn.bn1.running_mean):
            assert tensor is not None
            nn.init.normal_(tensor)
        assert cnn.bn1.running_var is not None
        nn.init.uniform_(cnn.bn1.running_var, 0.5, 2.0)
    return cnn.eval()


def neuron_map(cnn: SmallCNN) -> NeuronMap:
    """The map that `discover` should find, for the sizes that `cnn` has now."""
    conv1, conv2, fc1 = cnn.conv1.weight.shape[0], cnn.conv2.weight.shape[0], cnn.fc1.weight.shape[0]
    batch_norm = [f"bn1.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    return NeuronMap(
        groups=(
            _group("conv1", conv1, ["conv1.weight", "conv1.bias"], batch_norm, "conv2", -3, 1),
            _group("conv2", conv2, ["conv2.weight", "conv2.bias"], [], "fc1", -1, 4),
            _group("fc1", fc1, ["fc1.weight", "fc1.bias"], [], "fc2", -1, 1, kind="mlp"),
        ),
        integers=(
            Integer("conv1", ("out_channels",), {"conv1": 1}),
            Integer("bn1", ("num_features",), {"conv1": 1}),
            Integer("conv2", ("in_channels",), {"conv1": 1}),
            Integer("conv2", ("out_channels",), {"conv2": 1}),
            Integer("fc1", ("in_features",), {"conv2": 4}),
            Integer("fc1", ("out_features",), {"fc1": 1}),
            Integer("fc2", ("in_features",), {"fc1": 1}),
        ),
        fingerprint=structure_fingerprint(cnn),
        model="SmallCNN",
    )


def _group(
    name: str, size: int, own: list[str], norm: list[str], reader: str, axis: int, k: int, kind: str = "channel"
) -> NeuronGroup:
    single = np.arange(size, dtype=np.int64)[:, None]
    read: Positions = np.arange(size * k, dtype=np.int64).reshape(size, k)
    consumer = Site(f"{reader}.weight", 1)
    return NeuronGroup(
        name=name,
        size=size,
        kind=kind,  # type: ignore[arg-type]
        exact=True,
        producers=tuple(Site(parameter, 0) for parameter in own),
        consumers=(consumer,),
        members={**{Site(parameter, 0): single for parameter in own + norm}, consumer: read},
        reads=(Read(reader, consumer.parameter, axis, read),),
    )
