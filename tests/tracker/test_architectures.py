"""Whole architectures: which neurons are found in them, and that sliced equals masked for every exact group."""

from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from tests.tracker.equivalence import check_exact, check_runs
from torch import Tensor, nn
from torch.nn import functional as F

TOKENS = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(0))
GQA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PLAIN = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100,
    "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("GPT2LMHeadModel", {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 100},
         {"attention": [4, 4], "mlp": [128, 128], "residual": [32]}),
        ("LlamaForCausalLM", GQA, {"attention": [2, 2], "mlp": [48, 48], "residual": [32]}),
        ("Qwen3ForCausalLM", {**GQA, "head_dim": 8}, {"attention": [2, 2], "mlp": [48, 48], "residual": [32]}),
        ("Gemma2ForCausalLM", {**GQA, "head_dim": 8}, {"attention": [2, 2], "mlp": [48, 48], "residual": [32]}),
        ("GPTNeoXForCausalLM", PLAIN, {"attention": [4, 4], "mlp": [48, 48], "residual": [32]}),
        ("BertModel", PLAIN, {"attention": [4, 4], "mlp": [48, 48]}),
        ("DistilBertModel", {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "vocab_size": 100},
         {"attention": [4, 4], "mlp": [48, 48]}),
        ("ModernBertModel", PLAIN, {"attention": [4, 4], "mlp": [48, 48]}),
    ],
)  # fmt: skip
def test_transformers(name: str, config: dict[str, Any], expected: dict[str, list[int]]) -> None:
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**config)).eval()
    found = check_exact(model, kwargs={"input_ids": TOKENS, **({"use_cache": False} if "LM" in name else {})}, draws=2)
    sizes: dict[str, list[int]] = {}
    for group in found:
        sizes.setdefault(group.kind, []).append(group.size)
    assert sizes == expected
    assert all(group.exact == (group.kind != "residual") for group in found)


def test_encoder_and_decoder() -> None:
    config = transformers.BartConfig(
        vocab_size=100, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=48, decoder_ffn_dim=48,
        encoder_attention_heads=4, decoder_attention_heads=4,
    )  # fmt: skip
    model = transformers.BartForConditionalGeneration(config).eval()
    found = check_exact(model, kwargs={"input_ids": TOKENS, "decoder_input_ids": TOKENS, "use_cache": False}, draws=2)
    assert Counter(group.kind for group in found) == {"attention": 3, "mlp": 2}


def test_vision_transformer() -> None:
    config = transformers.ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8
    )
    found = check_exact(transformers.ViTModel(config).eval(), torch.randn(2, 3, 16, 16), draws=2)
    assert Counter(group.kind for group in found) == {"attention": 2, "mlp": 2}


class ResidualCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.outer = nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.Conv2d(12, 8, 3, padding=1)
        self.depth, self.point = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 10, 1)
        self.squeeze, self.excite = nn.Linear(10, 4), nn.Linear(4, 10)
        self.up, self.head = nn.ConvTranspose2d(10, 6, 2, stride=2), nn.Linear(6 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.max_pool2d(F.relu(x + self.outer(F.relu(self.inner(x)))), 2)
        x = self.point(self.depth(x))
        x = x * self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()[:, :, None, None]
        result: Tensor = self.head(F.relu(self.up(x)).flatten(1))
        return result


def test_residual_cnn() -> None:
    found = check_exact(ResidualCNN(), torch.randn(2, 3, 8, 8))
    assert {group.name: (group.size, group.kind) for group in found} == {
        "stem": (8, "channel"),
        "inner": (12, "channel"),
        "point": (10, "channel"),
        "squeeze": (4, "mlp"),
        "up": (6, "channel"),
    }
    assert {("outer.weight", 0), ("stem.weight", 0)} <= set(found["stem"].producers)
    assert {("inner.weight", 1), ("point.weight", 1)} <= set(found["stem"].consumers)
    assert found["outer"] is found["stem"]
    assert found["up"].slices([0])[("head.weight", 1)].tolist() == list(range(64))  # type: ignore[index]
    follows = {(i.module, i.path): dict(i.follows) for i in found.integers}
    assert follows["depth", ("groups",)] == {"stem": 1}
    assert follows["head", ("in_features",)] == {"up": 64}


def test_recurrent_layers() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.inner = nn.Embedding(20, 6), nn.Linear(6, 7)
            self.lstm, self.head = nn.LSTM(7, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, ids: Tensor) -> Tensor:
            result: Tensor = self.head(self.lstm(F.relu(self.inner(self.embed(ids))))[0])
            return result

    found = check_exact(Recurrent(), torch.randint(0, 20, (2, 5)), groups=["embed", "inner", "lstm"])
    assert found["lstm"].size == 8


class Attention(nn.Module):
    """Heads written as people write them; `way` is where the head count and the widths come from."""

    def __init__(self, way: str, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.way, self.heads, self.head_dim, self.width = way, heads, width // heads, width
        self.qkv, self.out = nn.Linear(10, 3 * width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        if self.way == "fused":
            q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        else:
            parts = self.qkv(x).chunk(3, -1) if self.way == "chunk" else self.qkv(x).split(self.width, -1)
            q, k, v = (part.view(batch, tokens, -1, self.head_dim).transpose(1, 2) for part in parts)
        if self.way == "sdpa scale":
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1) @ v
        size = -1 if self.way != "product" else self.heads * self.head_dim
        merged = mixed.transpose(1, 2).reshape(batch, tokens, size)
        result: Tensor = self.out(merged)
        return result


@pytest.mark.parametrize("way", ["fused", "chunk", "split", "sdpa scale"])
def test_heads_are_neurons_however_they_are_written(way: str) -> None:
    found = check_exact(Attention(way), torch.randn(2, 5, 10))
    assert [(group.name, group.size, group.kind) for group in found] == [("qkv", 4, "attention")]


def test_widths_that_are_constants_in_the_code_follow_the_heads() -> None:
    class Fixed(Attention):
        def forward(self, x: Tensor) -> Tensor:
            batch, tokens, _ = x.shape
            q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, 6).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            result: Tensor = self.out(mixed.reshape(batch, tokens, 24))  # whatever the heads are
            return result

    found = check_exact(Fixed("fused"), torch.randn(2, 5, 10))
    assert [(group.kind, group.size) for group in found] == [("attention", 4)]


def test_inexact_widths_run_at_every_size() -> None:
    config = transformers.LlamaConfig(**GQA)
    found = check_runs(transformers.LlamaForCausalLM(config).eval(), kwargs={"input_ids": TOKENS, "use_cache": False})
    assert [group.kind for group in found if not group.exact] == ["residual"]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_query_heads_go_by_themselves_if_asked(implementation: str) -> None:
    config = transformers.LlamaConfig(**GQA, attn_implementation=implementation)
    model = transformers.LlamaForCausalLM(config).eval()
    options = {"input_ids": TOKENS, "use_cache": False}
    together, apart = (check_exact(model, kwargs=options, query_heads=chosen) for chosen in (False, True))
    queries = config.num_attention_heads // config.num_key_value_heads
    for found, size in ((together, config.num_key_value_heads), (apart, queries)):
        heads = found["model.layers.0.self_attn.q_proj"]
        assert (heads.kind, heads.size, heads.exact) == ("attention", size, True)
    assert "model.layers.0.self_attn.k_proj" not in apart
    assert not any(site.parameter.endswith("k_proj.weight") and site.dim == 0 for site in heads.producers)


def test_query_heads_of_one_operator() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.kv, self.out = nn.Linear(10, 24), nn.Linear(10, 16), nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            q = self.q(x).unflatten(-1, (-1, 4)).transpose(1, 2)
            k, v = self.kv(x).unflatten(-1, (2, -1, 4)).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
            return result

    for chosen, size in ((False, 2), (True, 3)):
        found = check_exact(Shared(), torch.randn(2, 5, 10), query_heads=chosen)
        assert [group.size for group in found] == [size]
