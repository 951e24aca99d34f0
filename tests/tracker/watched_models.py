"""Small models with every kind of read, and what plain hooks see in them."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CNN_INPUT = (5, 1, 8, 8)


class CNN(nn.Module):
    """A convolution that feeds another, a flattened one that feeds a linear layer, batch norm and dropout between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3, stride=2, padding=1)
        self.dropout = nn.Dropout(0.5)
        self.fc1 = nn.Linear(4 * 16, 10)
        self.fc2 = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv1(x)))
        x = F.relu(self.conv2(x)).flatten(1)
        return self.fc2(self.dropout(F.relu(self.fc1(x))))


class Encoder(nn.Module):
    """One block of a sentence encoder: heads, a GELU layer, padding, and a residual stream under layer norm."""

    def __init__(self, width: int = 12, heads: int = 3, hidden: int = 20) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(11, width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.classify = nn.Linear(width, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        visible = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        x = self.norm1(x + self.out(mixed.transpose(1, 2).flatten(-2)))
        x = self.norm2(x + self.down(F.gelu(self.up(x))))
        return self.classify(x[:, 0])


class Raw(nn.Module):
    """Weights without layers: products with raw parameters, from the right, from the left, and by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(8, 6))
        self.second = nn.Parameter(torch.randn(6, 5))
        self.third = nn.Parameter(torch.randn(4, 5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(torch.relu(x @ self.first) @ self.second)
        return (self.third @ hidden.T).T


def images(batches: int = 3, size: int = 5) -> list[tuple[Tensor, Tensor]]:
    """Batches of (image, class)."""
    return [(torch.randn(size, *CNN_INPUT[1:]), torch.randint(3, (size,))) for _ in range(batches)]


def sentences(batches: int = 2, padded: bool = True) -> list[dict[str, Tensor]]:
    """Batches of token ids; with padding, sentences of 1 to 7 tokens."""
    found = []
    for _ in range(batches):
        mask = torch.arange(7)[None] < torch.randint(1, 8, (4, 1)) if padded else torch.ones(4, 7, dtype=torch.bool)
        found.append({"input_ids": torch.randint(11, (4, 7)), "attention_mask": mask.long()})
    return found


def what_enters(model: nn.Module, layer: str, batches: Iterable[Any], run: Callable[[Any], Any]) -> list[Tensor]:
    """The first input of a layer in every batch, in evaluation mode, by a hook of its own."""
    seen: list[Tensor] = []
    mode = model.training
    with ExitStack() as stack:
        handle = model.get_submodule(layer).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        stack.callback(handle.remove)
        model.eval()
        with torch.no_grad():
            for batch in batches:
                run(batch)
    model.train(mode)
    return seen


def by_neuron(inputs: Iterable[Tensor], axis: int) -> np.ndarray:
    """All values of each channel, shape (values, channels), in float64."""
    return torch.cat([x.double().movedim(axis, -1).flatten(0, -2) for x in inputs]).numpy()
