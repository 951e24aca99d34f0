"""What a removal does to shapes and integers, tried on fake tensors before any real weight is touched."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Sized
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from torch import nn

from tracker import fake
from tracker.example_inputs import Call
from tracker.neuron_map import NeuronGroup, NeuronMap
from tracker.numbers import Numbers, Use, changed
from tracker.places import raising
from tracker.rephrased import Rephrasing
from tracker.sizes import read_path, write_path

Removed = Mapping[str, int | Sized]
IntegerChange = tuple[str, tuple[str | int, ...], int, int]


class _Whole(NamedTuple):
    """The numbers that a model computed with when it was discovered."""

    fingerprint: str
    call: Call
    numbers: Sequence[Use]


_wholes: WeakKeyDictionary[nn.Module, _Whole] = WeakKeyDictionary()


def sliced_shapes(model: nn.Module, neurons: NeuronMap, removed: Removed) -> dict[str, tuple[int, ...]]:
    """The new shape of every tensor that changes (under all its names) after removing so many neurons of each group.

    `removed` gives the neurons of each group by group name, or just their number.
    """
    shapes = {
        name: list(tensor.shape)
        for name, tensor in (
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        )
    }
    changed: set[str] = set()
    for name, count in _counts(removed).items():
        for site, positions in neurons[name].members.items():
            shapes[site.parameter][site.dim] -= count * positions.shape[1]
            if count:
                changed.add(site.parameter)
    return {name: tuple(shape) for name, shape in shapes.items() if name in changed}


def integers_after(model: nn.Module, neurons: NeuronMap, removed: Removed) -> list[IntegerChange]:
    """Every integer that changes: (module, path, old value, new value).

    A size in the module's code is listed also where it keeps its value, as the author's expression would not.
    """
    counts = _counts(removed)
    changes: list[IntegerChange] = []
    for integer in neurons.integers:
        falls = sum(counts.get(group, 0) * times for group, times in integer.follows.items())
        fixed = any(counts.get(group, 0) for group, times in integer.follows.items() if not times)
        if falls or fixed:
            old = read_path(model.get_submodule(integer.module), integer.path)
            changes.append((integer.module, integer.path, old, old - falls))
    return changes


def run(model: nn.Module, neurons: NeuronMap, removed: Removed, call: Call) -> str | None:
    """Run the model with sliced shapes; None if it does the same with fewer neurons, else what goes wrong and where."""
    whole = _wholes.get(model)
    known = whole is not None and whole.fingerprint == neurons.fingerprint and whole.call is call
    if whole is not None and known and _failure_without(removed, model, neurons, call, whole.numbers) is None:
        return None
    # The whole model may compute with other numbers by now.
    return _failure_without(removed, model, neurons, call, _numbers_of_whole(model, neurons, call))


def refusals(model: nn.Module, neurons: NeuronMap, call: Call, numbers: Sequence[Use] | None = None) -> dict[str, str]:
    """Groups whose removal breaks the model's own code, with what failed: found by trying classes of alike groups.

    `numbers` are those of the whole model's forward, None where that does not run on fake tensors.
    """
    if numbers is not None:
        _wholes[model] = _Whole(neurons.fingerprint, call, numbers)

    def failure(groups: Sequence[NeuronGroup]) -> str | None:
        samples = (_sample(groups, seed) for seed in range(2))
        errors = (_failure_without(removed, model, neurons, call, numbers) for removed in samples)
        return next((error for error in errors if error is not None), None)

    if failure(neurons.groups) is None:
        return {}
    refused: dict[str, str] = {}
    accepted: list[NeuronGroup] = []
    for alike in _classes(neurons.groups):
        error = failure([*accepted, *alike])
        if error is None:
            accepted += alike
            continue
        for group in alike:
            error = failure([*accepted, group]) if len(alike) > 1 else error
            if error is None:
                accepted.append(group)
            else:
                refused[group.name] = error
    return refused


def _numbers_of_whole(model: nn.Module, neurons: NeuronMap, call: Call) -> list[Use] | None:
    """The numbers in the whole model's forward; None where that looks at values, which fake tensors do not have."""
    try:
        return _forward(model, neurons, {}, call, real=False)
    except Exception:  # noqa: BLE001 (whatever the model's code raises is the answer)
        return None


def _failure_without(
    removed: Removed, model: nn.Module, neurons: NeuronMap, call: Call, numbers: Sequence[Use] | None
) -> str | None:
    """What goes wrong without these neurons, given the numbers of the whole model."""
    try:
        left = _forward(model, neurons, removed, call, real=numbers is None)
    except Exception as error:  # noqa: BLE001 (likewise)
        return _failure(error)
    return None if numbers is None else changed(numbers, left)


def _forward(model: nn.Module, neurons: NeuronMap, removed: Removed, call: Call, *, real: bool) -> list[Use]:
    """Run the model's forward with sliced shapes; returns the numbers in it."""
    shapes = sliced_shapes(model, neurons, removed)
    integers = integers_after(model, neurons, removed)
    with fake.left_as_found(model), fake.stand_ins(model, shapes, real=real) as (stand_in, stand_in_call):
        for module, path, _, new in integers:
            write_path(model.get_submodule(module), path, new)
        inputs = stand_in_call(call)
        numbers = Numbers()
        with Rephrasing(), numbers:
            fake.run(model, stand_in, inputs)
    return numbers.uses


def _sample(groups: Sequence[NeuronGroup], seed: int) -> dict[str, int]:
    """A different number of neurons of every group, so that no two sizes agree by chance."""
    random = np.random.default_rng(seed)
    steps = [(group, group.removable // group.multiple) for group in groups]
    return {g.name: int(random.integers(1, most + 1)) * g.multiple for g, most in steps if most}


def _classes(groups: Sequence[NeuronGroup]) -> list[list[NeuronGroup]]:
    """Groups that differ only in block numbers; the exact ones first, as those are what people remove."""
    classes: dict[str, list[NeuronGroup]] = {}
    for group in groups:
        places = sorted(f"{site.parameter}:{site.dim}" for site in group.members)
        classes.setdefault(re.sub(r"\d+", "#", " ".join(dict.fromkeys(places))), []).append(group)
    return sorted(classes.values(), key=lambda alike: not alike[0].exact)


def _counts(removed: Removed) -> dict[str, int]:
    return {name: given if isinstance(given, int) else len(given) for name, given in removed.items()}


def _failure(error: Exception) -> str:
    """The first line of an error, and the line of the model's code that raised it."""
    place = raising(error)
    message = (str(error).strip().splitlines() or [""])[0]
    where = f" at {place}" if place else ""
    return f"without some of them the code fails{where}: {type(error).__name__}: {message[:160]}"
