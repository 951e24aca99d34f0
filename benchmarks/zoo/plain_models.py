"""Plain PyTorch that people write: one model for every way to write one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.zoo.entries import Entry, Example
from torch import Tensor, nn
from torch.nn.utils import parametrizations

_ENTRIES: list[Entry] = []


def entry(build: Callable[[], Example]) -> Callable[[], Example]:
    """Enter the model that a function makes, under the function's name and with its docstring."""
    given = (build.__doc__ or "").strip().rstrip(".")
    _ENTRIES.append(Entry("plain", build.__name__, build, "plain", given))
    return build


def entries() -> Iterator[Entry]:
    """All of them."""
    yield from _ENTRIES


class Written(nn.Module):
    """Layers by name, and a forward given as a function of them and the inputs."""

    def __init__(self, run: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the function says."""
        return self.run(self, *args, **kwargs)


def _mlp(width: int = 64, out: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, width), nn.GELU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))


@entry
def mlp() -> Example:
    """Three linear layers."""
    return Example(_mlp(), (torch.randn(4, 16),))


@entry
def mlp_batch_norm() -> Example:
    """Linear layers with batch norms and dropout."""
    layers = (nn.Linear(16, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Dropout(), nn.Linear(48, 24), nn.PReLU(24))
    return Example(nn.Sequential(*layers, nn.Linear(24, 5)), (torch.randn(4, 16),))


@entry
def small_cnn() -> Example:
    """Convolutions, pooling, flatten, linear."""
    convolutions = (nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2))
    return Example(nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32 * 25, 10)), (torch.randn(2, 1, 28, 28),))


@entry
def residual_cnn() -> Example:
    """Residual blocks with batch norms."""

    def run(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.head(x.mean((2, 3)))

    def block() -> nn.Module:
        first = (nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU())
        return nn.Sequential(*first, nn.Conv2d(48, 24, 3, padding=1), nn.BatchNorm2d(24))

    blocks = nn.ModuleList([block(), block()])
    return Example(Written(run, stem=nn.Conv2d(3, 24, 3), blocks=blocks, head=nn.Linear(24, 5)), (_image(),))


@entry
def depthwise_cnn() -> Example:
    """Depthwise and grouped convolutions."""
    pointwise = (nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, groups=32), nn.SiLU(), nn.Conv2d(32, 64, 1, groups=4))
    return Example(nn.Sequential(*pointwise, nn.ReLU(), nn.Conv2d(64, 8, 1)), (_image(),))


@entry
def group_norm_cnn() -> Example:
    """Group norms."""
    layers = (nn.Conv2d(3, 32, 3), nn.GroupNorm(8, 32), nn.SiLU(), nn.Conv2d(32, 32, 3), nn.GroupNorm(4, 32), nn.ReLU())
    return Example(nn.Sequential(*layers, nn.Conv2d(32, 8, 1)), (_image(),))


@entry
def unet() -> Example:
    """A U-Net: transposed convolutions, skips that are concatenated."""

    def run(self: Any, x: Tensor) -> Tensor:
        first = F.relu(self.enter(x))
        second = F.relu(self.down(first))
        middle = F.relu(self.deep(F.max_pool2d(second, 2)))
        x = F.relu(self.up(torch.cat([self.rise(middle), second], 1)))
        return self.leave(torch.cat([F.interpolate(x, scale_factor=2), first], 1))

    layers = {
        "enter": nn.Conv2d(3, 16, 3, padding=1),
        "down": nn.Conv2d(16, 32, 3, stride=2, padding=1),
        "deep": nn.Conv2d(32, 64, 3, padding=1),
        "rise": nn.ConvTranspose2d(64, 32, 2, stride=2),
        "up": nn.Conv2d(64, 32, 3, padding=1),
        "leave": nn.Conv2d(48, 2, 1),
    }
    return Example(Written(run, **layers), (_image(),))


@entry
def vae() -> Example:
    """A variational autoencoder: two heads, reparametrised."""

    def run(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = F.relu(self.encoder(x))
        mean, log_variance = self.mean(hidden), self.spread(hidden)
        latent = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return torch.sigmoid(self.decoder(latent)), mean, log_variance

    layers = {"encoder": nn.Linear(64, 48), "mean": nn.Linear(48, 8), "spread": nn.Linear(48, 8)}
    decoder = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 64))
    return Example(Written(run, **layers, decoder=decoder), (torch.randn(4, 64),))


@entry
def dcgan_generator() -> Example:
    """A DCGAN generator: transposed convolutions and batch norms."""

    def up(before: int, after: int, stride: int) -> list[nn.Module]:
        return [nn.ConvTranspose2d(before, after, 4, stride, stride // 2, bias=False), nn.BatchNorm2d(after), nn.ReLU()]

    layers = [*up(20, 64, 1), *up(64, 32, 2), *up(32, 16, 2), nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh()]
    return Example(nn.Sequential(*layers), (torch.randn(2, 20, 1, 1),))


@entry
def dcgan_discriminator() -> Example:
    """A discriminator with spectral norms."""
    wide = (nn.Conv2d(3, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 4, 2, 1), nn.LeakyReLU(0.2))
    layers = [parametrizations.spectral_norm(x) if isinstance(x, nn.Conv2d) else x for x in wide]
    return Example(nn.Sequential(*layers, nn.Conv2d(32, 1, 4)), (_image(),))


@entry
def pixel_shuffle() -> Example:
    """Super-resolution by pixel shuffle, twice."""
    layers = (nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.PixelShuffle(2))
    return Example(nn.Sequential(*layers, nn.Conv2d(16, 12, 3, padding=1), nn.PixelShuffle(2)), (_image(),))


@entry
def unfold() -> Example:
    """Patches by `unfold`, folded back."""

    def run(self: Any, x: Tensor) -> Tensor:
        patches = F.unfold(F.relu(self.enter(x)), 4, stride=4).transpose(1, 2)
        hidden = self.narrow(F.gelu(self.wide(patches)))
        return F.fold(hidden.transpose(1, 2), x.shape[-2:], 4, stride=4)

    layers = {"enter": nn.Conv2d(3, 8, 1), "wide": nn.Linear(128, 64), "narrow": nn.Linear(64, 48)}
    return Example(Written(run, **layers), (_image(),))


@entry
def flip() -> Example:
    """Two directions of a sequence by `flip`."""

    def run(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(self.enter(x))
        return self.leave(hidden + self.back(hidden.flip(1)).flip(1).relu())

    layers = {"enter": nn.Linear(16, 32), "back": nn.Linear(32, 32), "leave": nn.Linear(32, 5)}
    return Example(Written(run, **layers), (torch.randn(2, 7, 16),))


@entry
def gather() -> Example:
    """Positions chosen by `gather`."""

    def run(self: Any, x: Tensor, chosen: Tensor) -> Tensor:
        hidden = F.relu(self.enter(x))
        return self.leave(hidden.gather(1, chosen[..., None].expand(-1, -1, hidden.shape[-1])))

    layers = {"enter": nn.Linear(16, 32), "leave": nn.Linear(32, 5)}
    return Example(Written(run, **layers), (torch.randn(2, 7, 16), torch.randint(0, 7, (2, 3))))


@entry
def in_place() -> Example:
    """In-place operators and assignments to slices."""

    def run(self: Any, x: Tensor) -> Tensor:
        hidden = self.enter(x)
        hidden.add_(1).relu_()
        hidden[:, 0] = hidden[:, 0] * 2
        hidden[:, 1:] += self.shift(hidden[:, 1:]).tanh_()
        return self.leave(hidden)

    layers = {"enter": nn.Linear(16, 32), "shift": nn.Linear(32, 32), "leave": nn.Linear(32, 5)}
    return Example(Written(run, **layers), (torch.randn(2, 7, 16),))


@entry
def raw_parameters() -> Example:
    """Matrices, a scale and a shift that are bare parameters."""

    def run(self: Any, x: Tensor) -> Tensor:
        return (torch.relu(x @ self.enter + self.shift) * self.scale) @ self.leave

    numbers = {"enter": (16, 40), "shift": (40,), "scale": (40,), "leave": (40, 5)}
    layers = {name: nn.Parameter(torch.randn(shape)) for name, shape in numbers.items()}
    return Example(Written(run, **layers), (torch.randn(4, 16),))


@entry
def weight_norm() -> Example:
    """Weight norm as a parametrisation, along the outputs."""
    layers = (nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 5))
    normed = [parametrizations.weight_norm(x) if isinstance(x, nn.Linear) else x for x in layers]
    return Example(nn.Sequential(*normed), (torch.randn(4, 16),))


@entry
def temporal_cnn() -> Example:
    """A temporal convolutional network: dilated, causal, weight-normed, residual."""

    def run(self: Any, x: Tensor) -> Tensor:
        x = self.enter(x)
        for step, layer in enumerate(self.layers):
            x = x + F.relu(layer(F.pad(x, (2 * 2**step, 0))))
        return self.leave(x[..., -1])

    made = [parametrizations.weight_norm(nn.Conv1d(32, 32, 3, dilation=2**step)) for step in range(3)]
    layers = {"enter": nn.Conv1d(4, 32, 1), "layers": nn.ModuleList(made), "leave": nn.Linear(32, 5)}
    return Example(Written(run, **layers), (torch.randn(2, 4, 20),))


@entry
def orthogonal() -> Example:
    """An orthogonal parametrisation between two layers."""
    middle = parametrizations.orthogonal(nn.Linear(24, 24))
    layers = (nn.Linear(16, 24), nn.ReLU(), middle, nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 5))
    return Example(nn.Sequential(*layers), (torch.randn(4, 16),))


@entry
def lstm() -> Example:
    """An embedding, a bidirectional LSTM of two layers, a classifier."""

    def run(self: Any, words: Tensor) -> Tensor:
        return self.leave(self.rnn(self.words(words))[0].mean(1))

    rnn = nn.LSTM(24, 32, 2, batch_first=True, bidirectional=True)
    hidden = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 5))
    return Example(Written(run, words=nn.Embedding(50, 24), rnn=rnn, leave=hidden), (torch.randint(0, 50, (2, 9)),))


@entry
def gru() -> Example:
    """A GRU, its last state, two linear layers."""

    def run(self: Any, x: Tensor) -> Tensor:
        return self.leave(self.rnn(x)[1][-1])

    hidden = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 5))
    return Example(Written(run, rnn=nn.GRU(16, 32, 2), leave=hidden), (torch.randn(9, 2, 16),))


@entry
def lstm_cells() -> Example:
    """LSTM cells in a Python loop."""

    def run(self: Any, x: Tensor) -> Tensor:
        state = None
        for step in x:
            state = self.cell(step, state)
        return self.leave(state[0])

    return Example(Written(run, cell=nn.LSTMCell(16, 32), leave=nn.Linear(32, 5)), (torch.randn(5, 2, 16),))


@entry
def multihead_attention() -> Example:
    """`nn.MultiheadAttention` over itself."""

    def run(self: Any, x: Tensor) -> Tensor:
        return self.leave(F.relu(self.wide(x + self.attention(x, x, x, need_weights=False)[0])))

    layers = {"wide": nn.Linear(64, 96), "leave": nn.Linear(96, 5)}
    attention = nn.MultiheadAttention(64, 8, batch_first=True)
    return Example(Written(run, attention=attention, **layers), (torch.randn(2, 9, 64),))


@entry
def cross_attention() -> Example:
    """`nn.MultiheadAttention` from one width to another, with its weights."""

    def run(self: Any, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        answer, weights = self.attention(x, memory, memory)
        return self.leave(answer), weights

    attention = nn.MultiheadAttention(64, 8, batch_first=True, kdim=32, vdim=32)
    inputs = (torch.randn(2, 9, 64), torch.randn(2, 5, 32))
    return Example(Written(run, attention=attention, leave=nn.Linear(64, 5)), inputs)


@entry
def transformer_encoder() -> Example:
    """`nn.TransformerEncoder`, batch first."""
    layer = nn.TransformerEncoderLayer(64, 8, 128, batch_first=True)
    return Example(nn.TransformerEncoder(layer, 2), (torch.randn(2, 9, 64),))


@entry
def transformer_decoder() -> Example:
    """`nn.TransformerDecoder` with a causal mask, norms first."""
    layer = nn.TransformerDecoderLayer(64, 8, 128, norm_first=True, activation="gelu")
    mask = nn.Transformer.generate_square_subsequent_mask(7)
    return Example(nn.TransformerDecoder(layer, 2), (torch.randn(7, 2, 64), torch.randn(9, 2, 64)), {"tgt_mask": mask})


@entry
def transformer() -> Example:
    """`nn.Transformer`."""
    model = nn.Transformer(64, 8, 2, 2, 128, batch_first=True)
    return Example(model, (torch.randn(2, 9, 64), torch.randn(2, 7, 64)))


class SelfAttention(nn.Module):
    """Fused qkv, heads by view, the product written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, positions, width) to the same."""
        batch, positions, width = x.shape
        q, k, v = self.qkv(x).view(batch, positions, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, positions, width))


class KarpathyAttention(nn.Module):
    """As nanoGPT has it: `split` by the width, heads from it, a fused product, a causal mask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.n_head, self.n_embd = heads, width

    def forward(self, x: Tensor) -> Tensor:
        """(batch, positions, width) to the same."""
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k, q, v = (y.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for y in (k, q, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class EinsumAttention(nn.Module):
    """Projections to heads and everything else by `einsum`, with bare parameters."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        head = width // heads
        self.q, self.k, self.v = (nn.Parameter(torch.randn(width, heads, head)) for _ in range(3))
        self.o = nn.Parameter(torch.randn(heads, head, width))
        self.scale = head**-0.5

    def forward(self, x: Tensor) -> Tensor:
        """(batch, positions, width) to the same."""
        q, k, v = (torch.einsum("btd,dhk->bhtk", x, weight) for weight in (self.q, self.k, self.v))
        weights = torch.einsum("bhtk,bhsk->bhts", q, k).mul(self.scale).softmax(-1)
        return torch.einsum("bhtk,hkd->btd", torch.einsum("bhts,bhsk->bhtk", weights, v), self.o)


class Block(nn.Module):
    """A block of a transformer, norms first."""

    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        self.before, self.attention = nn.LayerNorm(width), attention
        self.between = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, positions, width) to the same."""
        x = x + self.attention(self.before(x))
        return x + self.mlp(self.between(x))


def _language_model(attention: Callable[[int, int], nn.Module]) -> Example:
    layers = [nn.Embedding(50, 64), *(Block(attention(64, 8), 64) for _ in range(2)), nn.LayerNorm(64)]
    return Example(nn.Sequential(*layers, nn.Linear(64, 50)), (torch.randint(0, 50, (2, 9)),))


@entry
def handwritten_attention() -> Example:
    """Fused qkv, heads by `view` and `permute`."""
    return _language_model(SelfAttention)


@entry
def nano_gpt() -> Example:
    """Attention as in nanoGPT."""
    return _language_model(KarpathyAttention)


@entry
def einsum_attention() -> Example:
    """Attention by `einsum` with bare parameters."""
    return _language_model(EinsumAttention)


@entry
def tied_embeddings() -> Example:
    """A language model whose output layer is its embedding."""

    def run(self: Any, words: Tensor) -> Tensor:
        return self.leave(self.block(self.words(words)))

    words, leave = nn.Embedding(50, 64), nn.Linear(64, 50, bias=False)
    leave.weight = words.weight
    return Example(
        Written(run, words=words, block=Block(SelfAttention(64, 8), 64), leave=leave), (torch.randint(0, 50, (2, 9)),)
    )


@entry
def gated_mlp() -> Example:
    """SwiGLU by `chunk`, an RMS norm written out."""

    def run(self: Any, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.norm
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)

    layers = {"gate_up": nn.Linear(32, 192), "down": nn.Linear(96, 5), "norm": nn.Parameter(torch.ones(32))}
    return Example(Written(run, **layers), (torch.randn(2, 7, 32),))


@entry
def experts() -> Example:
    """A mixture of experts: a dense softmax over a list of MLPs."""

    def run(self: Any, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        return torch.stack([expert(x) for expert in self.experts], -1).mul(weights[:, None]).sum(-1)

    made = nn.ModuleList([_mlp(48) for _ in range(4)])
    return Example(Written(run, experts=made, router=nn.Linear(16, 4)), (torch.randn(6, 16),))


@entry
def squeeze_excitation() -> Example:
    """Channels scaled by a gate computed from themselves."""

    def run(self: Any, x: Tensor) -> Tensor:
        x = F.relu(self.enter(x))
        return self.leave(x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid())

    gate = nn.Sequential(nn.Conv2d(32, 8, 1), nn.ReLU(), nn.Conv2d(8, 32, 1))
    return Example(Written(run, enter=nn.Conv2d(3, 32, 3), gate=gate, leave=nn.Conv2d(32, 5, 1)), (_image(),))


@entry
def dense_block() -> Example:
    """Everything before concatenated, as in DenseNet."""

    def run(self: Any, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, F.relu(layer(x))], 1)
        return self.leave(x)

    made = nn.ModuleList([nn.Conv2d(3 + 12 * i, 12, 3, padding=1) for i in range(3)])
    return Example(Written(run, layers=made, leave=nn.Conv2d(39, 5, 1)), (_image(),))


@entry
def channel_shuffle() -> Example:
    """Two branches by `chunk`, shuffled, as in ShuffleNet."""

    def run(self: Any, x: Tensor) -> Tensor:
        left, right = self.enter(x).chunk(2, 1)
        x = torch.cat([left, F.relu(self.branch(right))], 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.leave(F.relu(x))

    layers = {"enter": nn.Conv2d(3, 32, 1), "branch": nn.Conv2d(16, 16, 3, padding=1), "leave": nn.Conv2d(32, 5, 1)}
    return Example(Written(run, **layers), (_image(),))


@entry
def used_twice() -> Example:
    """A layer that is applied twice, with others between."""

    def run(self: Any, x: Tensor) -> Tensor:
        hidden = F.relu(self.enter(x))
        hidden = F.relu(self.shared(hidden))
        return self.leave(F.relu(self.shared(self.between(hidden).tanh())))

    layers = {"enter": nn.Linear(16, 32), "shared": nn.Linear(32, 48), "between": nn.Linear(48, 32)}
    return Example(Written(run, **layers, leave=nn.Linear(48, 5)), (torch.randn(4, 16),))


@entry
def siamese() -> Example:
    """One encoder for two inputs, their distance scored."""

    def run(self: Any, left: Tensor, right: Tensor) -> Tensor:
        return self.score((self.encoder(left) - self.encoder(right)).abs())

    layers = {"encoder": _mlp(48, 24), "score": nn.Linear(24, 1)}
    return Example(Written(run, **layers), (torch.randn(4, 16), torch.randn(4, 16)))


@entry
def shared_module() -> Example:
    """One module under two names."""
    shared = nn.Linear(32, 32)
    layers = (nn.Linear(16, 32), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(32, 5))
    return Example(nn.Sequential(*layers), (torch.randn(4, 16),))


@dataclass
class Scene:
    """An input of several tensors."""

    image: Tensor
    words: Tensor


@dataclass
class Verdict:
    """An output of several tensors."""

    scores: Tensor
    hidden: Tensor


@entry
def dataclasses_in_and_out() -> Example:
    """A dataclass goes in, a dataclass comes out."""

    def run(self: Any, scene: Scene) -> Verdict:
        hidden = F.relu(self.look(scene.image.flatten(1)) + self.read(scene.words))
        return Verdict(self.leave(hidden), self.more(hidden))

    layers = {
        "look": nn.Linear(48, 40),
        "read": nn.Linear(16, 40),
        "leave": nn.Linear(40, 5),
        "more": nn.Linear(40, 3),
    }
    return Example(Written(run, **layers), (Scene(torch.randn(4, 3, 4, 4), torch.randn(4, 16)),))


@entry
def dictionaries() -> Example:
    """A dict of tensors and a list go in, nested dicts and tuples come out."""

    def run(self: Any, batch: dict[str, Tensor], scales: list[Tensor]) -> dict[str, Any]:
        hidden = F.relu(self.left(batch["left"]) + self.right(batch["right"]) * scales[0])
        return {"scores": self.leave(hidden), "more": (self.more(hidden), {"sum": self.leave(hidden).sum()})}

    layers = {
        "left": nn.Linear(16, 40),
        "right": nn.Linear(8, 40),
        "leave": nn.Linear(40, 5),
        "more": nn.Linear(40, 3),
    }
    batch = {"left": torch.randn(4, 16), "right": torch.randn(4, 8)}
    return Example(Written(run, **layers), (batch, [torch.randn(4, 1)]))


@entry
def keyword_inputs() -> Example:
    """Optional keywords, and a flag that chooses a branch."""

    def run(self: Any, x: Tensor, *, mask: Tensor | None = None, deep: bool = False) -> Tensor:
        hidden = F.relu(self.enter(x))
        hidden = F.relu(self.more(hidden)) if deep else hidden
        return self.leave(hidden if mask is None else hidden * mask[..., None])

    layers = {"enter": nn.Linear(16, 32), "more": nn.Linear(32, 32), "leave": nn.Linear(32, 5)}
    return Example(Written(run, **layers), (torch.randn(2, 7, 16),), {"mask": torch.ones(2, 7), "deep": True})


@entry
def mlp_mixer() -> Example:
    """Mixing over patches and over channels by `transpose`."""

    def run(self: Any, x: Tensor) -> Tensor:
        x = self.enter(x).flatten(2).transpose(1, 2)
        x = x + self.patches(x.transpose(1, 2)).transpose(1, 2)
        return self.leave((x + self.channels(x)).mean(1))

    layers = {"enter": nn.Conv2d(3, 32, 8, 8), "leave": nn.Linear(32, 5)}
    patches = nn.Sequential(nn.Linear(16, 48), nn.GELU(), nn.Linear(48, 16))
    channels = nn.Sequential(nn.Linear(32, 96), nn.GELU(), nn.Linear(96, 32))
    return Example(Written(run, patches=patches, channels=channels, **layers), (torch.randn(2, 3, 32, 32),))


@entry
def feature_pyramid() -> Example:
    """A pyramid: lateral and top-down paths, several outputs."""

    def run(self: Any, x: Tensor) -> list[Tensor]:
        features = []
        for layer in self.down:
            x = F.relu(layer(x))
            features.append(x)
        top, answers = None, []
        for lateral, feature in zip(reversed(self.lateral), reversed(features), strict=True):
            top = lateral(feature) if top is None else lateral(feature) + F.interpolate(top, scale_factor=2)
            answers.append(self.leave(top))
        return answers

    widths = (3, 16, 24, 32)
    down = nn.ModuleList([nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths)])
    lateral = nn.ModuleList([nn.Conv2d(width, 20, 1) for width in widths[1:]])
    return Example(Written(run, down=down, lateral=lateral, leave=nn.Conv2d(20, 5, 3, padding=1)), (_image(),))


@entry
def three_dimensions() -> Example:
    """Convolutions over volumes."""
    layers = (nn.Conv3d(1, 16, 3), nn.BatchNorm3d(16), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(16, 24, 3), nn.ReLU())
    return Example(nn.Sequential(*layers, nn.Flatten(), nn.Linear(24 * 8, 5)), (torch.randn(2, 1, 10, 10, 10),))


def _image() -> Tensor:
    return torch.randn(2, 3, 16, 16)
