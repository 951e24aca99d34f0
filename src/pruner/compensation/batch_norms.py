"""Batch norms whose running statistics are those of the model as it is now: forward passes only."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tracker.batches import Batch, forward


def tracking(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms that use running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def reestimate(model: nn.Module, batches: Iterable[Batch]) -> bool:
    """Replace the running statistics of all batch norms, in place, by the mean over these batches.

    Behind neurons that are gone, and in front of weights that were solved for, what comes in has another mean and
    variance than in training (as after weight averaging, Izmailov et al. 2018, section 3.2). A batch in which a norm
    reads a single value a channel teaches nothing; returns whether any taught something.
    """
    norms = tracking(model)
    before = [(norm, norm.momentum, norm.training) for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over all batches
            norm.training = True
        with torch.no_grad():
            for batch in batches:
                learned = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
                try:
                    forward(model, batch)
                except ValueError:  # PyTorch's answer to a single value a channel, which has no variance
                    for buffer, value in learned:
                        buffer.copy_(value)
    finally:
        for norm, momentum, training in before:
            norm.momentum, norm.training = momentum, training
    return any(norm.num_batches_tracked is None or int(norm.num_batches_tracked) > 0 for norm in norms)
