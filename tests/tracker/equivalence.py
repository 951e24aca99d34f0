"""An independent check of a neuron map: cut the neurons out of one copy of a model, silence them in another, compare.

It uses nothing of a map but `slices`, `consumers` and `integers`. Both copies are in float64, and every parameter and
buffer is random: what fresh models have in zeros and ones hides errors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tracker import NeuronMap, Site, discover
from tracker.sizes import read_path, write_path

TOLERANCE = 1e-10

Removal = Mapping[str, Sequence[int]]


def check_exact(
    model: nn.Module,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    groups: Iterable[str] = (),
    draws: int = 3,
    query_heads: bool = False,
) -> NeuronMap:
    """Discover `model`, and see that removing neurons of its exact groups equals zeroing what their consumers read.

    `groups` are names that must be exact groups of the map. A random number of neurons of every group goes, each drawn
    for itself; in the last draw every group keeps a single neuron. Returns the map.
    """
    neurons = discover(model, args, dict(kwargs or {}), query_heads=query_heads)
    check_whole(model, neurons)
    for name in groups:
        assert neurons[name].exact, f"{name}: {neurons[name].note}"
    reference = randomised(model)
    inputs, options = as_double(args), as_double(dict(kwargs or {}))
    whole = outputs(reference, inputs, options)
    differs = False
    for seed in range(draws):
        removal = draw(neurons, seed, keep_one=seed == draws - 1)
        masked = masked_outputs(reference, neurons, removal, inputs, options)
        same(outputs(sliced(reference, neurons, removal), inputs, options), masked)
        differs |= any(not torch.equal(a, b) for a, b in zip(whole, masked, strict=True))
    assert differs or not any(group.exact for group in neurons), "no neuron made a difference"
    return neurons


def check_runs(model: nn.Module, *args: Any, kwargs: Mapping[str, Any] | None = None, draws: int = 3) -> NeuronMap:
    """Discover `model`, and see that it answers in the same shapes without neurons of any group, exact or not."""
    neurons = discover(model, args, dict(kwargs or {}))
    check_whole(model, neurons)
    reference = randomised(model)
    inputs, options = as_double(args), as_double(dict(kwargs or {}))
    whole = [tensor.shape for tensor in outputs(reference, inputs, options)]
    for seed in range(draws):
        cut = sliced(reference, neurons, draw(neurons, seed, exact_only=False))
        assert [tensor.shape for tensor in outputs(cut, inputs, options)] == whole
    return neurons


def check_whole(model: nn.Module, neurons: NeuronMap) -> None:
    """Every position of every tensor belongs to at most one neuron, and all aliases of a tensor are named alike."""
    tensors = named_tensors(model)
    taken: dict[tuple[int, int], Tensor] = {}
    for group in neurons:
        assert group.size > 1
        slices = group.slices(range(group.size))
        assert {*group.producers, *group.consumers} <= slices.keys()
        for (name, dim), positions in slices.items():
            tensor = tensors[name]
            assert len(positions.unique()) == len(positions), f"{group.name} takes a position of {name} twice"
            assert int(positions.min()) >= 0
            assert int(positions.max()) < tensor.shape[dim]
            assert len(positions) % group.size == 0
            aliases = [other for other, same in tensors.items() if same is tensor]
            assert all(torch.equal(slices[Site(alias, dim)], positions) for alias in aliases)
            if name == aliases[0]:
                flags = taken.setdefault((id(tensor), dim), torch.zeros(tensor.shape[dim], dtype=torch.bool))
                assert not flags[positions].any(), f"{group.name} overlaps with another group on {name}"
                flags[positions] = True


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all their names."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy in evaluation mode and float64 whose parameters and buffers are all random."""
    generator = torch.Generator().manual_seed(seed)
    made = copy.deepcopy(model).eval().double()
    for name, tensor in named_tensors(made).items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            spread = 2 / max(1.0, float(tensor[0].numel()) ** 0.5) if tensor.dim() > 1 else 1.0
            tensor.data.copy_(noise + 0.5 if name.endswith("running_var") else (noise - 0.4) * spread)
    return made


def draw(neurons: NeuronMap, seed: int, *, keep_one: bool = False, exact_only: bool = True) -> dict[str, list[int]]:
    """Random neurons of every group, and a random number of them; with `keep_one` all but one."""
    random = np.random.default_rng(seed)
    chosen = [group for group in neurons if group.exact or not exact_only]
    steps = {group.name: group.removable // group.multiple for group in chosen}
    counts = {
        group.name: (steps[group.name] if keep_one else int(random.integers(0, steps[group.name] + 1))) * group.multiple
        for group in chosen
    }
    return {group.name: random.permutation(group.size)[: counts[group.name]].tolist() for group in chosen}


def sliced(model: nn.Module, neurons: NeuronMap, removal: Removal) -> nn.Module:
    """A copy without these neurons."""
    made = copy.deepcopy(model)
    tensors = named_tensors(made)
    gone: dict[tuple[int, int], set[int]] = {}
    owner: dict[int, Tensor] = {}
    for name, chosen in removal.items():
        for (parameter, dim), positions in neurons[name].slices(chosen).items():
            tensor = owner.setdefault(id(tensors[parameter]), tensors[parameter])
            gone.setdefault((id(tensor), dim), set()).update(positions.tolist())
    for (key, dim), removed in gone.items():
        kept = [i for i in range(owner[key].shape[dim]) if i not in removed]
        owner[key].data = owner[key].data.index_select(dim, torch.tensor(kept))
    for integer in neurons.integers:
        falls = sum(len(removal.get(name, ())) * times for name, times in integer.follows.items())
        if any(removal.get(name) for name in integer.follows):
            module = made.get_submodule(integer.module)
            write_path(module, integer.path, read_path(module, integer.path) - falls)
    return made


def masked_outputs(model: nn.Module, neurons: NeuronMap, removal: Removal, args: Any, kwargs: Any) -> list[Tensor]:
    """What a copy answers that is deaf to these neurons: the weights that read them are zero."""
    made = copy.deepcopy(model)
    tensors = named_tensors(made)
    for name, chosen in removal.items():
        slices = neurons[name].slices(chosen)
        for site in neurons[name].consumers:
            tensors[site.parameter].data.index_fill_(site.dim, slices[site], 0.0)
    return outputs(made, args, kwargs)


def outputs(model: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
    """Every floating-point tensor that the model answers with."""
    torch.manual_seed(0)
    with torch.no_grad():
        answer = model(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    found = [tensor for tensor in leaves(answer) if tensor.is_floating_point() or tensor.is_complex()]
    assert found, "the model answers with no floating-point tensor"
    return found


def leaves(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists, dicts and objects."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in leaves(item)]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in leaves(item)]
    return [tensor for item in vars(value).values() for tensor in leaves(item)] if hasattr(value, "__dict__") else []


def as_double(value: Any) -> Any:
    """Floating-point inputs in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: as_double(item) for key, item in value.items()}
    return tuple(as_double(item) for item in value) if isinstance(value, tuple) else value


def same(left: Sequence[Tensor], right: Sequence[Tensor]) -> None:
    """All outputs agree to rounding, relative to the largest value, and are finite."""
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.shape == b.shape, f"{tuple(a.shape)} instead of {tuple(b.shape)}"
        assert torch.isfinite(b).all()
        error = float((a - b).abs().max() / (b.abs().max() + 1e-12)) if a.numel() else 0.0
        assert error < TOLERANCE, f"sliced and masked differ by {error:.1e} of the largest value"
