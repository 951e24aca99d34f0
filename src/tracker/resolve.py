"""From facts about labels to components: which labels are one neuron, and which stay.

Tied labels are a sparse graph, its connected components are the neurons. A grid of labels over several axes must stay a
rectangle after any removal: either whole rows go or whole columns. Most grids are decided by what the operators tied;
of the others, attention's keep their heads apart, one whose neurons were reduced together stays whole, an axis made to
order follows the others, and else the axis is free that leaves the most neurons.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from tracker.labels import Grid, Labels, LabelSpace, is_run

Mask = NDArray[np.bool_]
RECTANGLE = "shares a view with the neurons that are removed there"


@dataclass
class Components:
    """`of[label]` is the component of a label; `frozen[component]` whether it stays."""

    of: Labels
    frozen: Mask

    @property
    def count(self) -> int:
        """Number of components."""
        return len(self.frozen)

    def flags(self, marked: list[Labels]) -> Mask:
        """Which components hold one of these labels."""
        flags = np.zeros(self.count, dtype=bool)
        for labels in marked:
            flags[self.of[labels]] = True
        return flags

    def rows(self, grid: Grid, axis: int) -> Labels | None:
        """The component of every index of an axis; None where the axis keeps its size because others are removed."""
        cells = self.of[grid.cells]
        if not grid.joint:
            return cells
        if (cells == cells.take([0], axis)).all():
            return None
        return np.moveaxis(cells, axis, 0).reshape(cells.shape[axis], -1)[:, 0]


def resolve(space: LabelSpace, *, query_heads: bool = False) -> Components:
    """Decide every grid and return the components.

    With `query_heads`, query heads that share a key and value go by themselves, as many from each of these.
    """
    of = _connect(*_whole_vectors(space))
    chosen = np.zeros(int(of.max(initial=-1)) + 1, dtype=bool)
    chosen[of[np.concatenate([*space.chosen, np.zeros(0, np.int32)])]] = True
    space.frozen += [(labels, reason) for labels, reason in space.whole if not chosen[of[labels]].all()]
    open_grids = list(space.joints)
    while True:
        parts = Components(of, np.zeros(int(of.max()) + 1 if len(of) else 0, dtype=bool))
        parts.frozen = parts.flags([labels for labels, _ in space.frozen])
        ties, still_open = len(space.left), []
        for grid in open_grids:
            choices = _choices(parts, grid)
            if len(choices) > 1:
                still_open.append(grid)
            else:
                _close(space, parts, grid, choices[0] if choices else None)
        if len(still_open) == len(open_grids) and still_open:
            _decide(space, parts, still_open, query_heads)
        elif not open_grids:
            return parts
        of = _connect(of, space.left[ties:], space.right[ties:])
        open_grids = still_open


def _whole_vectors(space: LabelSpace) -> tuple[Labels, list[Labels], list[Labels]]:
    """Components from the ties of whole vectors to whole vectors, which are most, and the ties that are left.

    The labels of one vector are tied to those of another one by one, so that the first's can stand for both: a residual
    stream is found by looking at its vectors, not at each of its labels.
    """
    starts = np.array(space.starts, dtype=np.int64)
    lengths = np.diff(starts, append=space.size)
    number_of = dict(zip(space.starts, range(len(starts)), strict=True))
    first = list(range(len(starts)))

    def root(number: int) -> int:
        while first[number] != number:
            first[number] = number = first[first[number]]
        return number

    left, right = [], []
    for one, other in zip(space.left, space.right, strict=True):
        if not len(one):
            continue
        a, b = number_of.get(int(one[0])), number_of.get(int(other[0]))
        whole = a is not None and b is not None and lengths[a] == len(one) == lengths[b]
        if a is not None and b is not None and whole and is_run(one) and is_run(other):
            low, high = sorted((root(a), root(b)))
            first[high] = low
        else:
            left.append(one)
            right.append(other)
    roots = np.array([root(number) for number in range(len(starts))], dtype=np.int64)
    kept = np.where(roots == np.arange(len(roots)), lengths, 0)
    shifts = (np.cumsum(kept) - kept)[roots] - starts
    of = np.arange(space.size, dtype=np.int32) + np.repeat(shifts, lengths).astype(np.int32)
    return of, left, right


def _connect(of: Labels, left: list[Labels], right: list[Labels]) -> Labels:
    """Merge components along new ties."""
    if not left:
        return of
    a, b = of[np.concatenate(left)], of[np.concatenate(right)]
    apart = a != b
    a, b = a[apart], b[apart]
    tied = np.zeros(int(of.max()) + 1, dtype=bool)
    tied[a] = tied[b] = True
    place = np.cumsum(tied, dtype=np.int32) - 1
    count = int(place[-1]) + 1
    graph = coo_matrix((np.ones(len(a), dtype=np.int8), (place[a], place[b])), shape=(count, count))
    merged = np.cumsum(~tied, dtype=np.int32) - 1
    merged[tied] = connected_components(graph, directed=False)[1] + (len(tied) - count)
    result: Labels = merged[of]
    return result


def _varying(cells: Labels) -> list[int]:
    return [axis for axis in range(cells.ndim) if not (cells == cells.take([0], axis)).all()]


def _choices(parts: Components, grid: Grid) -> list[int]:
    """The axes along which neurons could still be removed."""
    varying = _varying(parts.of[grid.cells])
    return [axis for axis in varying if _free(parts, grid, axis)] if len(varying) > 1 else varying


def _free(parts: Components, grid: Grid, axis: int) -> int:
    """How many neurons of their own the slabs along an axis are."""
    slabs = np.moveaxis(parts.of[grid.cells], axis, 0).reshape(grid.cells.shape[axis], -1)
    free = ~parts.frozen[slabs].any(axis=1)
    if axis in grid.margins:
        free &= ~parts.frozen[parts.of[grid.margins[axis]]]
    return len(np.unique(slabs[free, 0]))


def _close(space: LabelSpace, parts: Components, grid: Grid, axis: int | None) -> None:
    """Neurons are removed along `axis` alone (None: not at all); the margins of the other axes stay."""
    if axis is None:
        space.freeze(grid.cells, RECTANGLE)
    else:
        for other in _varying(parts.of[grid.cells]):
            if other != axis:
                space.tie_along(grid.cells, other)
    for at, margin in grid.margins.items():
        if at == axis:
            space.tie(margin, np.moveaxis(grid.cells, at, 0).reshape(len(margin), -1)[:, 0])
        else:
            space.freeze(margin, RECTANGLE)


def _decide(space: LabelSpace, parts: Components, grids: list[Grid], query_heads: bool) -> None:
    """Choose an axis for grids that could go either way; a choice settles all grids that share its labels.

    What is known of heads comes first: it may settle grids for which only counting would be left.
    """
    heads, virtual = parts.flags(space.heads), parts.flags(space.virtual)
    inexact = parts.flags([labels for labels, _ in space.inexact])

    def on_margin(grid: Grid, axis: int, flags: Mask) -> bool:
        return axis in grid.margins and bool(flags[parts.of[grid.margins[axis]]].all())

    def preference(grid: Grid, axis: int) -> tuple[bool, bool, bool, int, int]:
        made_to_order = on_margin(grid, axis, virtual)
        if query_heads and heads[parts.of[grid.cells]].all():  # keys or values, repeated for queries that share them
            made_to_order = not made_to_order
        exact = not on_margin(grid, axis, inexact)
        return on_margin(grid, axis, heads), exact, not made_to_order, _free(parts, grid, axis), -axis

    known = [g for g in grids if any(on_margin(g, a, heads) or on_margin(g, a, virtual) for a in g.margins)]
    touched = np.zeros(parts.count, dtype=bool)
    for grid in known or grids:
        cells = parts.of[grid.cells]
        if touched[cells].any():
            continue
        touched[cells] = True
        choices = _choices(parts, grid)
        best = max(choices, key=partial(preference, grid))
        for other in choices:
            if other != best:
                space.tie_along(grid.cells, other)
