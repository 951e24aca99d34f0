"""Pruning while a model trains in Lightning.

>>> trainer = Trainer(max_epochs=10, callbacks=[PruningCallback(0.5, begin=100, every=50, end=1000, part="model")])
>>> trainer.fit(module, data)

Checkpoints hold what was removed; `trainer.fit(module, data, ckpt_path=…)` goes on with a module that is built dense.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pruner.distributed import refuse_several
from pruner.gradual import GradualPruning
from tracker.extras import require

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

_lightning: Any = require("lightning.pytorch", "lightning")

_KEY = "neuronscope_pruning"


class PruningCallback(_lightning.Callback):  # type: ignore[misc]
    """Removes neurons of the trained module by a schedule; the arguments are those of `GradualPruning`.

    `part` names the attribute of the module that is pruned (its network); by default it is the module itself. Steps are
    the trainer's `global_step`. Averages of the weights that shrink along are given as `averages`. Numbers go to all of
    the trainer's loggers.

    Raises `PlanError` where training runs on several processes: see `GradualPruning` for a loop of your own.
    """

    def __init__(
        self, sparsity: float | None = None, *, part: str = "", averages: tuple[nn.Module, ...] = (), **options: Any
    ) -> None:
        self._options = {"sparsity": sparsity, **options}
        self._averages, self._part = averages, part
        self._trainer: Trainer | None = None
        self.pruning: GradualPruning | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The trainer was given a module, whose checkpoint is not loaded yet."""
        if stage != "fit":
            return
        self._trainer = trainer
        model = pl_module.get_submodule(self._part)
        if self.pruning is not None and self.pruning.model is model:
            return  # fitted again: the schedule goes on
        self.pruning = GradualPruning(model, **{"log": self._log, **self._options})

        def before(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
            packed = state_dict.pop(f"{prefix}{_KEY}", None)
            if packed is not None and not prefix and self.pruning is not None:
                self.pruning.load_state_dict(json.loads(bytes(packed.tolist())))

        pl_module.register_load_state_dict_pre_hook(before)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training begins or goes on."""
        refuse_several(trainer.world_size)
        if self.pruning is not None:
            self.pruning.optimizer = [*trainer.optimizers, *self._averages]
            self.pruning.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A batch was trained on."""
        if self.pruning is not None:
            self.pruning.step(trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training ended."""
        if self.pruning is not None:
            self.pruning.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Training was broken off."""
        self.on_train_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is written: what was removed goes with the weights, since they cannot be loaded without it."""
        if self.pruning is not None:
            packed = json.dumps(self.pruning.state_dict(), allow_nan=False).encode()
            checkpoint["state_dict"][_KEY] = torch.tensor(list(packed), dtype=torch.uint8)

    def _log(self, numbers: Mapping[str, float], step: int) -> None:
        for logger in self._trainer.loggers if self._trainer is not None else ():
            logger.log_metrics(dict(numbers), step)
