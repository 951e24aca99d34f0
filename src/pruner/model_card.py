"""The card of a pruned model: what was removed from which model, what proves it right, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pruner.manifest import Manifest, PruningRecord, growth

CARD = "README.md"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def model_card(manifest: Manifest, why_not: str) -> str:
    """The card as Markdown with the front matter of the hub. `why_not` says why transformers cannot load the model."""
    about: dict[str, Any] = {"library_name": "transformers"} if manifest.plain else {}
    base = manifest.base
    if base and _HUB_NAME.fullmatch(base) and not Path(base).exists():
        about["base_model"] = base
    about["tags"] = ["pruned", "neuronscope"]
    front = yaml.safe_dump(about, sort_keys=False)
    parts = [_title(manifest), _removed(manifest), _proof(manifest.history), _loading(manifest, why_not)]
    return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"


def may_be_written(path: Path) -> bool:
    """Whether there is no card yet at `path`, or one of ours; a card that somebody else wrote stays."""
    return not path.exists() or "\n- neuronscope\n" in path.read_text(encoding="utf-8", errors="replace")


def _title(manifest: Manifest) -> str:
    of = f" of `{manifest.base}`" if manifest.base else ""
    counts = [record.parameters for record in manifest.history if record.parameters]
    size = f" Parameters: {counts[0][0]:,} → {counts[-1][1]:,}." if counts else ""
    if not manifest.history:
        return f"# {manifest.model}\n\nA {manifest.model}{of}, saved without having been pruned."
    return (
        f"# {manifest.model}, pruned\n\nA {manifest.model}{of} from which neurons were removed with NeuronScope"
        f"{', and to which some were added' if growth(manifest.history) > 1 else ''}.{size}"
    )


def _removed(manifest: Manifest) -> str:
    """One line for all layers whose names differ in numbers only."""
    before: dict[str, int] = {}
    for record in manifest.history:
        for name, layer in record.layers.items():
            before.setdefault(name, layer.neurons)
    rows: dict[str, list[tuple[int, int]]] = {}
    for name, kept in manifest.kept.items():
        rows.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "*", name), []).append((before[name], len(kept)))
    table = ["## What was removed", "", "| layers | how many | neurons before | neurons left |", "|---|---|---|---|"]
    for pattern, sizes in rows.items():
        olds, news = zip(*sizes, strict=True)
        table.append(f"| `{pattern}` | {len(sizes)} | {_range(olds)} | {_range(news)} |")
    return "\n".join(table) if rows else "## What was removed\n\nNothing."


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _proof(history: Sequence[PruningRecord]) -> str:
    lines = ["## Proof", ""]
    for number, record in enumerate(history, 1):
        step = f"Step {number}: after" if len(history) > 1 else "After"
        added = any(layer.copied for layer in record.layers.values())
        if added and record.proof is not None:
            lines.append(
                f"{step} neurons were added the model gave the outputs of the one before: the largest difference, in "
                f"`{record.proof.output}`, is {record.proof.error:.1e} of the largest value (rounding allows "
                f"{record.proof.tolerance:.1e})."
            )
        elif record.proof is None:
            lines.append(f"{step} the change no comparison was made.")
        else:
            lines.append(
                f"{step} the removal the model gave the outputs of the original with the same neurons set to zero: "
                f"the largest difference, in `{record.proof.output}`, is {record.proof.error:.1e} of the largest "
                f"value (rounding allows {record.proof.tolerance:.1e})."
            )
    return "\n".join([*lines, "", "This says that the removal is exact, not how good the smaller model is."])


def _loading(manifest: Manifest, why_not: str) -> str:
    ours = (
        "```python\nimport pruner  # pip install neuronscope\n\n"
        'model = pruner.load_pruned("path/to/this/directory")\n```'
    )
    if manifest.plain:
        theirs = (
            f"```python\nfrom transformers import {manifest.model}\n\n"
            f'model = {manifest.model}.from_pretrained("path/to/this/directory")\n```'
        )
        return f"## Loading\n\n{theirs}\n\nor, with digests and shapes checked:\n\n{ours}"
    needed = "" if manifest.origin else " `load_pruned` needs the dense model, or a callable that builds it, as well."
    return f"## Loading\n\n{ours}\n\n`from_pretrained` refuses this directory: {why_not}.{needed}"
