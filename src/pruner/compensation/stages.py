"""A model run block by block: what one block wrote is remembered, so that the next can run without those before it.

The model runs its own `forward`. Blocks that are done are skipped: in their place stands what they wrote last time; and
the run ends once the block of interest has run. So whatever lies between blocks (masks, rotary tables, skips,
down-sampling) is done by the model's own code, and no architecture needs to be known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from pruner.compensation.calibration import Calibration
from tracker.batches import Batch, repeated

_ELEMENTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
_COVERS = 0.8


class Inputs(NamedTuple):
    """What a block was called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Course(NamedTuple):
    """How a model runs: its blocks in running order (none: it has to run as a whole), whether all that a block needs is
    what the one before it wrote, when each module is first called, and how many bytes have to be remembered of a batch
    like the first one.
    """

    blocks: tuple[str, ...]
    chain: bool
    first_call: dict[str, int]
    remembered: int = 0


class _DoneError(Exception):
    """The block of interest has run; nobody needs the rest."""


class Stages:
    """A model, its blocks in running order, and what those that are done wrote for every batch.

    To be used under `evaluating`.
    """

    def __init__(self, model: nn.Module, course: Course, data: Calibration) -> None:
        self.model, self.data, self.batches = model, data, data.batches
        self.blocks, self._chain, self.first_call, _ = course
        self._written: list[dict[int, Any]] = [{} for _ in data.batches]

    def __len__(self) -> int:
        return max(1, len(self.blocks))

    def run(self, stage: int, batch: int, *, last: int | None = None) -> Any:
        """Run one stage on one batch, or all up to the `last`; returns what that block gave (the model without any)."""
        last = stage if last is None else last
        return run_from(self.model, self.blocks, self._written[batch], self._numbered(batch), stage, last)

    def given(self, stage: int, batch: int) -> Inputs:
        """What the block of a stage would be called with."""
        if not self.blocks:
            return Inputs(self.batches[batch].args, self.batches[batch].kwargs)
        return inputs_of(self.model, self.blocks, self._written[batch], self._numbered(batch), stage)

    def _numbered(self, batch: int) -> Callable[[nn.Module], Any]:
        return partial(repeated, batch=self.batches[batch], seed=batch)

    def advance(self, stage: int) -> None:
        """The stage is done: remember what it writes, and forget what nobody needs any more."""
        for batch in range(len(self._written) if self.blocks else 0):
            self.keep(stage, batch, self.run(stage, batch))

    def keep(self, stage: int, batch: int, output: Any) -> None:
        """Remember what a stage wrote for a batch."""
        written = self._written[batch]
        written[stage] = tree_map_only(Tensor, torch.Tensor.detach, output)
        if self._chain and stage - 1 in written:
            written[stage - 1] = tree_map_only(Tensor, _shape_only, written[stage - 1])

    @property
    def bytes(self) -> int:
        """Memory of what is remembered."""
        leaves = [leaf for written in self._written for leaf in tree_leaves(written) if isinstance(leaf, Tensor)]
        return sum({leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in leaves}.values())


def _shape_only(tensor: Tensor) -> Tensor:
    """A tensor of this shape that takes up one number."""
    return torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)


def run_from(
    model: nn.Module,
    blocks: Sequence[str],
    written: Mapping[int, Any],
    whole: Callable[[nn.Module], Any],
    stage: int,
    last: int,
) -> Any:
    """Run `model`, as `whole` does on a batch, with the blocks before `stage` skipped, until the `last` one has run."""
    if not blocks:
        return whole(model)
    found: list[Any] = []

    def done(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output)
        raise _DoneError

    with skipped(model, {blocks[index]: written[index] for index in range(stage)}), ExitStack() as stack:
        handle = model.get_submodule(blocks[last]).register_forward_hook(done)
        stack.callback(handle.remove)
        try:
            return whole(model)
        except _DoneError:
            return found[0]


def inputs_of(
    model: nn.Module,
    blocks: Sequence[str],
    written: Mapping[int, Any],
    whole: Callable[[nn.Module], Any],
    stage: int,
) -> Inputs:
    """What a block would be called with, the blocks before it skipped."""
    found: list[Inputs] = []

    def reached(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(Inputs(args, kwargs))
        raise _DoneError

    with skipped(model, {blocks[index]: written[index] for index in range(stage)}):
        handle = model.get_submodule(blocks[stage]).register_forward_pre_hook(reached, with_kwargs=True)
        try:
            whole(model)
        except _DoneError:
            pass
        finally:
            handle.remove()
    return found[0]


@contextmanager
def skipped(model: nn.Module, written: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, these modules do nothing and return what is given here."""
    places = [(model.get_submodule(name), output) for name, output in written.items()]
    own = [(module, vars(module).get("forward")) for module, _ in places]
    try:
        for module, output in places:
            vars(module)["forward"] = _returning(output)
        yield
    finally:
        for module, before in own:
            if before is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = before


def _returning(output: Any) -> Callable[..., Any]:
    def give(*_: Any, **__: Any) -> Any:
        return tree_map_only(Tensor, torch.clone, output)  # the model's code may go on in place

    return give


def course_of(model: nn.Module, modules: Collection[str], batches: Sequence[Batch]) -> Course:
    """How a model runs, in blocks such that each of `modules` is in one.

    It has to run as a whole where a block runs several times, or is called with something else where those before it
    are skipped.
    """
    calls = calls_of(model, batches[0])
    first = {name: times[0] for name, times in calls.items()}
    blocks = blocks_of(model, calls, modules)
    covered = all(any(_within(module, block) for block in blocks) for module in modules)
    if not covered or len(blocks) < 2 or any(len(calls[block]) != 1 for block in blocks):
        return Course((), True, first)
    return _checked(model, tuple(blocks), batches[0], first)


def calls_of(model: nn.Module, batch: Batch) -> dict[str, list[int]]:
    """When each module was called, in one run."""
    calls: dict[str, list[int]] = {}
    count = iter(range(10**9))
    with ExitStack() as stack:
        for name, module in model.named_modules():
            handle = module.register_forward_pre_hook(
                lambda *_, name=name: calls.setdefault(name, []).append(next(count))
            )
            stack.callback(handle.remove)
        repeated(model, batch)
    return calls


def blocks_of(model: nn.Module, calls: Mapping[str, list[int]], modules: Collection[str]) -> list[str]:
    """The modules that a model consists of, in running order: the items of its lists, or what in it has `modules`."""
    named = dict(model.named_modules())

    def inside(name: str) -> int:
        return sum(_within(module, name) for module in modules)

    def repeated(name: str) -> bool:
        """Whether most of what is wanted lies in a list of like modules in here, each with something wanted."""
        for inner, module in named.items():
            if isinstance(module, _ELEMENTS) and inner != name and _within(inner, name):
                items = [child for child in _children(inner, module) if inside(child)]
                kinds = {type(named[child]) for child in items}
                if len(items) > 1 and len(kinds) == 1 and inside(inner) >= _COVERS * inside(name):
                    return True
        return False

    def walk(name: str, parent: nn.Module | None) -> list[str]:
        if not inside(name):
            return []
        children = [child for child in _children(name, named[name]) if inside(child)]
        if name and name in calls and (not children or (isinstance(parent, _ELEMENTS) and not repeated(name))):
            return [name]
        return [block for child in children for block in walk(child, named[name])]

    return sorted(walk("", None), key=lambda name: calls[name][0])


def _children(name: str, module: nn.Module) -> list[str]:
    return [f"{name}.{child}".lstrip(".") for child, _ in module.named_children()]


def _within(name: str, outer: str) -> bool:
    return not outer or name == outer or name.startswith(f"{outer}.")


def _checked(model: nn.Module, blocks: tuple[str, ...], batch: Batch, first: dict[str, int]) -> Course:
    """A course of these blocks if they are called with the same whether those before them run or are skipped."""
    whole = partial(repeated, batch=batch)
    given: dict[str, Inputs] = {}
    written: dict[int, Any] = {}
    with ExitStack() as stack:
        for index, name in enumerate(blocks):
            block = model.get_submodule(name)

            def before(_: Any, args: Any, kwargs: Any, name: str = name) -> None:
                given[name] = Inputs(*tree_map_only(Tensor, torch.clone, (args, kwargs)))

            def after(_: Any, __: Any, output: Any, index: int = index) -> None:
                written[index] = tree_map_only(Tensor, torch.clone, output)

            stack.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(after).remove)
        whole(model)
    chain = True
    for stage in range(1, len(blocks)):
        older = {index: tree_map_only(Tensor, _shape_only, written[index]) for index in range(stage - 1)}
        try:
            alone = inputs_of(model, blocks, {**older, stage - 1: written[stage - 1]}, whole, stage)
            chain = chain and _same(alone, given[blocks[stage]])
            if not chain and not _same(inputs_of(model, blocks, written, whole, stage), given[blocks[stage]]):
                return Course((), True, first)
        except Exception:  # noqa: BLE001 (the model's code may need what a skipped block does in any way)
            return Course((), True, first)
    sizes = [sum(x.nbytes for x in tree_leaves(output) if isinstance(x, Tensor)) for output in written.values()]
    return Course(blocks, chain, first, max(sizes) if chain else sum(sizes))


def _same(one: Inputs, other: Inputs) -> bool:
    a, b = ([leaf for leaf in tree_leaves(tuple(inputs)) if isinstance(leaf, Tensor)] for inputs in (one, other))
    return len(a) == len(b) and all(
        x.shape == y.shape and torch.allclose(x, y, rtol=1e-5, atol=1e-6, equal_nan=True)
        for x, y in zip(a, b, strict=True)
    )
