"""`discover`: which neurons exist in a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from torch import nn

from tracker import fake, trial
from tracker.admission import admitted, unwrapped
from tracker.caches import decide, undecided
from tracker.errors import DiscoveryError
from tracker.example_inputs import (
    HOW_TO_GIVE_INPUTS,
    Call,
    candidate_calls,
    first_batch_call,
    given_call,
    where_the_model_is,
)
from tracker.findings import Equation
from tracker.fingerprint import structure_fingerprint
from tracker.flow import Flow
from tracker.groups import LabelledSite, frozen_parts, group
from tracker.integers import integers_of, solve
from tracker.labels import Block, Grid
from tracker.layer_integers import layer_integers
from tracker.neuron_map import Frozen, Integer, Length, NeuronGroup, NeuronMap
from tracker.resolve import resolve
from tracker.sizes import Attribute, integer_attributes, read_path, write_path
from tracker.tensors import tensors_in
from tracker.trace import freeze_outputs
from tracker.trace import run as run_with_labels


class _Discovered(NamedTuple):
    neurons: NeuronMap
    call: Call


_remembered: WeakKeyDictionary[nn.Module, _Discovered] = WeakKeyDictionary()


def discover(
    model: nn.Module,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    data_loader: Iterable[Any] | None = None,
    query_heads: bool = False,
) -> NeuronMap:
    """Find the neurons of a model by running its own forward once on fake tensors.

    `example_inputs` is a tensor or a tuple of positional arguments (`()` for none), `example_kwargs` a dict that may
    hold non-tensors. Without them the first batch of `data_loader` is used, or what the model itself names, or shapes
    guessed from its first layers. Weights and inputs may be on the meta device. The model is left as it was.

    Where several query heads share a key and a value head, all of them are one neuron. With `query_heads` it is one
    query head of each key and value head instead: every key and value stays, and serves fewer queries.

    Raises `DiscoveryError` where no call works, saying how to pass one.
    """
    model = admitted(model)
    call = given_call(model, example_inputs, example_kwargs)
    if call is None and data_loader is not None:
        call = first_batch_call(model, data_loader)
    if call is None:
        call = _working_call(model)
    decide_caches(model, call)
    flow, sites = _trace(model, call)
    neurons = _map(model, flow, sites, query_heads=query_heads)
    neurons = _refuse(neurons, trial.refusals(model, neurons, call, None if flow.real else flow.constants))
    _remembered[model] = _Discovered(neurons, call)
    return neurons


def neurons_of(
    model: nn.Module, neurons: NeuronMap | None = None, *, data_loader: Iterable[Any] | None = None
) -> NeuronMap:
    """The map given, else the one last discovered for this very model, else a new one."""
    for found in (neurons, last_discovered(model)):
        if found is not None:  # a map without groups is false, and an answer
            return found
    return discover(model, data_loader=data_loader)


def last_discovered(model: nn.Module) -> NeuronMap | None:
    """The map last discovered for this very model, if its structure is still the same."""
    found = _remembered.get(unwrapped(model))
    return found.neurons if found and found.neurons.fingerprint == structure_fingerprint(model) else None


def example_call(model: nn.Module) -> Call | None:
    """The call that the model was last discovered with; it stays good after the model was pruned."""
    bare = unwrapped(model)
    found = _remembered.get(bare)
    return where_the_model_is(bare, found.call) if found else None


def forget(model: nn.Module) -> None:
    """Drop what was remembered of a model."""
    _remembered.pop(unwrapped(model), None)


def _working_call(model: nn.Module) -> Call:
    """The first call that the model's forward accepts: the one it was last discovered with, or a candidate."""
    remembered = example_call(model)
    failures: list[str] = []
    for call in chain([remembered] if remembered else [], candidate_calls(model)):
        error = _failure(model, call)
        if error is None:
            return call
        failures.append(error)
    tried = f" The last of {len(failures)} guesses failed with {failures[-1]}." if failures else ""
    raise DiscoveryError(
        f"No example inputs for {type(model).__name__} could be guessed.{tried}", hint=HOW_TO_GIVE_INPUTS
    )


def decide_caches(model: nn.Module, call: Call | None) -> None:
    """Find out which dicts of tensors the model fills again when they are empty, and which it cannot do without.

    Without a call, one is guessed where there are such dicts; raises `DiscoveryError` where none works.
    """
    found = undecided(model)
    if not found:
        return
    if call is None:
        try:
            call = _working_call(model)
        except DiscoveryError as error:
            module, name = found[0]
            raise DiscoveryError(
                f"{type(module).__name__} keeps tensors in '{name}', which an earlier forward may have left there, and "
                f"without example inputs that cannot be told.",
                hint="Discover this very model with inputs first: discover(model, example_inputs).",
            ) from error
    for module, name in found:
        decide(module, name, refilled=True)
    if _failure(model, call) is not None:
        for module, name in found:
            decide(module, name, refilled=False)
        for module, name in found:
            decide(module, name, refilled=True)
            decide(module, name, refilled=_failure(model, call) is None)


def _failure(model: nn.Module, call: Call) -> str | None:
    """Why a call does not work, on fake tensors and (unless there are no weights) on real ones; None if it does."""
    for real in (False, True) if _has_weights(model) else (False,):
        try:
            with fake.left_as_found(model), fake.stand_ins(model, real=real) as (stand_in, stand_in_call):
                fake.run(model, stand_in, stand_in_call(call))
            return None
        except Exception as error:  # noqa: BLE001 (a guess may fail in any way)
            failure = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
    return failure


def _has_weights(model: nn.Module) -> bool:
    return all(tensor.device.type != "meta" for tensor in fake.tensors(model).values())


def _trace(model: nn.Module, call: Call) -> tuple[Flow, list[LabelledSite]]:
    """Trace on fake tensors; a model that looks at values, which those do not have, is traced on its real weights."""
    try:
        return _trace_with(model, call, real=False)
    except DiscoveryError:
        if not _has_weights(model):
            raise
    return _trace_with(model, call, real=True)


def _trace_with(model: nn.Module, call: Call, *, real: bool) -> tuple[Flow, list[LabelledSite]]:
    flow = Flow(real=real)
    sites: list[LabelledSite] = []
    names = fake.aliases(model)
    with fake.left_as_found(model), fake.stand_ins(model, real=real) as (stand_in, stand_in_call):
        for name, tensor in stand_in.items():
            if not tensor.is_floating_point() and not tensor.is_complex():
                continue
            blocks = []
            for dim, size in enumerate(tensor.shape):
                if size > 1:
                    labels = flow.space.fresh(size)
                    sites.append(LabelledSite(names[name], dim, labels))
                    blocks.append(Block((dim,), flow.space.grid(labels)))
            flow.put(tensor, blocks)
            flow.own(tensor, name)
        inputs = stand_in_call(call)
        for tensor in tensors_in((inputs.args, inputs.kwargs)):
            flow.set_origin(tensor, None)
        by_site = {site: labelled.labels for labelled in sites for site in labelled.sites}
        for expression, counted in layer_integers(model, by_site):
            flow.equations.append(Equation(expression, Grid(counted), 0, "its own layer"))
        _track_integers(flow, model)
        try:
            freeze_outputs(flow, run_with_labels(flow, model, lambda: fake.run(model, stand_in, inputs)))
        except Exception as error:
            raise DiscoveryError(
                f"{type(model).__name__} fails on the example inputs: {type(error).__name__}: {error}",
                hint=HOW_TO_GIVE_INPUTS,
            ) from error
        finally:
            for tensor in tensors_in((call.args, call.kwargs)):
                flow.forget(tensor)
    return flow, sites


def _track_integers(flow: Flow, model: nn.Module) -> None:
    """Let every integer attribute remember its name; `left_as_found` takes that back."""
    for name, module in model.named_modules():
        for path in list(integer_attributes(module)):
            write_path(module, path, flow.tracked(read_path(module, path), Attribute(name, path)))


def _map(model: nn.Module, flow: Flow, sites: list[LabelledSite], *, query_heads: bool) -> NeuronMap:
    parts = resolve(flow.space, query_heads=query_heads)
    grouping = group(flow, parts, sites)
    sizes = np.array([g.size for g in grouping.groups], dtype=np.int64)
    modules = dict(model.named_modules())
    solution = solve(flow, parts, grouping.group_of, sizes, lambda a: int(read_path(modules[a.module], a.path)))
    solved = integers_of(solution.integers, [g.name for g in grouping.groups])
    groups = tuple(
        replace(g, minimum=max(g.minimum, solution.minimum.get(index, 1))) for index, g in enumerate(grouping.groups)
    )
    needed = {g.name: f"needs all of its {g.size} neurons" for g in groups if not g.removable}
    alone = {g.name: "is a single neuron" for g in groups if g.size < 2}
    refused = needed | alone | {groups[index].name: reason for index, reason in solution.refused.items()}
    whole = NeuronMap(
        groups=groups,
        frozen=frozen_parts(flow, parts, sites),
        integers=solved,
        fingerprint=structure_fingerprint(model),
        model=type(model).__name__,
        operators_without_rule=dict(flow.operators_without_rule),
        lengths=tuple(Length(*normed[:3]) for normed in flow.normed.values()),
    )
    return _refuse(whole, refused)


def _refuse(neurons: NeuronMap, refused: Mapping[str, str]) -> NeuronMap:
    """The map with some groups frozen."""
    if not refused:
        return neurons
    kept = tuple(g for g in neurons.groups if g.name not in refused)
    frozen = tuple(_frozen(g, refused[g.name]) for g in neurons.groups if g.name in refused)
    integers = (
        Integer(i.module, i.path, {name: n for name, n in i.follows.items() if name not in refused})
        for i in neurons.integers
    )
    return replace(
        neurons,
        groups=kept,
        frozen=(*neurons.frozen, *frozen),
        integers=tuple(integer for integer in integers if integer.follows),
    )


def _frozen(refused: NeuronGroup, reason: str) -> Frozen:
    return Frozen(refused.name, refused.size, reason, refused.producers)
