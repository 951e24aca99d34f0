"""Neurons silenced instead of removed: what a pruned model has to be equal to.

Zeroing is done where the consumers read, by hook; experts are kept from being chosen instead (`pruner.absence`). It
shares no code with the slicing, so that a mistake in one cannot hide the same mistake in the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruner.absence import absent, is_chosen
from pruner.plan import PruningPlan
from tracker.admission import unwrapped
from tracker.discover import neurons_of
from tracker.errors import VerificationError
from tracker.neuron_map import NeuronGroup, NeuronMap, Read
from tracker.taps import tap


@contextmanager
def masked(model: nn.Module, plan: PruningPlan, neurons: NeuronMap | None = None) -> Iterator[None]:
    """Within the block, the neurons of `plan` are zero wherever a consumer reads them; no weight is touched.

    Experts that a router chooses among are never chosen.

    Args:
        model: the dense model.
        plan: the neurons to silence.
        neurons: the model's neuron map; by default the one last discovered for this model.

    Raises:
        PlanError: the plan does not fit the model.
        VerificationError: at the end of the block, when a consumer of a silenced neuron never ran: the mask did
            nothing there, and what was computed proves nothing.
    """
    found = neurons_of(unwrapped(model), neurons)
    with silenced(model, found, plan.resolve(found)):
        yield


def maskable(group: NeuronGroup) -> bool:
    """Whether a model without neurons of the group is one that can be had by masking them."""
    return group.exact or is_chosen(group)


@contextmanager
def silenced(
    model: nn.Module,
    neurons: NeuronMap,
    removed: Mapping[str, Tensor],
    *,
    jitter: float = 0.0,
    unread: set[str] | None = None,
) -> Iterator[None]:
    """`masked` for a resolved plan. What never ran is added to `unread` where that is given, and is no error then.

    With `jitter`, every value that the consumers of these layers read is also moved by plus or minus that share of
    itself: as much as rounding does, which shows how far rounding alone carries in this model.
    """
    experts = [(neurons[name], chosen) for name, chosen in removed.items() if is_chosen(neurons[name])]
    groups = [neurons[name] for name in removed if not is_chosen(neurons[name])]
    for group in groups:
        _check_readable(unwrapped(model), group)
    signs = np.random.default_rng(0)
    prepared: dict[int, tuple[Tensor, Tensor | None]] = {}

    def silence(group: NeuronGroup, read: Read, x: Tensor) -> Tensor:
        if id(read) not in prepared:
            positions = torch.from_numpy(read.positions[removed[group.name].numpy()].ravel()).to(x.device)
            factors = None
            if jitter:
                flips = signs.choice([-jitter, jitter], size=x.shape[read.axis])
                shape = [1] * x.dim()
                shape[read.axis] = -1
                factors = torch.from_numpy(flips).to(x.device, x.dtype).reshape(shape)
            prepared[id(read)] = positions, factors
        positions, factors = prepared[id(read)]
        if factors is not None:
            x = x + x * factors
        return x.index_fill(read.axis, positions, 0)

    with tap(model, groups, silence) as taps, absent(unwrapped(model), experts, jitter=jitter) as silent:
        yield
    never = {*silent, *(read.module or read.parameter for read in taps.silent)}
    if unread is not None:
        unread |= never
    elif never:
        raise NeverReadError(never)


class NeverReadError(VerificationError):
    """Neurons were zeroed, and nothing that reads them ran."""

    def __init__(self, never: Collection[str]) -> None:
        super().__init__(
            f"The neurons to be masked were never read: {_listed(sorted(never))} did not run, so the mask proves "
            f"nothing.",
            hint="Give inputs that reach these layers.",
        )


def reads_after(neurons: NeuronMap, removed: Mapping[str, Tensor]) -> NeuronMap:
    """`neurons` with the places of all reads as they are once the neurons in `removed` are gone from the model.

    Only for masking the other groups: nothing else in the map is renumbered.
    """
    gone: dict[tuple[str, str, int], list[NDArray[np.int64]]] = {}
    for name, chosen in removed.items():
        for read in neurons[name].reads:
            place = (read.module, read.parameter, read.axis)
            gone.setdefault(place, []).append(read.positions[chosen.numpy()].ravel())

    def moved(read: Read) -> Read:
        before = np.sort(np.concatenate(gone.get((read.module, read.parameter, read.axis), [np.zeros(0, np.int64)])))
        return replace(read, positions=read.positions - np.searchsorted(before, read.positions))

    groups = (
        group if group.name in removed else replace(group, reads=tuple(map(moved, group.reads))) for group in neurons
    )
    return replace(neurons, groups=tuple(groups))


def _check_readable(model: nn.Module, group: NeuronGroup) -> None:
    """Every consumer must have a place where it is known to read, or zeroing could miss one."""
    named = dict(model.named_parameters(remove_duplicate=False))
    read = {id(named.get(read.parameter)) for read in group.reads}
    missing = [site.parameter for site in group.consumers if id(named.get(site.parameter)) not in read]
    if missing:
        raise VerificationError(
            f"Layer '{group.name}' cannot be masked: it is not known where {_listed(missing)} reads it.",
            hint="Leave this layer out of the plan, or prune it without the proof.",
        )


def _listed(names: list[str], limit: int = 3) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
