"""`python -m neuronscope.reference NAME`: make a reference model anew, with its tokenizer and its card."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from neuronscope.digits import CLASSES, trained_cnn
from neuronscope.reference import corpus, data, training
from neuronscope.reference.architectures import CONTEXT, LANGUAGE_MODELS, VOCABULARY, Size, checked
from neuronscope.reference.card import write_card
from neuronscope.reference.measure import measured, unigram_loss
from neuronscope.reference.shipped import load, place, save, tokenizer_of
from tracker.errors import ModelNameError, NeuronScopeError

HELD_OUT_BATCHES = 24
UNFINISHED = "unfinished.safetensors"
EPOCHS = 6  # of the convolutional network
STEPS = 2500
"""About half an hour for a language model on one core, two minutes for the vision transformer."""


def make(
    name: Annotated[str, typer.Argument(help="stdlib-gpt, stdlib-llama, digits-vit or digits-cnn.")],
    size: Annotated[str, typer.Option(help="small, which is shipped, or large (25 million parameters).")] = "small",
    steps: Annotated[
        int | None, typer.Option(help=f"Steps of training; {STEPS} without --minutes.", min=1, show_default=False)
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Train a language model for so long, or --steps.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Where the files go.", show_default=False)] = None,
) -> None:
    """Train a reference model and write its weights, tokenizer and card; a stopped language model goes on."""
    checked(name)
    if size not in ("small", "large"):
        raise ModelNameError(f"There is no size '{size}'.", hint="Name small or large.")
    wanted: Size = "small" if size == "small" else "large"
    directory = out or (place(name) if size == "small" else Path("build/reference") / f"{name}-large")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name in LANGUAGE_MODELS:
        if minutes is None:
            steps = steps or STEPS
        _language_model(name, wanted, steps, minutes, seed, directory, device)
    else:
        _classifier(name, wanted, steps or STEPS, seed, directory, device)
    typer.echo((directory / "README.md").read_text(encoding="utf-8"))


def _language_model(
    name: str, size: Size, steps: int | None, minutes: float | None, seed: int, directory: Path, device: torch.device
) -> None:
    shared = place("stdlib-gpt") / "tokenizer.json"  # both language models read the same tokens
    if name != "stdlib-gpt" and shared.is_file():
        tokenizer = tokenizer_of(shared.parent)
    else:
        tokenizer = training.train_tokenizer(data.texts("train"))
    stream, held = (data.encoded(tokenizer, split) for split in ("train", "held-out"))
    unfinished = directory / UNFINISHED
    model, taken = training.train_language_model(
        name, stream, size=size, steps=steps, seed=seed, device=device, minutes=minutes, unfinished=unfinished
    )
    save(model.cpu(), directory, tokenizer)
    model = load(name).model if directory == place(name) else model.float()
    ids = data.windows(held)[:HELD_OUT_BATCHES]
    found = measured(model, ids)
    unigram = unigram_loss(stream, held, VOCABULARY)
    given = "".join(
        f" --{what} {value:g}" for what, value in (("steps", steps), ("minutes", minutes)) if value is not None
    )
    write_card(
        directory,
        name,
        "A small language model of Python: trained on the standard library's own sources, tested on modules it has "
        "not seen. It is there to be pruned, not to write programs.",
        {
            "Architecture": f"{type(model).__name__}, byte-level BPE of {VOCABULARY} pieces, context {CONTEXT}",
            "Parameters": f"{sum(p.numel() for p in model.parameters()):,}, stored as bfloat16",
            "Data": f"standard library of Python {platform.python_version()}, {len(stream):,} tokens to train on and "
            f"{len(held):,} held out (SHA-256 {corpus.fingerprint()})",
            "Training": f"{taken.steps:,} steps, {taken.samples:,} tokens, {taken.seconds / 60:.0f} minutes on "
            f"{_machine(device)}, seed {seed}",
            "Weights": f"of step {taken.kept:,}, the best on 1 % of the training tokens that no step has seen",
            "Held-out loss": f"{found['loss']:.3f} nats a token on {sum(len(b['input_ids']) for b in ids)} windows "
            f"(frequencies alone: {unigram:.3f})",
            "Held-out accuracy": f"{found['accuracy']:.1%} of next tokens",
            "Made by": f"python -m neuronscope.reference {name} --size {size}{given} --seed {seed}",
        },
        {"loss": found["loss"], "accuracy": found["accuracy"], "unigram": unigram},
    )
    unfinished.unlink(missing_ok=True)


def _classifier(name: str, size: Size, steps: int, seed: int, directory: Path, device: torch.device) -> None:
    (images, labels), (unseen, answers) = data.images("train"), data.images("held-out")
    if name == "digits-cnn":
        model: torch.nn.Module = trained_cnn(EPOCHS, seed)
        length, given = f"{EPOCHS} epochs on {_machine(torch.device('cpu'))}", ""
    else:
        model = training.train_vit(images, labels, size=size, steps=steps, seed=seed, device=device).cpu()
        length, given = f"{steps:,} steps on {_machine(device)}", f" --size {size} --steps {steps}"
    save(model, directory)
    found = measured(model, data.batches(name, "held-out"))
    unigram = unigram_loss(labels, answers, CLASSES)
    write_card(
        directory,
        name,
        "A small classifier of handwritten digits (scikit-learn's bundled 8 × 8 images). It is there to be pruned.",
        {
            "Architecture": type(model).__name__,
            "Parameters": f"{sum(p.numel() for p in model.parameters()):,}",
            "Data": f"{len(images):,} images to train on and {len(unseen):,} held out "
            f"(SHA-256 {data.images_fingerprint()})",
            "Training": f"{length}, seed {seed}",
            "Held-out loss": f"{found['loss']:.4f} nats an image (frequencies alone: {unigram:.4f})",
            "Held-out accuracy": f"{found['accuracy']:.1%}",
            "Made by": f"python -m neuronscope.reference {name}{given} --seed {seed}",
        },
        found | {"unigram": unigram},
    )


def _machine(device: torch.device) -> str:
    """What a run took place on; the last bits of the weights depend on it."""
    if device.type != "cpu":
        return f"one {device.type} device"
    threads = torch.get_num_threads()
    return "one thread of a CPU" if threads == 1 else f"{threads} threads of a CPU"


if __name__ == "__main__":
    try:
        typer.run(make)
    except NeuronScopeError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)
