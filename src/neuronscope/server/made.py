"""The models that were made here: pruned from another one, each with its checkpoint, report and plan."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracker.errors import StorageError
from tracker.files import read_json, write_json

PREFIX = "made/"
_ID = re.compile(r"[\w.-]{1,120}")


@dataclass(frozen=True)
class Made:
    """`base` is the name of the dense model it was made from; clients call it `made/<id>`."""

    id: str
    title: str
    base: str
    checkpoint: Path
    report: Path
    plan: dict[str, Any]

    @property
    def name(self) -> str:
        """What clients call it."""
        return PREFIX + self.id


class MadeModels:
    """All of them, as files under one folder; an id never leads out of it."""

    def __init__(self, folder: Path) -> None:
        self.outputs = folder / "made"
        self._folder = folder / "made" / "registered"

    def get(self, name: str) -> Made | None:
        """The one that clients call `name`, if there is one."""
        found = name.removeprefix(PREFIX)
        if not name.startswith(PREFIX) or not _ID.fullmatch(found) or set(found) <= {"."}:
            return None
        path = self._folder / f"{found}.json"
        if not path.is_file():
            return None
        data = read_json(path, what="a model that was made")
        checkpoint, report = (self._inside(data[key]) for key in ("checkpoint", "report"))
        return Made(data["id"], data["title"], data["base"], checkpoint, report, data["plan"])

    def all(self) -> list[Made]:
        """All of them, the oldest first."""
        paths = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        return [made for path in paths if (made := self.get(PREFIX + path.stem)) is not None]

    def add(self, made: Made) -> Made:
        """Register one whose files lie under `outputs`."""
        root = self.outputs.resolve()
        paths = {key: str(getattr(made, key).resolve().relative_to(root)) for key in ("checkpoint", "report")}
        write_json(
            self._folder / f"{made.id}.json",
            {"id": made.id, "title": made.title, "base": made.base, "plan": made.plan, **paths},
        )
        return made

    def free(self, wanted: str) -> str:
        """An id that none has yet."""
        number = 1
        while (self._folder / f"{wanted}{'' if number == 1 else f'-{number}'}.json").exists():
            number += 1
        return wanted if number == 1 else f"{wanted}-{number}"

    def _inside(self, relative: str) -> Path:
        root = self.outputs.resolve()
        path = (root / relative).resolve()
        if not path.is_relative_to(root):
            raise StorageError("A registered model lies outside of its folder.", hint="Remove its file by hand.")
        return path
