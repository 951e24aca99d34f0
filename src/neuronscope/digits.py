"""A small residual network that reads handwritten digits, trained in seconds: what the demo prunes.

From the command line: `neuronscope prune neuronscope.digits:trained_cnn --data digits`.
"""

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from neuronscope.data_names import digits
from tracker.progress import progress

CLASSES = 10
_LEARNING_RATE = 2e-3
_WEIGHT_DECAY = 0.05
# How far every scale of a batch norm moves towards zero at each step, at the full learning rate.
_SHRINK = 0.006


class ResidualBlock(nn.Module):
    """Two convolutions beside a skip connection: (B, inner, H, W) to (B, outer, H / stride, W / stride)."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outer)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inner != outer:
            self.skip = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps in, feature maps out."""
        inside = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(inside)) + self.skip(x))


class DigitsCNN(nn.Module):
    """Images (B, 1, 8, 8) to logits (B, 10): a convolution, three residual blocks, two linear layers; 1024 neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(64)
        self.block1 = ResidualBlock(64, 64)
        self.block2 = ResidualBlock(64, 128, stride=2)
        self.block3 = ResidualBlock(128, 256, stride=2)
        self.fc1 = nn.Linear(256, 128)
        self.fc2 = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """One logit for each digit."""
        x = torch.relu(self.norm1(self.conv1(x)))
        x = self.block3(self.block2(self.block1(x)))
        x = torch.relu(self.fc1(x.mean((2, 3))))
        logits: Tensor = self.fc2(x)
        return logits


def trained_cnn(epochs: int = 6, seed: int = 0) -> DigitsCNN:
    """A `DigitsCNN` trained on the digits, in evaluation mode: about 99 % right on the images held out.

    The same seed gives the same network on the same machine with the same number of threads; the caller's random
    numbers stay as they are.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitsCNN()
        if model.fc1.weight.is_meta:  # a checkpoint is being loaded: it wants the shapes, and there is nothing to train
            return model.eval()
        train(model, digits(batch_size=64)[0], epochs)
    return model


def train(model: nn.Module, batches: DataLoader[Any], epochs: int) -> None:
    """Train a classifier with batch norms so that it leaves the channels idle that it does not need.

    The scales and shifts of the batch norms are shrunk a little at every step (Liu et al. 2017, "Learning Efficient
    Convolutional Networks through Network Slimming"; a proximal step in place of the paper's subgradient, so that they
    become exactly zero). The scales start out uniform in [0, 1], so that there is something to choose between.
    """
    steps = epochs * len(batches)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight)
    model.train()
    for images, labels in progress(chain.from_iterable(batches for _ in range(epochs)), "Training", total=steps):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shrink = _SHRINK * float(schedule.get_last_lr()[0]) / _LEARNING_RATE
        for norm in norms:
            for parameter in (norm.weight, norm.bias):
                parameter.data = F.softshrink(parameter.data, shrink)
        schedule.step()
    model.eval()
