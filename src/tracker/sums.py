"""What is summed up over batches, as torchmetrics metrics: it moves between devices, resets, is reduced over ranks.

torchmetrics takes longer to import than PyTorch does, so this module is imported only where something is watched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from tracker import covariance, moments
from tracker.neuron_map import NeuronGroup


class Moments(Metric):
    """The block of statistics (see `tracker.moments`) of all neurons of all groups, side by side: 56 bytes a neuron.

    Under distributed training every rank must call `compute`; each gets the statistics of the data of all.
    """

    full_state_update = False
    block: Tensor

    def __init__(self, groups: Sequence[NeuronGroup]) -> None:
        super().__init__()
        self.sizes = {group.name: group.size for group in groups}
        self.add_state("block", moments.empty(sum(self.sizes.values())), dist_reduce_fx=moments.merge_stacked)

    def update(self, blocks: Mapping[str, Tensor]) -> None:
        """Add a block (7, size) for every group that was read."""
        device = self.block.device
        added = [
            blocks[name].to(device) if name in blocks else moments.empty(size).to(device)
            for name, size in self.sizes.items()
        ]
        if added:
            self.block = moments.merge(self.block, torch.cat(added, 1))

    def compute(self) -> dict[str, Tensor]:
        """The block of every group, on the CPU."""
        parts = torch.split(self.block.cpu(), list(self.sizes.values()), 1)
        return dict(zip(self.sizes, parts, strict=True))


class Covariances(Metric):
    """The covariance state of every group; reduced over ranks like any other metric."""

    full_state_update = False

    def __init__(self, groups: Sequence[NeuronGroup]) -> None:
        super().__init__()
        self.names = [group.name for group in groups]
        for index, group in enumerate(groups):
            zeros = torch.zeros(group.size + 1, group.size + 1, dtype=torch.float64)
            self.add_state(f"group_{index}", zeros, dist_reduce_fx=covariance.merge_stacked)

    def update(self, states: Mapping[str, Tensor]) -> None:
        """Add the states of some data, by name of the group."""
        for name, state in states.items():
            attribute = f"group_{self.names.index(name)}"
            before = getattr(self, attribute)
            setattr(self, attribute, covariance.merge(before, state.to(before.device)))

    def compute(self) -> dict[str, NDArray[np.float64]]:
        """The covariance matrix (n, n) of every group that was read."""
        states = {name: getattr(self, f"group_{index}").cpu() for index, name in enumerate(self.names)}
        return {name: (s[:-1, :-1] / s[-1, -1]).numpy() for name, s in states.items() if s[-1, -1] > 0}
