"""Pruning while a model trains in the `Trainer` of transformers.

>>> callback = PruningCallback(0.5, begin=100, every=50, end=1000)
>>> trainer = Trainer(model, args, train_dataset=data, callbacks=[callback])
>>> callback.attach(trainer)  # its numbers go to the trainer's logger
>>> trainer.train()

Checkpoints of the trainer hold what was removed; `trainer.train(resume_from_checkpoint=True)` goes on with a model that
is built dense, as ever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pruner.distributed import refuse_several
from pruner.gradual import GradualPruning
from tracker.errors import PlanError
from tracker.extras import require

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

_callbacks: Any = require("transformers.trainer_callback", "transformers")


class PruningCallback(_callbacks.TrainerCallback, _callbacks.ExportableState):  # type: ignore[misc]
    """Removes neurons of the trained model by a schedule; the arguments are those of `GradualPruning`.

    Steps are the trainer's `global_step`. Averages of the weights that shrink along are given as `averages`.

    Raises `PlanError` where training runs on several processes: see `GradualPruning` for a loop of your own.
    """

    def __init__(self, sparsity: float | None = None, *, averages: tuple[nn.Module, ...] = (), **options: Any) -> None:
        self._options = {"sparsity": sparsity, **options}
        self._averages = averages
        self._trainer: Trainer | None = None
        self.pruning: GradualPruning | None = None

    def attach(self, trainer: Trainer) -> None:
        """Add this to a trainer, if it was not given at its construction, and log by it."""
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
            self._watch_for_checkpoints(trainer.args, trainer.model)
        self._trainer = trainer

    def resume(self, model: nn.Module, checkpoint: str | Path) -> None:
        """Give a dense model the shapes it has in a checkpoint of the trainer.

        Only needed where that is not under the trainer's `output_dir`. Raises `PlanError` where it holds none.
        """
        state = _state_in(Path(checkpoint))
        if state is None:
            raise PlanError(
                f"{checkpoint} holds no state of a pruning.",
                hint="Name a checkpoint that was saved with this callback.",
            )
        self._pruning(model).load_state_dict(state)

    def state(self) -> dict[str, Any]:
        """What the trainer writes into its checkpoints."""
        if self.pruning is None:
            return {}
        return self.pruning.state_dict() | {"shapes": _shapes(self.pruning.model.state_dict())}

    @classmethod
    def from_state(cls, state: Any) -> PruningCallback:
        """Raises `PlanError`: this callback takes its state from a checkpoint by itself."""
        raise PlanError(
            "restore_callback_states_from_checkpoint would make another callback.",
            hint="Leave it off: this callback takes its state from the checkpoint by itself.",
        )

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """A trainer was made."""
        self._watch_for_checkpoints(args, given["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Training begins or goes on."""
        refuse_several(args.world_size)
        saved = state.stateful_callbacks.get(type(self).__name__)
        if state.global_step and isinstance(saved, dict) and "history" in saved:
            self._pruning(given["model"]).load_state_dict(saved)  # of the very checkpoint; see `_watch_for_checkpoints`
        pruning = self._pruning(given["model"])
        pruning.optimizer = [given["optimizer"], *self._averages]
        pruning.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """A step of the optimizer was taken."""
        if self.pruning is not None:
            self.pruning.step(state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Training ended."""
        if self.pruning is not None:
            self.pruning.close()

    def _pruning(self, model: nn.Module) -> GradualPruning:
        if self.pruning is None or self.pruning.model is not model:
            self.pruning = GradualPruning(model, **{"log": self._log, **self._options})
        return self.pruning

    def _log(self, numbers: Mapping[str, float], step: int) -> None:
        if self._trainer is not None:
            self._trainer.log(dict(numbers))

    def _watch_for_checkpoints(self, args: TrainingArguments, model: nn.Module) -> None:
        """Reshape the model before the weights of a checkpoint are loaded that do not fit it otherwise.

        Which checkpoint that is, the trainer does not say. Any of the same shapes serves; what else is in it, such as
        what was watched, is taken from the right one when training begins, which also sees whether the same neurons
        were gone there.
        """

        def before(module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
            own = module.state_dict()
            if prefix or all(own[name].shape == x.shape for name, x in state_dict.items() if name in own):
                return
            wanted = _shapes(state_dict)
            folders = [*Path(args.output_dir).glob("checkpoint-*"), Path(args.resume_from_checkpoint or ".")]
            for state in filter(None, map(_state_in, folders)):
                if all(state["shapes"].get(name) == shape for name, shape in wanted.items()):
                    self._pruning(module).load_state_dict(state)
                    return
            raise PlanError(
                f"The weights to be loaded are of a pruned model, and no checkpoint in {args.output_dir} is of its "
                "shapes.",
                hint="Call callback.resume(model, checkpoint) before trainer.train(resume_from_checkpoint=checkpoint).",
            )

        model.register_load_state_dict_pre_hook(before)


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(x.shape) for name, x in state_dict.items()}


def _state_in(checkpoint: Path) -> dict[str, Any] | None:
    try:
        saved = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        state = saved["stateful_callbacks"][PruningCallback.__name__]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return state if isinstance(state, dict) and isinstance(state.get("shapes"), dict) else None
