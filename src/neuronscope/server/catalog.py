"""Which models a client may name: those that come with the package, those made here, and those of the hub."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from neuronscope.model_names import ALIASES, aliased
from neuronscope.reference.architectures import NAMES
from neuronscope.reference.shipped import CONFIG, place
from neuronscope.server.made import PREFIX, MadeModels
from neuronscope.server.problems import Problem
from neuronscope.server.settings import Settings
from tracker.files import read_json

_HUB = re.compile(r"(timm:|torchvision:)?[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,95})?")
_ABOUT = {
    "stdlib-gpt": "A GPT-2 of 6 layers, trained on the Python standard library. Comes with the package.",
    "stdlib-llama": "A Llama of the same size: gated MLPs, grouped queries. Comes with the package.",
    "digits-vit": "A vision transformer for handwritten digits. Comes with the package.",
    "digits-cnn": "A residual network for handwritten digits. Comes with the package.",
}


class Catalog:
    """Clients send names, never paths: what is a path, or code to be run, only the one who starts the server names."""

    def __init__(self, settings: Settings, made: MadeModels) -> None:
        self._settings, self._made = settings, made
        self._known: dict[str, dict[str, Any]] = {}

    def checked(self, name: str) -> str:
        """The name, if a client may use it; raises `Problem` 404 otherwise."""
        if name == self._settings.model or name in self.all() or self._made.get(name) is not None:
            return name
        if not _HUB.fullmatch(name) or name.startswith(PREFIX) or Path(name).exists():
            raise Problem(
                404, f"There is no model {name[:80]!r} here.", "Name one of GET /api/models, or one of the hub."
            )
        return name

    def learn(self, card: dict[str, Any]) -> None:
        """Remember the numbers of a model that was loaded."""
        self._known[card["name"]] = card

    def info(self, name: str) -> dict[str, Any]:
        """A model as clients see it."""
        return self.all().get(name) or self._entry(name, "A model of the hub.")

    def all(self) -> dict[str, dict[str, Any]]:
        """Every model that is listed, by name."""
        found = {name: self._entry(name, about) for name, about in _ABOUT.items()}
        for pair in os.environ.get(ALIASES, "").split(","):
            alias = pair.partition("=")[0].strip()
            if alias:
                found[alias] = self._entry(alias, f"Another name of {aliased(alias)}.")
        if self._settings.model not in found:
            found[self._settings.model] = self._entry(self._settings.model, "What the server was started with.")
        for made in self._made.all():
            found[made.name] = {
                **self._entry(made.name, f"{made.title}. Made here from {made.base}."),
                "made": {
                    "title": made.title,
                    "base": made.base,
                    "report": f"/api/report/{made.id}",
                    "download": f"/api/downloads/{made.id}",
                },
            }
        return found

    def _entry(self, name: str, description: str) -> dict[str, Any]:
        card = self._known.get(name) or _configured(aliased(name))
        return {
            "name": name,
            "family": card.get("family", "unknown"),
            "layers": card.get("layers"),
            "hidden_size": card.get("hidden_size"),
            "description": description,
            "recommended": name == "stdlib-gpt",
        }


@cache
def _configured(name: str) -> dict[str, Any]:
    """The numbers of a model that comes with the package, from its configuration; its weights are not read."""
    if name not in NAMES:
        return {}
    path = place(name) / CONFIG
    if not path.is_file():
        return {"family": "cnn"}
    config = read_json(path, what="a configuration")
    return {
        "family": config["model_type"],
        "layers": config.get("num_hidden_layers", config.get("n_layer")),
        "hidden_size": config.get("hidden_size", config.get("n_embd")),
    }
