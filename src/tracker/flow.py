"""The flow of labels through a model: what its tensors carry, and what rules and readings say about them.

`tracker.trace` runs the model; the rules of `tracker.operators` and the readings of `tracker.calls` call this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tracker import calls
from tracker.code_sites import Place, Spot, spot
from tracker.errors import DiscoveryError
from tracker.findings import Carried, Consumption, Equation, Frame, Normed, NumberUse, Sum, Writing, Written
from tracker.labels import Block, Grid, Labels, LabelSpace, constant_axes
from tracker.numbers import Use
from tracker.places import running
from tracker.sizes import Expression, Size, Tracked, sources

_CARRIED = "_neuronscope_labels"


@dataclass
class Flow:
    """The trace: labels on tensors, and everything the operators and the code said about them.

    `real` says that it runs on values and not on fake tensors.
    """

    real: bool = False
    space: LabelSpace = field(default_factory=LabelSpace)
    watching: Callable[[], AbstractContextManager[Any]] = nullcontext  # within, operators meet their rules
    names: dict[int, str] = field(default_factory=dict)  # of every module, by its id
    frames: list[Frame] = field(default_factory=lambda: [Frame("", nn.Module())])
    call: calls.Call = field(default_factory=calls.Call)
    operator: str = ""
    operators_without_rule: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[Grid, int]] = field(default_factory=list)
    equations: list[Equation] = field(default_factory=list)
    numbers: list[NumberUse] = field(default_factory=list)
    constants: list[Use] = field(default_factory=list)
    consumptions: list[Consumption] = field(default_factory=list)
    written: list[Writing] = field(default_factory=list)
    unlabelled: set[str] = field(default_factory=set)  # parameters that weights without labels are computed from
    sums: list[Sum] = field(default_factory=list)
    normed: dict[str, Normed] = field(default_factory=dict)  # by the name of the length
    own_memory: set[int] = field(default_factory=set)  # of parameters and buffers
    unused: dict[int, tuple[Tensor, list[tuple[Labels, str]]]] = field(default_factory=dict)  # results, by their id
    asked: set[int] = field(default_factory=set)  # tensors whose picks the running rule sees to, by their id
    overwritten: dict[int, Any] = field(default_factory=dict)  # memory of constants that activations were written into

    # What tensors carry

    def carried(self, tensor: Tensor) -> Carried:
        """What the tensor carries; an empty record where nothing was said about it."""
        return getattr(tensor, _CARRIED, None) or Carried()

    def blocks(self, tensor: Tensor) -> tuple[Block, ...]:
        """The tensor's blocks of labels; their axes are disjoint."""
        return self.carried(tensor).blocks

    def origin(self, tensor: Tensor) -> frozenset[str] | None:
        """The parameters and buffers that the tensor is computed from; None where it depends on the model's inputs."""
        origin = self.carried(tensor).origin
        overwritten = origin is not None and self.overwritten and storage(tensor) in self.overwritten
        return None if overwritten else origin

    def is_static(self, tensor: Tensor) -> bool:
        """Whether the tensor is computed from parameters and constants alone."""
        return self.origin(tensor) is not None

    def put(self, tensor: Tensor, blocks: Iterable[Block]) -> None:
        """Lay blocks over a tensor. Axes of size one carry nothing, and a constant axis of a grid is no axis of it."""
        kept: list[Block] = []
        for axes, grid in blocks if tensor.numel() else ():
            cells = grid.cells
            if cells.shape != tuple(tensor.shape[axis] for axis in axes):
                raise DiscoveryError(
                    f"The rule of `{self.operator}` laid labels of shape {cells.shape} over axes {axes} of a tensor of "
                    f"shape {tuple(tensor.shape)}.",
                    hint="Please report this with the model; it is a defect of the rule.",
                )
            drop = [i for i, axis in enumerate(axes) if tensor.shape[axis] == 1]
            if grid.joint and len(drop) < len(axes):
                drop = sorted({*drop, *constant_axes(cells)})
                if len(drop) == len(axes):  # one label everywhere: keep the longest axis
                    drop.remove(max(drop, key=lambda i: cells.shape[i]))
            if len(drop) == len(axes):
                continue
            if drop:
                cells = cells[tuple(0 if i in drop else slice(None) for i in range(len(axes)))]
                axes = tuple(axis for i, axis in enumerate(axes) if i not in drop)
                grid = self.space.grid(cells)
            kept.append(Block(tuple(axes), grid))
        setattr(tensor, _CARRIED, replace(self.carried(tensor), blocks=tuple(kept)))

    def own(self, tensor: Tensor, name: str) -> None:
        """Say that the tensor is a parameter or a buffer."""
        self.set_origin(tensor, frozenset({name}))
        self.own_memory.add(storage(tensor))

    def set_origin(self, tensor: Tensor, origin: frozenset[str] | None) -> None:
        """Say which parameters and buffers the tensor is computed from."""
        setattr(tensor, _CARRIED, replace(self.carried(tensor), origin=origin))

    def set_picks(self, tensor: Tensor, picks: Labels) -> None:
        """Say that the tensor's values are positions on an axis with these labels."""
        setattr(tensor, _CARRIED, replace(self.carried(tensor), picks=picks))

    def picks(self, tensor: Tensor) -> Labels | None:
        """The labels of the axis that the tensor's values are positions on; a rule that asks must see to them."""
        self.asked.add(id(tensor))
        return self.carried(tensor).picks

    def as_it_is(self, tensor: Tensor) -> Tensor:
        """Another view of the same memory, which stays when the tensor is turned into one of another shape."""
        view: Tensor = torch.ops.aten.alias(tensor)
        setattr(view, _CARRIED, self.carried(tensor))
        return view

    def forget(self, tensor: Tensor) -> None:
        """Take everything off a tensor that outlives the trace."""
        vars(tensor).pop(_CARRIED, None)

    # What rules say about axes

    def axis_of(self, tensor: Tensor, axis: int) -> tuple[Grid, int] | None:
        """The grid over an axis, and which axis of the grid it is."""
        axis %= max(tensor.dim(), 1)
        for axes, grid in self.blocks(tensor):
            if axis in axes:
                return grid, axes.index(axis)
        return None

    def vector(self, tensor: Tensor, axis: int) -> Labels | None:
        """The labels of one axis, or None where it has none."""
        found = self.axis_of(tensor, axis)
        return None if found is None else self.space.margin(*found)

    def fix(self, tensor: Tensor, axis: int, reason: str) -> None:
        """The axis cannot change its size."""
        axis %= max(tensor.dim(), 1)
        blocks = self.blocks(tensor)
        if not any(axis in block.axes for block in blocks):
            return
        left = [self.space.without(b, [axis], self.located(reason)) if axis in b.axes else b for b in blocks]
        self.put(tensor, [block for block in left if block is not None])

    def freeze(self, tensor: Tensor, reason: str) -> None:
        """Nothing that the tensor carries can be removed, nor what its values are positions of."""
        self.freeze_axes(tensor, reason)
        if (picks := self.picks(tensor)) is not None:
            self.space.freeze(picks, self.located(reason))

    def freeze_axes(self, tensor: Tensor, reason: str) -> None:
        """Nothing can be removed along the tensor's axes."""
        for _, grid in self.blocks(tensor):
            self.space.freeze(grid.cells, self.located(reason))
            for margin in grid.margins.values():
                self.space.freeze(margin, self.located(reason))

    def look_up(self, tensor: Tensor, axis: int, index: Tensor, reason: str) -> None:
        """An axis is looked into by index: it stays whole, or goes with what the model chose among."""
        picks, found = self.picks(index), self.axis_of(tensor, axis)
        if picks is not None and found is not None and not found[0].joint and len(picks) == tensor.shape[axis]:
            self.space.tie(picks, found[0].cells)
            self.space.choose(picks)
            return
        self.fix(tensor, axis, reason)
        if picks is not None:
            self.space.freeze(picks, self.located("is chosen to look into what has no neurons"))

    def inexact_where_used(self, results: Any, labels: Labels, reason: str) -> None:
        """The labels become inexact as soon as one of the results is used, as the weights of attention seldom are."""
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self.unused.setdefault(id(result), (result, []))[1].append((labels, reason))

    def used(self, tensor: Tensor) -> None:
        """A tensor enters an operator, or is returned by the model."""
        for labels, reason in self.unused.pop(id(tensor), (tensor, []))[1]:
            self.space.mark_inexact(labels, reason)

    def tie_axes(self, left: Tensor, left_axis: int, right: Tensor, right_axis: int, reason: str) -> Labels | None:
        """Two axes go together; one without labels freezes the other. Returns the labels of the first that has some."""
        a, b = self.vector(left, left_axis), self.vector(right, right_axis)
        if a is not None and b is not None:
            self.space.tie(a, b)
        elif a is not None or b is not None:
            self.space.freeze(a if b is None else b, self.located(reason))  # type: ignore[arg-type]
        return b if a is None else a

    def contract(self, x: Tensor, x_axis: int, weight: Tensor, weight_axis: int, out_axis: int | None) -> None:
        """A contraction of `x` with `weight` over one axis; the output keeps the weight's axis `out_axis`, if any."""
        if self.vector(x, x_axis) is None and self.vector(weight, weight_axis) is None:
            self.note_writer(weight, out_axis)
            return
        self.tie_axes(x, x_axis, weight, weight_axis, "reads an axis without neurons, such as the model's input")
        read, site = self.vector(x, x_axis), self.vector(weight, weight_axis)
        if self.is_static(weight):
            self.note_writer(weight, out_axis)
            if site is not None and read is not None:
                self.note_reader(x, x_axis, read, weight, site)
        elif not self.is_static(x):
            # No weight reads this axis, so zeroing what weights read would not be the same as removing it.
            self.fix(x, x_axis, "is contracted with another activation")
            self.fix(weight, weight_axis, "is contracted with another activation")

    def note_sum(self, tensor: Tensor) -> None:
        """The tensor is the sum of two activations."""
        self.sums += [Sum(grid.cells.ravel(), len(self.consumptions)) for _, grid in self.blocks(tensor)]

    def note_writer(self, weight: Tensor, out_axis: int | None) -> None:
        """The weight writes what its axis `out_axis` indexes."""
        origin = self.origin(weight)
        if out_axis is None or not origin:
            return
        written = self.vector(weight, out_axis)
        if written is not None:
            self.written.append(Writing(written, origin, self.operator))
        elif weight.shape[out_axis] > 1:
            self.note_unlabelled(weight)

    def note_unlabelled(self, weight: Tensor) -> None:
        """A weight has lost its labels on the way from the parameters it is computed from."""
        if storage(weight) not in self.own_memory:
            self.unlabelled |= self.origin(weight) or frozenset()

    def note_length(
        self, direction: Tensor, length: Tensor, dim: int, summed: tuple[Labels, ...]
    ) -> tuple[Labels, ...]:
        """A weight is the product of a direction, normed over the axes with the labels `summed`, and a length.

        Returns the labels that no length makes up for: where the two are not whole parameters, or the length has
        another direction, too.
        """
        names = [self.origin(tensor) if self._is_own(tensor) else None for tensor in (direction, length)]
        if not all(name is not None and len(name) == 1 for name in names):
            return summed
        (own,), (factor,) = names  # type: ignore[misc]
        known = self.normed.setdefault(factor, Normed(own, factor, dim, summed))
        return () if known[:3] == (own, factor, dim) else (*summed, *known.summed)

    def _is_own(self, tensor: Tensor) -> bool:
        """Whether the tensor is a whole parameter or buffer."""
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        return whole and tensor.is_contiguous() and storage(tensor) in self.own_memory

    def note_reader(self, x: Tensor, axis: int, read: Labels, weight: Tensor, site: Labels) -> None:
        """A weight, whose contracted axis has the labels `site`, reads `read` along an axis of `x`."""
        frame = self.frames[-1]
        plain = calls.reads_its_input(frame.module)
        how: Literal["input", "operator", "computed"] = "input"
        if plain is None:
            how = "operator" if storage(weight) in self.own_memory else "computed"
        beneath = self.origin(x) or frozenset()
        axis = plain if plain is not None else axis % x.dim() - x.dim()
        origin = self.origin(weight) or frozenset()
        self.consumptions.append(Consumption(site, origin, read, frame.name, axis, how, self.operator, beneath))

    def follow(self, parts: Callable[[], Any]) -> Any:
        """Run the operators that another one consists of, with labels flowing; their numbers are not the code's."""
        call, operator, numbers = self.call, self.operator, len(self.constants)
        self.call = calls.Call()
        try:
            with self.watching():
                return parts()
        finally:
            self.call, self.operator = call, operator
            del self.constants[numbers:]

    # What the code said

    def located(self, reason: str) -> str:
        """The reason with the module that is running."""
        return f"{reason} (in {self.frames[-1].name})" if self.frames[-1].name else reason

    def tracked(self, value: int, expression: Expression) -> Tracked:
        """An integer that reports to this trace."""
        return Tracked(value, expression, lambda used, side: self.notice_number(used, Place(side)))

    def notice_number(self, expression: Expression, place: Place) -> None:
        """An integer with an origin became a number."""
        where = f"{running()}, in {self.frames[-1].name or 'the model'}"
        self.numbers.append(NumberUse(expression, where, _written(place)))

    def tracked_shape(self, tensor: Tensor) -> tuple[int, ...]:
        """The tensor's shape, its labelled sizes tracked."""
        return tuple(self.tracked_size(tensor, axis) for axis in range(tensor.dim()))

    def tracked_size(self, tensor: Tensor, axis: int) -> int:
        """One size of the tensor, tracked where the axis is labelled."""
        found = self.axis_of(tensor, axis)
        if found is None:
            return tensor.shape[axis]
        self.sizes.append(found)
        return self.tracked(tensor.shape[axis], Size(len(self.sizes) - 1))

    def explain(self, tensor: Tensor, axis: int, size: Any, place: Place | None = None) -> None:
        """The code gave `size` for this axis, at a `place` in the running call.

        An expression must hold after a removal too. A constant fixes the axis where it cannot be made to follow.
        """
        found = self.axis_of(tensor, axis)
        if isinstance(size, Tracked):
            if found is None:  # the axis keeps its size, so the expression must keep its value
                self.notice_number(size.expression, place or Place("left"))
            else:
                self.explain_axis(size.expression, *found, place)
        elif found is None or (not isinstance(size, Tensor) and size == -1):
            return
        elif place is not None and not found[0].joint and not isinstance(size, Tensor):
            self.explain_axis(int(size), *found, place)
        else:
            self.fix(tensor, axis, f"`{self.call.name}` gives it the constant size {int(size)}")

    def explain_axis(self, expression: Expression, grid: Grid, axis: int, place: Place | None = None) -> None:
        """An expression must come out as the size of an axis of a grid."""
        written = _written(place, self.call.cut_at) if place is not None else None
        self.equations.append(Equation(expression, grid, axis, self.located(self.call.name), written))

    def explain_count(self, expression: Expression, labels: Labels, place: Place | None = None) -> None:
        """An expression must come out as the number of `labels` that stay."""
        self.explain_axis(expression, Grid(labels), 0, place)

    def virtual(self, tensor: Tensor, axis: int, size: Any, each: int = 1) -> None:
        """An axis made to order (`zeros(B, C)`, `expand`) follows the size it was made with, by `each` positions."""
        if isinstance(size, Tracked) and tensor.shape[axis] > each and self.axis_of(tensor, axis) is None:
            self.explain_count(size.expression, self.follow_others(tensor, axis, each))

    def follow_others(self, tensor: Tensor, axis: int, each: int = 1) -> Labels:
        """An axis without neurons of its own goes with whatever it is tied to, `each` positions together."""
        labels = self.space.fresh(tensor.shape[axis] // each)
        self.space.virtual.append(labels)
        self.put(tensor, [*self.blocks(tensor), Block((axis,), Grid(labels.repeat(each)))])
        return labels

    def own_size(self, expression: Expression, grid: Grid, axis: int) -> bool:
        """Whether an expression is computed from the size of this very axis."""
        return any(
            isinstance(source, Size) and self.sizes[source.number][0] is grid and self.sizes[source.number][1] == axis
            for source in sources(expression)
        )


def _written(place: Place, at: Spot | None = None) -> Written | None:
    found = at or spot()
    return None if found is None else Written(found, place)


def storage(tensor: Any) -> int:
    """What views of the same memory have in common."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)
