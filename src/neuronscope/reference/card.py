"""The model card beside a reference model: every number in it was measured by the run that made the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from neuronscope.reference.shipped import CARD
from tracker.files import write_json, write_text


def write_card(directory: Path, name: str, about: str, facts: Mapping[str, str], numbers: Mapping[str, float]) -> None:
    """Write the card for people and `measured.json`, the same numbers for programs."""
    rows = "\n".join(f"| {what} | {value} |" for what, value in facts.items())
    text = f"# {name}\n\n{about}\n\n| | |\n|---|---|\n{rows}\n"
    write_text(directory / CARD, text)
    write_json(directory / "measured.json", {"facts": dict(facts), "numbers": dict(numbers)})
