"""A training run that can be stopped at any moment: its best weights so far, and a file from which it goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from tracker.errors import CheckpointError
from tracker.files import atomic_path


class Keeper:
    """Keeps a run: in memory the weights that `judge` (less is better) likes best, at `path` all that going on needs.

    `settings`, JSON values, say which run it is: a file of another run is refused, never overwritten. Buffers are not
    kept; the language models here have none that training changes.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        random: torch.Generator,
        judge: Callable[[], float],
        *,
        settings: Mapping[str, Any],
        path: Path | None = None,
    ) -> None:
        self._model, self._optimizer, self._random, self._judge = model, optimizer, random, judge
        self._settings, self._path = json.dumps(settings, sort_keys=True), path
        self._loss, self._best_step, self._judged = math.inf, 0, -1
        self._best: dict[str, Tensor] = {}

    def resume(self) -> tuple[int, float]:
        """Go back to where the file at `path` is, if there is one: the steps taken and the seconds spent so far.

        Raises `CheckpointError` where the file is broken or of a run with other settings.
        """
        if self._path is None or not self._path.is_file():
            return 0, 0.0
        way_out = f"Give the settings of that run, or delete {self._path} to start anew."
        try:
            with safe_open(self._path, framework="pt") as file:
                said = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError(f"{self._path} does not hold an unfinished run: {error}.", hint=way_out) from error
        if said.get("settings") != self._settings:
            what = f"{self._path} holds a run with other settings: {said.get('settings')}, not {self._settings}."
            raise CheckpointError(what, hint=way_out)
        self._best = _under("best", tensors)
        self._set_weights(_under("model", tensors))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under("optimizer", tensors).items():
            number, key = name.split(".", 1)
            state.setdefault(int(number), {})[key] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        self._random.set_state(tensors["random"])
        self._loss, self._best_step = float(said["loss"]), int(said["best_step"])
        self._judged = int(said["step"])
        return self._judged, float(said["seconds"])

    def keep(self, step: int, seconds: float) -> None:
        """Judge the weights after `step` steps, and write down where the run is."""
        self._compare(step)
        if self._path is None:
            return
        state = self._optimizer.state_dict()["state"]
        tensors = {f"model.{name}": tensor for name, tensor in self._weights().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self._best.items()}
        tensors |= {f"optimizer.{i}.{key}": tensor for i, of in state.items() for key, tensor in of.items()}
        tensors["random"] = self._random.get_state()
        said = {"settings": self._settings, "step": step, "seconds": seconds}
        said |= {"loss": self._loss, "best_step": self._best_step}
        with atomic_path(self._path) as temporary:
            save_file(tensors, temporary, {key: str(value) for key, value in said.items()})

    def finish(self, step: int) -> int:
        """Judge the last weights too, give the model the best, and say after how many steps they were reached."""
        self._compare(step)
        self._set_weights(self._best)
        return self._best_step

    def _compare(self, step: int) -> None:
        if step == self._judged:
            return
        self._judged = step
        loss = self._judge()
        if loss < self._loss or not self._best:
            self._loss, self._best_step = loss, step
            self._best = {name: tensor.clone() for name, tensor in self._weights().items()}

    def _weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._model.named_parameters()}

    def _set_weights(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self._weights().items():
                weight.copy_(tensors[name])


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
