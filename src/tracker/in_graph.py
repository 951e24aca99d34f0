"""Watching a model that `torch.compile` made fast, from inside of the compiled code.

Hooks that are there while code is compiled become part of it. What they do here is call an operator of our own, which
the compiler keeps as it is: it shows the tensor to the watch and gives nothing back. So nothing breaks the graph, and
no statistics are lost. The hooks stay on between epochs, doing nothing, so that code is compiled anew only once.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.hooks import RemovableHandle

from tracker.batches import evaluating
from tracker.compiled import drop_compiled_code
from tracker.example_inputs import Call
from tracker.neuron_map import NeuronGroup, Read
from tracker.taps import tap


class Watching(Protocol):
    """What is shown the reads; see `tracker.watch.Watch`."""

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None: ...
    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None: ...
    def visit(self, group: NeuronGroup, read: Read, x: Tensor) -> None: ...


class InGraph:
    """What the hooks of one watch on one model do; nothing outside of `active`. A copy of it does nothing at all."""

    def __init__(self, watch: Watching | None = None, model: nn.Module | None = None) -> None:
        self.number = next(_numbers)
        self.on = False
        self.watch = watch
        self.token = torch.zeros(1)
        self.places: dict[int, list[tuple[NeuronGroup, Read]]] = {}
        self._model = None if model is None else ref(model)
        self._handles: list[RemovableHandle] = []

    def __reduce__(self) -> tuple[type[InGraph], tuple[()]]:
        """Models are copied and pickled with their hooks."""
        return InGraph, ()

    def install(self, model: nn.Module, groups: Sequence[NeuronGroup], call: Call | None) -> None:
        """Put the hooks on."""
        by_module: dict[str, list[tuple[NeuronGroup, Read]]] = {}
        for group in groups:
            for read in group.reads:
                by_module.setdefault(read.module, []).append((group, read))
        alone = _read_first(model, groups, call)
        self._handles = [
            model.register_forward_pre_hook(_Begin(self), with_kwargs=True, prepend=True),
            model.register_forward_hook(_End(self), always_call=True),
        ]
        for place, (name, pairs) in enumerate(by_module.items()):
            first = [pair for pair in pairs if alone is None or id(pair[1]) in alone]
            if first:
                self.places[place] = first
            hook = _Show(self, place, pairs)
            self._handles.append(model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True))
        _live[self.number] = self
        # Code is shared by all models of a class, and by default whether they have hooks is not looked at.
        dynamo = sys.modules.get("torch._dynamo.config")
        if dynamo is not None:
            dynamo.skip_nnmodule_hook_guards = False  # type: ignore[attr-defined]
        drop_compiled_code()  # it does not know of the hooks

    def close(self) -> None:
        """Take the hooks off. Code compiled with them goes on calling the operators, which then do nothing."""
        for handle in self._handles:
            handle.remove()
        _live.pop(self.number, None)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within the block, every forward is shown to the watch."""
        self.on = True
        try:
            yield
        finally:
            self.on = False

    def begun(self, mask: Tensor | None) -> None:
        """Compiled code of the model, in training mode, starts."""
        model = self._model() if self._model is not None else None
        if self.on and self.watch is not None and model is not None:
            self.watch.begin(model, (), {} if mask is None else {"attention_mask": mask})

    def shown(self, x: Tensor, place: int) -> None:
        """Compiled code reads `x`."""
        if self.on and self.watch is not None:
            for group, read in self.places[place]:
                self.watch.visit(group, read, x)

    def ended(self) -> None:
        """Compiled code of the model ends."""
        model = self._model() if self._model is not None else None
        if self.on and self.watch is not None and model is not None:
            self.watch.end(model, (), True)


@dataclass(frozen=True)
class _Begin:
    """Before a forward of the whole model. What mode it is in is known while its code is compiled."""

    all: InGraph

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            if module.training:
                mask = kwargs.get("attention_mask")
                torch.ops.neuronscope.begin(self.all.token, mask, self.all.number)
        elif self.all.on and self.all.watch is not None:
            self.all.watch.begin(module, args, kwargs)


@dataclass(frozen=True)
class _End:
    """After a forward of the whole model."""

    all: InGraph

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling():
            if module.training:
                torch.ops.neuronscope.end(self.all.token, self.all.number)
        elif self.all.on and self.all.watch is not None:
            self.all.watch.end(module, args, output)


@dataclass(frozen=True)
class _Show:
    """Before a forward of a consumer."""

    all: InGraph
    place: int
    pairs: list[tuple[NeuronGroup, Read]]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next((value for value in kwargs.values() if isinstance(value, Tensor)), None)
        if torch.compiler.is_compiling():
            if x is not None and self.place in self.all.places:
                torch.ops.neuronscope.show(self.all.token, x.detach(), self.place, self.all.number)
        elif self.all.on and self.all.watch is not None and x is not None:
            for group, read in self.pairs:
                self.all.watch.visit(group, read, x)


@contextmanager
def watching_in_graph(
    model: nn.Module, watch: Watching, groups: Sequence[NeuronGroup], call: Call | None
) -> Iterator[None]:
    """Within the block, `watch` sees every forward of a model that is, or may be, compiled. The hooks stay on.

    In compiled code only the groups of which `hidden` says no are seen.
    """
    found = _installed.get(model)
    if found is None or found.watch is not watch:
        if found is not None:
            found.close()
        found = _installed[model] = InGraph(watch, model)
        found.install(model, groups, call)
    with found.active():
        yield


def hidden(group: NeuronGroup) -> bool:
    """Whether a group is read where compiled code cannot be looked into: by products with raw parameters."""
    return any(read.how != "input" for read in group.reads)


def is_compiled(model: nn.Module) -> bool:
    """Whether this model was given to `torch.compile`."""
    frame = sys.modules.get("torch._dynamo.eval_frame")
    if frame is None:
        return False
    asked = any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())
    return asked or isinstance(model, frame.OptimizedModule)


def something_is_compiled() -> bool:
    """Whether anything was compiled in this process so far: it may be a step of training that calls the model."""
    frame = sys.modules.get("torch._dynamo.eval_frame")
    if frame is None:
        return False
    known = getattr(frame, "cached_backends", None)
    # None stands there for what is asked not to be compiled: PyTorch itself asks that of some functions.
    return known is None or any(backend is not None for backend in known.values())


def _read_first(model: nn.Module, groups: Sequence[NeuronGroup], call: Call | None) -> set[int] | None:
    """The reads that are the first of their group to read a tensor, by id; query, key and value read the same one.

    In compiled code a tensor is not known again: its memory may hold another one later in the same forward. None where
    no inputs are known to try it with.
    """
    if call is None or any(isinstance(x, Tensor) and x.is_meta for x in tree_leaves((call.args, call.kwargs))):
        return None
    first: set[int] = set()
    kept: list[Tensor] = []  # alive, so that no other tensor gets its id
    seen: set[tuple[str, int]] = set()

    def note(group: NeuronGroup, read: Read, x: Tensor) -> None:
        kept.append(x)
        if (group.name, id(x)) not in seen:
            seen.add((group.name, id(x)))
            first.add(id(read))

    home = next(model.parameters())

    def move(x: Tensor) -> Tensor:
        return x.to(home.device, home.dtype if x.is_floating_point() else None)

    args, kwargs = tree_map_only(Tensor, move, (call.args, call.kwargs))
    with evaluating(model), tap(model, groups, note):
        model(*args, **kwargs)
    return first


_numbers = itertools.count()
_live: WeakValueDictionary[int, InGraph] = WeakValueDictionary()
_installed: WeakKeyDictionary[nn.Module, InGraph] = WeakKeyDictionary()


@torch.library.custom_op("neuronscope::begin", mutates_args=("token",))
def _begin(token: Tensor, mask: Tensor | None, number: int) -> None:
    if number in _live:
        _live[number].begun(mask)


@torch.library.custom_op("neuronscope::show", mutates_args=("token",))
def _show(token: Tensor, x: Tensor, place: int, number: int) -> None:
    if number in _live:
        _live[number].shown(x, place)


@torch.library.custom_op("neuronscope::end", mutates_args=("token",))
def _end(token: Tensor, number: int) -> None:
    if number in _live:
        _live[number].ended()


@_begin.register_fake
def _(token: Tensor, mask: Tensor | None, number: int) -> None:
    return None


@_show.register_fake
def _(token: Tensor, x: Tensor, place: int, number: int) -> None:
    return None


@_end.register_fake
def _(token: Tensor, number: int) -> None:
    return None
