"""The Python standard library's own sources as a corpus: documents, the part that is held out, and a hash of it all."""

from __future__ import annotations

import hashlib
import sysconfig
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

Split = Literal["train", "held-out"]

_LEFT_OUT = {"test", "tests", "site-packages", "dist-packages", "__pycache__", "idlelib", "lib2to3", "turtledemo"}
_SHORTEST = 400  # characters
_HELD_OUT = 16  # one module in so many


class Document(NamedTuple):
    """A module of the standard library: its path from the library's root, and its source."""

    name: str
    text: str


@cache
def documents(split: Split) -> tuple[Document, ...]:
    """All modules of a part of the standard library, sorted by name. Which part a module is in, its name decides."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not _LEFT_OUT & set(Path(name).parts[:-1]) and _held_out(name) == (split == "held-out"):
            text = path.read_text(encoding="utf-8", errors="replace")
            if len(text) >= _SHORTEST:
                found.append(Document(name, text))
    return tuple(found)


def fingerprint() -> str:
    """SHA-256 over the names and texts of all documents: another version of Python has another corpus."""
    digest = hashlib.sha256()
    for split in ("train", "held-out"):
        for document in documents(split):
            digest.update(f"{document.name}\0{document.text}\0".encode())
    return digest.hexdigest()


def _held_out(name: str) -> bool:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % _HELD_OUT == 0
