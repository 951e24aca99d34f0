"""Tensors cut to other sizes, in place, under a snapshot: what happens to a model's numbers when its neurons change.

`prune_` and `expand_` decide which indices of which dimensions make up the new tensors; everything they do to a model
they do here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from pruner.companions import Along
from pruner.lengths import lengthened, norms
from pruner.memory import check_alone
from pruner.prune_result import IntegerChange
from pruner.repair import tensors_of
from pruner.snapshot import Snapshot
from tracker import trial
from tracker.caches import filled
from tracker.errors import PlanError
from tracker.fingerprint import structure_fingerprint
from tracker.neuron_map import Length, NeuronMap, Site
from tracker.sizes import write_path

_DENSE_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Cut:
    """A tensor; for each dimension that changes, the indices that make up the new one; and what is done to the outcome
    then. `names` are those of the model's own tensor that this one is or follows, `degree` is that of a `Follower`.
    """

    tensor: Tensor
    keep: Mapping[int, Tensor]
    names: Sequence[str]
    degree: int | None = None
    edits: list[Callable[[Tensor], Tensor]] = field(default_factory=list)


def touched(
    model: nn.Module, neurons: NeuronMap, positions: Mapping[str, Mapping[Site, Tensor]]
) -> Iterator[tuple[Tensor, int, str, Site, Tensor]]:
    """Every dimension that positions of some groups are on: tensor, dimension, group, site, positions.

    Raises `PlanError` where the model lacks it.
    """
    named = tensors_of(model)
    for name, sites in positions.items():
        for site, places in sites.items():
            tensor = named.get(site.parameter)
            if tensor is None or not -tensor.dim() <= site.dim < tensor.dim():
                raise PlanError(
                    f"Layer '{name}' reaches into '{site.parameter}', dimension {site.dim}, which the model lacks.",
                    hint="Discover the model again: the neuron map belongs to another one.",
                )
            yield tensor, site.dim % tensor.dim(), name, site, places


def cuts_without(
    model: nn.Module, neurons: NeuronMap, removed: Mapping[str, Tensor], along: Along | None = None
) -> list[Cut]:
    """What has to shrink, each tensor once however many names it has: parameters, buffers, gradients, companions.

    Nothing is changed here, so that all that can be wrong is found before anything is.
    """
    gone: dict[int, dict[int, list[Tensor]]] = {}
    tensors: dict[int, Tensor] = {}
    positions = {name: neurons[name].slices(chosen) for name, chosen in removed.items()}
    for tensor, dim, _, _, places in touched(model, neurons, positions):
        tensors[id(tensor)] = tensor
        gone.setdefault(id(tensor), {}).setdefault(dim, []).append(places)
    keep = {
        key: {dim: _staying(tensor.shape[dim], parts) for dim, parts in gone[key].items()}
        for key, tensor in tensors.items()
    }
    return with_followers(model, neurons.lengths, tensors, keep, along or Along())


def with_followers(
    model: nn.Module,
    lengths: Sequence[Length],
    tensors: Mapping[int, Tensor],
    keep: Mapping[int, Mapping[int, Tensor]],
    along: Along,
) -> list[Cut]:
    """The cuts of the model's own tensors, by their ids, and of all that follows them."""
    named = tensors_of(model)
    names: dict[int, list[str]] = {}
    for name, tensor in named.items():
        names.setdefault(id(tensor), []).append(name)
    for name in (name for length in lengths for name in (length.direction, length.length) if name not in named):
        raise PlanError(
            f"The neuron map has a weight norm of '{name}', which the model lacks.",
            hint="Discover the model again: the neuron map belongs to another one.",
        )
    changed = [length for length in lengths if set(keep.get(id(named[length.direction]), ())) - {length.dim}]
    tensors = {**{id(named[length.length]): named[length.length] for length in changed}, **tensors}
    check_alone(named, tensors.values())
    cuts = [Cut(tensor, keep.get(key, {}), names[key]) for key, tensor in tensors.items()]
    for cut in list(cuts):
        for follower in along.followers(cut.names, cut.tensor, set(names)):
            kept = {own: cut.keep[dim] for own, dim in follower.dims.items() if dim in cut.keep}
            cuts.append(Cut(follower.tensor, kept, cut.names, follower.degree))
    return _lengths_first(cuts, changed, (named, *along.twins))


def _lengths_first(cuts: list[Cut], lengths: Iterable[Length], models: Sequence[Mapping[str, Tensor]]) -> list[Cut]:
    """Every length, and every copy of it, follows its own direction, and before that one is cut."""
    by_tensor = {id(cut.tensor): cut for cut in cuts}
    first: dict[int, Cut] = {}
    for length in lengths:
        own, *twins = [(named[length.length], by_tensor[id(named[length.direction])]) for named in models]
        directions = {id(tensor): direction for tensor, direction in twins}
        for cut in cuts:
            if length.length in cut.names and cut.degree is None:
                direction = directions.get(id(cut.tensor), own[1])
                cut.edits.append(partial(_with_norm_of, direction=direction, length=length))
                first[id(cut)] = cut
    return [*first.values(), *(cut for cut in cuts if id(cut) not in first)]


def _with_norm_of(data: Tensor, direction: Cut, length: Length) -> Tensor:
    before = norms(direction.tensor, length)
    if length.dim in direction.keep:
        before = before.index_select(length.dim, direction.keep[length.dim].to(before.device))
    return lengthened(data, before, norms(_made(direction), length))


def integer_changes(
    model: nn.Module, neurons: NeuronMap, removed: Mapping[str, Tensor] | Mapping[str, int]
) -> tuple[IntegerChange, ...]:
    """The integers that follow a removal; of so many neurons less than none where neurons are added."""
    return tuple(
        IntegerChange(module, tuple(path), old, new)
        for module, path, old, new in trial.integers_after(model, neurons, removed)
    )


def cut_to_size(model: nn.Module, cuts: Iterable[Cut], integers: Iterable[IntegerChange], snapshot: Snapshot) -> None:
    """Change the tensors and integers of a model, and drop what it had cached of the old sizes."""
    for cut in cuts:
        with torch.inference_mode(cut.tensor.is_inference()):  # so that it stays what it is, also in a block of that
            snapshot.replace(cut.tensor, _made(cut))
    for change in integers:
        module = model.get_submodule(change.module)
        snapshot.hold(module, str(change.path[0]))
        write_path(module, change.path, change.new)
    for module, name in filled(model):
        snapshot.hold(module, name)
        vars(module)[name] = {}


def check_map(model: nn.Module, neurons: NeuronMap) -> None:
    """Raise `PlanError` where the map is of another structure than the model has now."""
    now = structure_fingerprint(model)
    if neurons.fingerprint and neurons.fingerprint != now:
        raise PlanError(
            f"The neuron map was made for a {neurons.model or 'model'} of structure {neurons.fingerprint}; this "
            f"{type(model).__name__} has structure {now}.",
            hint="Discover the model again; a model that was pruned since needs a new map.",
        )


def parameters_of(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def _staying(size: int, gone: Sequence[Tensor]) -> Tensor:
    stays = np.ones(size, dtype=bool)
    for positions in gone:
        stays[positions.numpy()] = False
    return torch.from_numpy(np.flatnonzero(stays))


def _made(cut: Cut) -> Tensor:
    """The new tensor, as dense as the old one was and in the same memory format."""
    data = cut.tensor.data
    for dim in sorted(cut.keep, key=lambda dim: len(cut.keep[dim]) / data.shape[dim]):  # the deepest cut first
        data = _selected(data, dim, cut.keep[dim])
    for edit in cut.edits:
        data = edit(data)
    layout = _DENSE_LAYOUTS.get(cut.tensor.dim())
    if layout and cut.tensor.is_contiguous(memory_format=layout) and not cut.tensor.is_contiguous():
        return data.contiguous(memory_format=layout)
    return data


def _selected(data: Tensor, dim: int, keep: Tensor) -> Tensor:
    """`data.index_select(dim, keep)`; by NumPy where that is PyTorch's slowest: columns of two bytes an element."""
    if data.element_size() == 2 and dim == data.dim() - 1 and data.device.type == "cpu" and data.is_contiguous():
        made = data.new_empty((*data.shape[:-1], len(keep)))
        data.view(torch.int16).numpy().take(keep.numpy(), -1, out=made.view(torch.int16).numpy(), mode="clip")
        return made
    return data.index_select(dim, keep.to(data.device))
