"""New values for the weights that stay: how a repair is written into a model, and read back from a pruned one.

A repair is plain data: tensors by their names in the model, in the shapes from before the removal. What removes neurons
writes it first and slices then; so the proof compares the sliced model with the *repaired* one, its neurons zeroed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from pruner.snapshot import Snapshot
from tracker.errors import DataError, PlanError, nearest
from tracker.neuron_map import NeuronMap

Repair = Mapping[str, Tensor]


def checked(model: nn.Module, repair: Repair | None) -> dict[str, Tensor]:
    """The repair, on the model's devices and in its dtypes.

    Raises `PlanError` for a name that the model does not have or a value of another shape, and `DataError` for values
    that are not finite.
    """
    named = tensors_of(model)
    found: dict[str, Tensor] = {}
    for name, value in (repair or {}).items():
        if name not in named:
            raise PlanError(
                f"The repair is for '{name}', which {type(model).__name__} does not have.{nearest(name, named)}",
                hint="Name parameters and buffers as `model.state_dict()` does.",
            )
        if value.shape != named[name].shape:
            raise PlanError(
                f"The repair of '{name}' has the shape {tuple(value.shape)}, and the model's is "
                f"{tuple(named[name].shape)}.",
                hint="Give values in the shapes from before the removal; what is removed is cut out of them too.",
            )
        found[name] = value.detach().to(named[name].device, named[name].dtype)
        if not found[name].is_meta and not bool(torch.isfinite(found[name]).all()):
            raise DataError(f"The repair of '{name}' holds NaN or Inf.", hint="Nothing was changed.")
    return found


def give(model: nn.Module, repair: Repair, snapshot: Snapshot) -> None:
    """Write a checked repair into the model; the snapshot remembers what was there."""
    named = tensors_of(model)
    for name, value in repair.items():
        with torch.inference_mode(named[name].is_inference()):
            snapshot.replace(named[name], value.clone(memory_format=torch.preserve_format))


def give_change(average: nn.Module, model: nn.Module, repair: Repair, snapshot: Snapshot) -> None:
    """Add to an average of the model's weights what a checked repair is about to add to the weights themselves."""
    named, own = tensors_of(average), tensors_of(model)
    for name, value in repair.items():
        if name in named and value.is_floating_point():
            twin = named[name]
            snapshot.replace(twin, (twin.data + (value - own[name].data).to(twin)).to(twin.dtype))


def repaired_in(
    pruned: nn.Module, dense: nn.Module, neurons: NeuronMap, removed: Mapping[str, Tensor], names: Collection[str]
) -> dict[str, Tensor]:
    """The repair that `pruned` has had, in the dense model's shapes: what was cut out is as in the dense model."""
    ours, theirs = tensors_of(pruned), tensors_of(dense)
    gone: dict[str, dict[int, Tensor]] = {}
    for name, chosen in removed.items():
        for site, positions in neurons[name].slices(chosen).items():
            gone.setdefault(site.parameter, {}).setdefault(site.dim, torch.zeros(0, dtype=torch.int64))
            gone[site.parameter][site.dim] = torch.cat([gone[site.parameter][site.dim], positions])
    directions = {length.direction: length.dim for length in neurons.lengths}
    found: dict[str, Tensor] = {}
    for name in names:
        if name not in ours or name not in theirs:
            continue
        whole = theirs[name].detach().clone()
        places = torch.ones(whole.shape, dtype=torch.bool, device=whole.device)
        for dim, positions in gone.get(name, {}).items():
            places.index_fill_(dim, positions.to(whole.device), False)
        if int(places.sum()) == ours[name].numel():
            for dim, positions in gone.get(name, {}).items():
                if name in directions and dim != directions[name]:  # so that it adds nothing to the norm
                    whole.index_fill_(dim, positions.to(whole.device), 0)
            whole[places] = ours[name].detach().to(whole).flatten()
            found[name] = whole
    return found


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under each of its names."""
    return dict(chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)))
