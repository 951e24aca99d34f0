"""A model's whole state at one moment, shapes and integers included, to go back to."""

from collections.abc import Callable
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pruner.companions import Along, Companions
from pruner.lineage import HISTORY
from pruner.snapshot import Snapshot
from tracker.admission import unwrapped
from tracker.errors import PlanError
from tracker.sizes import integer_attributes


def by_copy(tensor: Tensor) -> Tensor:
    """Keep a copy: good for as long as you like, whatever is done to the model."""
    return tensor.detach().clone()


def by_reference(tensor: Tensor) -> Tensor:
    """Keep the storage itself: free, and good as long as nothing is written into the model's tensors in place."""
    return tensor.detach()


class Backup:
    """Weights, buffers, gradients, integers, and all that of what is trained along (`Companions`), as they are now.

    `keep` says how tensors are kept. Tensor objects keep their identity when they are restored, so references to
    parameters stay valid.
    """

    def __init__(
        self, model: nn.Module, optimizer: Companions | None = None, *, keep: Callable[[Tensor], Tensor] = by_copy
    ) -> None:
        bare = unwrapped(model)
        self._keep = keep
        self._tensors = {name: keep(tensor) for name, tensor in _named(bare).items()}
        self._gradients = {
            name: None if parameter.grad is None else keep(parameter.grad)
            for name, parameter in bare.named_parameters()
        }
        self._attributes = [
            (name, attribute, deepcopy(vars(module)[attribute]))
            for name, module in bare.named_modules()
            for attribute in dict.fromkeys(str(path[0]) for path in integer_attributes(module))
        ]
        self._history = vars(bare).get(HISTORY, ())
        along = Along.of(bare, optimizer)
        self._states = [(one, {p: self._kept(state) for p, state in one.state.items()}) for one in along.optimizers]
        self._masters = [(x, *self._kept((x, x.grad))) for masters in along.masters.values() for x in masters]
        self._averages = [(average, Backup(average, keep=keep)) for average in along.averages]

    def restore(self, model: nn.Module) -> None:
        """Put the model, and its companions, back into the state they were in; the model in all or nothing.

        Raises `PlanError` if the model does not have the parameters and buffers that were kept.
        """
        bare = unwrapped(model)
        now = _named(bare)
        if now.keys() != self._tensors.keys():
            odd = sorted(now.keys() ^ self._tensors.keys())[0]
            raise PlanError(
                f"The backup does not fit the model: only one of them has '{odd}'.",
                hint="Restore the model that was backed up.",
            )
        modules = dict(bare.named_modules())
        with Snapshot() as changes:
            for name, kept in self._tensors.items():
                changes.replace(now[name], self._keep(kept).to(now[name].device))
            for module, attribute, value in (*self._attributes, ("", HISTORY, self._history)):
                changes.hold(modules[module], attribute)
                setattr(modules[module], attribute, deepcopy(value))
            for master, value, _ in self._masters:
                changes.replace(master, self._keep(value))
            changes.commit()
        for name, gradient in self._gradients.items():
            now[name].grad = None if gradient is None else self._keep(gradient).to(now[name].device)
        for master, _, gradient in self._masters:
            master.grad = self._kept(gradient)
        for optimizer, states in self._states:
            optimizer.state.clear()
            optimizer.state.update({p: self._kept(state) for p, state in states.items()})
        for average, backup in self._averages:
            backup.restore(average)

    def _kept(self, state: Any) -> Any:
        return tree_map(lambda leaf: self._keep(leaf) if isinstance(leaf, Tensor) else leaf, state)


def _named(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(chain(model.named_parameters(), model.named_buffers()))
