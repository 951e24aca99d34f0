"""Which integer attributes follow the neurons, and which groups the code could not follow.

Wherever the code named a size, `expression(attributes, sizes) = what stays of that axis` must hold after any removal.
What stays is linear in the number of neurons that stay in each group, so an equation is checked at a few random
numbers. An attribute seen alone is what stays; one seen only inside expressions is solved for; a group that makes an
equation fail is refused, with the place in the code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray

from tracker.code_sites import site_of
from tracker.findings import Equation, NumberUse, Written
from tracker.flow import Flow
from tracker.labels import Grid, distinct
from tracker.neuron_map import Integer
from tracker.resolve import Components
from tracker.rewriting import CODE_SIZES, can_resize
from tracker.sizes import Arithmetic, Attribute, Expression, Size, evaluate, sources

_DRAWS = 6
_FEW = 3  # a comparison with so many neurons at most is no reason to keep them all
_CORNERS = 3  # of expressions in at most so many groups, all combinations of least and most are tried


@dataclass(frozen=True)
class Form:
    """`total` positions; a neuron of group g takes `per_neuron[g]` of them, those of an `uneven` group various."""

    total: int
    per_neuron: Mapping[int, int] = field(default_factory=dict)
    uneven: frozenset[int] = frozenset()

    def after(self, removed: NDArray[np.int64]) -> int:
        """The size after removing `removed[g]` neurons of every group."""
        return self.total - sum(int(removed[group]) * times for group, times in self.per_neuron.items())


@dataclass
class Solution:
    """The integers that follow, the groups that must be refused with the reason, and how many neurons the code needs of
    a group where that is more than one.
    """

    integers: dict[Attribute, Form]
    refused: dict[int, str]
    minimum: dict[int, int]


def solve(
    flow: Flow,
    parts: Components,
    group_of: NDArray[np.int64],
    sizes: NDArray[np.int64],
    value_of: Callable[[Attribute], int],
) -> Solution:
    """Solve all equations of a trace for groups of `sizes` neurons; `value_of` reads an attribute of the model."""
    refused: dict[int, str] = {}
    while True:
        system = _System(flow, parts, group_of, sizes, value_of, frozenset(refused))
        new = system.refusals()
        if not new:
            return Solution({a: f for a, f in system.known.items() if f.per_neuron}, refused, system.minimum)
        refused.update(new)


class _System:
    """The equations of a trace, with the refused groups taken as constant."""

    def __init__(
        self,
        flow: Flow,
        parts: Components,
        group_of: NDArray[np.int64],
        sizes: NDArray[np.int64],
        value_of: Callable[[Attribute], int],
        refused: frozenset[int],
    ) -> None:
        self.flow, self.parts, self.group_of, self.sizes = flow, parts, group_of, sizes
        self.value_of, self.refused = value_of, refused
        random = np.random.default_rng(0)
        self.draws = [np.zeros(len(sizes), dtype=np.int64)]
        self.draws += [np.maximum(sizes - 1, 0)]
        self.draws += [random.integers(0, np.maximum(sizes, 1)) for _ in range(_DRAWS)]
        self.known: dict[Attribute, Form] = {}
        made_to_order = np.zeros(flow.space.size, dtype=bool)
        for labels in flow.space.virtual:
            made_to_order[labels] = True
        self.only_virtual = np.ones(parts.count, dtype=bool)
        self.only_virtual[parts.of[~made_to_order]] = False
        self.forms: dict[tuple[int, int], Form] = {}
        self.minimum: dict[int, int] = {}

    def refusals(self) -> dict[int, str]:
        """Groups that make the code's own sizes or numbers wrong; an empty answer means all equations hold."""
        found: dict[int, str] = {}
        stated = (equation for equation in self.flow.equations if not self._adrift(equation.grid))
        equations = [(equation, self.form(equation.grid, equation.axis)) for equation in stated]
        for equation, form in equations:
            for group in form.uneven:
                found.setdefault(group, f"`{equation.where}` cuts through it")
        for equation, form in equations:
            if isinstance(equation.expression, Attribute):
                self.known.setdefault(equation.expression, form)
        for use in self.flow.numbers:
            self._kept_equal(use.expression)
        for equation, form in self._not_rewritten(equations):
            reason = _computed(equation)
            for group in self._blame(equation.expression, form):
                found.setdefault(group, reason)
        for use in self.flow.numbers:
            if (
                not self._constant(use.expression)
                and not self._pinned(use)
                and not self._constant_above(use.expression)
            ):
                for group in self._groups_in(use.expression):
                    found.setdefault(group, f"its size is {_used(use.expression)} at {use.where}")
        return found

    def _adrift(self, grid: Grid) -> bool:
        """Whether an axis made to order met nothing that has a size of its own: then any size is right."""
        parts = self.parts.of[grid.cells]
        return bool(self.only_virtual[parts].all()) and not self.parts.frozen[parts].any()

    def form(self, grid: Grid, axis: int) -> Form:
        """What stays of an axis of a grid."""
        key = (id(grid), axis)
        if key not in self.forms:
            self.forms[key] = self._form(grid, axis)
        return self.forms[key]

    def _form(self, grid: Grid, axis: int) -> Form:
        rows = self.parts.rows(grid, axis)
        if rows is None:
            return Form(grid.cells.shape[axis])
        group = self.group_of[rows]
        per_neuron: dict[int, int] = {}
        uneven: set[int] = set()
        for index in distinct(group[group >= 0]).tolist():
            if index in self.refused:
                continue
            own = rows[group == index]
            count, number = len(own), len(distinct(own))
            if number == self.sizes[index] and count % number == 0:
                per_neuron[index] = count // number
            else:
                uneven.add(index)
        return Form(len(rows), per_neuron, frozenset(uneven))

    def _kept_equal(self, expression: Expression) -> None:
        """An attribute that the code compares with a size, and found equal, is meant to be that size."""
        if isinstance(expression, Arithmetic) and expression.operator == "compare":
            for attribute, size in (expression[1:], expression[:0:-1]):
                if isinstance(attribute, Attribute) and isinstance(size, Size) and attribute not in self.known:
                    form = self.form(*self.flow.sizes[size.number])
                    if form.total == self.value_of(attribute):
                        self.known[attribute] = form

    def _not_rewritten(self, equations: list[tuple[Equation, Form]]) -> list[tuple[Equation, Form]]:
        """The equations that fail, and whose size cannot be put into the model's code either; else it becomes known.

        A place in the code that is passed several times must want the same size each time.
        """
        wanted: dict[Written, Form] = {}
        unclear: set[Written] = set()
        for equation, form in equations:
            if equation.written is not None:
                before = wanted.setdefault(equation.written, form)
                if (before.total, before.per_neuron) != (form.total, form.per_neuron):
                    unclear.add(equation.written)
        left = []
        failing = [(e, f) for e, f in equations if not self._holds(e.expression, f)]
        for equation, form in [(e, f) for e, f in failing if not self._solved(e.expression, f)]:
            written = equation.written
            groups = {**dict.fromkeys(self._groups_in(equation.expression), 0), **form.per_neuron}
            attribute = None if written is None or written in unclear else self._site(written, form.total)
            if attribute is None:
                left.append((equation, form))
            else:
                others = self.known[attribute].per_neuron if attribute in self.known else {}
                self.known[attribute] = Form(form.total, {**others, **groups})  # passed again, with other widths in it
        return left

    def _pinned(self, use: NumberUse) -> bool:
        """Whether the model's code can be given the number that a changed size would come to."""
        if use.written is None or (isinstance(use.expression, Arithmetic) and use.expression.operator == "compare"):
            return False
        here = [other.expression for other in self.flow.numbers if other.written == use.written]
        values = {self._at(expression, self.draws[0]) for expression in here}
        value = values.pop()
        attribute = None if values or value is None else self._site(use.written, value)
        if attribute is None or value is None:
            return False
        groups = set().union(*map(self._groups_in, here))
        self.known[attribute] = Form(value, dict.fromkeys(groups, 0))
        return True

    def _site(self, written: Written, value: int) -> Attribute | None:
        site = site_of(written.spot, written.place, value)
        module = self.flow.names.get(id(written.spot.owner))
        if site is None or module is None or not can_resize(written.spot.owner, str(site)):
            return None
        return Attribute(module, (CODE_SIZES, str(site)))

    def _value(self, source: Attribute | Size, removed: NDArray[np.int64]) -> int:
        if isinstance(source, Size):
            return self.form(*self.flow.sizes[source.number]).after(removed)
        known = self.known.get(source)
        return self.value_of(source) if known is None else known.after(removed)

    def _holds(self, expression: Expression, form: Form) -> bool:
        return all(self._at(expression, removed) == form.after(removed) for removed in self.draws)

    def _at(self, expression: Expression, removed: NDArray[np.int64]) -> int | None:
        try:
            return evaluate(expression, lambda source: self._value(source, removed))
        except ZeroDivisionError:
            return None

    def _constant_above(self, expression: Expression) -> bool:
        """Whether a comparison comes out the same as long as each group keeps a few neurons, which it then must."""
        groups = self._groups_in(expression)
        for few in range(2, _FEW + 1):
            least = {group: min(few, int(self.sizes[group])) for group in groups}
            if self._constant(expression, least):
                self.minimum.update({group: max(count, self.minimum.get(group, 1)) for group, count in least.items()})
                return True
        return False

    def _constant(self, expression: Expression, least: Mapping[int, int] | None = None) -> bool:
        """Whether a number, or the outcome of a comparison, is the same after any removal that leaves the `least`."""
        groups = sorted(self._groups_in(expression))
        corners = product((False, True), repeat=len(groups)) if len(groups) <= _CORNERS else ()
        draws = [*self.draws]
        for corner in corners:
            draws.append(np.zeros_like(self.sizes))
            draws[-1][[group for group, most in zip(groups, corner, strict=True) if most]] = 1
            draws[-1] *= np.maximum(self.sizes - 1, 0)
        for group, count in (least or {}).items():
            draws = [_at_most(removed, group, int(self.sizes[group]) - count) for removed in draws]
        return len({self._at(expression, removed) for removed in draws}) == 1

    def _solved(self, expression: Expression, form: Form) -> bool:
        """Whether letting one unknown attribute fall, in proportion or one for one, makes the equation hold."""
        for source in dict.fromkeys(sources(expression)):
            if not isinstance(source, Attribute) or source in self.known:
                continue
            value = self.value_of(source)
            scaled = {group: times * value / form.total for group, times in form.per_neuron.items()}
            for falls in (scaled, form.per_neuron):
                if not falls or any(times != int(times) or times < 1 for times in falls.values()):
                    continue
                self.known[source] = Form(value, {group: int(times) for group, times in falls.items()})
                if self._holds(expression, form):
                    return True
                del self.known[source]
        return False

    def _blame(self, expression: Expression, form: Form) -> Iterable[int]:
        """The groups on the axis; where it keeps its size, those in the expression.

        Where an attribute stands for two sizes, the groups in which they differ.
        """
        if isinstance(expression, Attribute) and (known := self.known.get(expression)) is not None:
            return _differing(known.per_neuron, form.per_neuron)
        return form.per_neuron or self._groups_in(expression)

    def _groups_in(self, expression: Expression) -> set[int]:
        groups: set[int] = set()
        for source in sources(expression):
            form = self.form(*self.flow.sizes[source.number]) if isinstance(source, Size) else self.known.get(source)
            groups |= {group for group, times in form.per_neuron.items() if times} if form else set()
        return groups


def integers_of(solution: Mapping[Attribute, Form], names: list[str]) -> tuple[Integer, ...]:
    """The solved attributes with the groups by name."""
    return tuple(
        Integer(attribute.module, attribute.path, {names[group]: times for group, times in form.per_neuron.items()})
        for attribute, form in solution.items()
    )


def _at_most(removed: NDArray[np.int64], group: int, most: int) -> NDArray[np.int64]:
    capped = removed.copy()
    capped[group] = min(int(capped[group]), most)
    return capped


def _differing(a: Mapping[int, int], b: Mapping[int, int]) -> list[int]:
    return [group for group in {**a, **b} if a.get(group) != b.get(group)]


def _computed(equation: Equation) -> str:
    if isinstance(equation.expression, Attribute):
        return f"`{equation.expression}` also gives the size of something else (in {equation.where})"
    if isinstance(equation.expression, int):
        return f"{equation.where} gives it the constant size {equation.expression}"
    computed = f"{equation.where} from {_described(equation.expression)}"
    return f"its size is computed in {computed}, which does not follow it"


def _used(expression: Expression) -> str:
    compared = isinstance(expression, Arithmetic) and expression.operator == "compare"
    return "compared with another number" if compared else "used as a number"


def _described(expression: Expression) -> str:
    if isinstance(expression, Arithmetic):
        sign = {"add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%"}[expression.operator]
        return f"{_described(expression.left)} {sign} {_described(expression.right)}"
    if isinstance(expression, Size):
        return "another width"
    return f"`{expression}`"
