"""Small models with everything that makes surgery hard: skips, groups, gates, heads, tied and shared weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, relu, scaled_dot_product_attention, silu
from torch.nn.utils.parametrize import register_parametrization


class ResidualCNN(nn.Module):
    """A stem, a residual block with batch norm, a depthwise convolution, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.conv1 = nn.Conv2d(6, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.fc1 = nn.Linear(6 * 4, 10)
        self.fc2 = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn(self.stem(x)))
        x = x + self.conv2(relu(self.bn1(self.conv1(x))))
        x = adaptive_avg_pool2d(relu(self.depthwise(x)), 2).flatten(1)
        logits: Tensor = self.fc2(torch.tanh(self.fc1(x)))
        return logits


class Gated(nn.Module):
    """A gated MLP; its hidden width is also an attribute inside a tuple, by which it splits."""

    def __init__(self, width: int = 6, hidden: int = 8) -> None:
        super().__init__()
        self.pieces = (hidden, hidden)
        self.up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.up(x).split(self.pieces, dim=-1)
        out: Tensor = self.down(silu(gate) * up)
        return out


class Attention(nn.Module):
    """Attention over heads; `num_heads` is computed with."""

    def __init__(self, width: int = 6, heads: int = 3, head_dim: int = 2) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(width, 3 * heads * head_dim)
        self.out = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = scaled_dot_product_attention(q, k, v).transpose(1, 2)
        out: Tensor = self.out(y.reshape(batch, tokens, self.num_heads * self.head_dim))
        return out


class TiedTransformer(nn.Module):
    """Tokens in, logits out: the embedding is also the head, one gated MLP serves twice, and a buffer is not stored."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.attention = Attention()
        self.first = Gated()
        self.second = self.first
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        x = self.embed(ids)
        x = x + self.attention(self.norm(x))
        x = x + self.first(self.norm(x))
        x = x + self.second(self.norm(x)) * self.scale
        logits = self.head(x)
        return {"logits": logits, "confidence": logits.logsumexp(-1)}


class Doubled(nn.Module):
    """A parametrization: the weight that is used is twice the one that is kept."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Parametrized(nn.Module):
    """An MLP with a layer that does not learn, and one whose weight is computed from another parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(5, 8)
        self.fc2 = nn.Linear(8, 7)
        register_parametrization(self.fc2, "weight", Doubled())
        self.fc3 = nn.Linear(7, 2)
        for parameter in self.fc1.parameters():
            parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = relu(self.fc2(relu(self.fc1(x))))
        return self.fc3(hidden), x


class Case(NamedTuple):
    """How to build a model, and inputs for it."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]


CASES = {
    "cnn": Case(ResidualCNN, lambda: torch.randn(3, 1, 8, 8)),
    "transformer": Case(TiedTransformer, lambda: torch.randint(0, 11, (2, 5))),
    "parametrized": Case(Parametrized, lambda: torch.randn(4, 5)),
}


def randomised(model: nn.Module) -> nn.Module:
    """Weights, norms, biases and statistics all random: the usual initial values hide errors."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return model


def case(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Any]:
    """A model of `CASES` with random weights, and inputs."""
    torch.manual_seed(0)
    model = randomised(CASES[name].build().to(dtype)).eval()
    inputs = CASES[name].inputs()
    return model, inputs.to(dtype) if inputs.is_floating_point() else inputs
