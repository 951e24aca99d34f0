"""Labels: one integer per index of every parameter dimension, and what is known about them.

A *grid* is an array of labels over one or more axes of a tensor. A view that splits C into (3, heads, head_dim) makes a
grid of three axes; which of them is "the neuron" is decided last, in `resolve`, from everything the operators did. What
concerns one axis of such a grid alone (a bias over head_dim, a batch axis of a product) is said about the axis's
*margin*: a vector of labels of its own, whose meaning follows from that decision.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int32]
Mark = Literal["attention", "expert"]


@dataclass(eq=False)
class Grid:
    """Labels over one or more axes, and the margins that operators asked for."""

    cells: Labels
    margins: dict[int, Labels] = field(default_factory=dict)

    @property
    def joint(self) -> bool:
        """Whether the labels span more than one axis."""
        return self.cells.ndim > 1


class Block(NamedTuple):
    """A grid laid over axes of a tensor: `axes[i]` of the tensor is axis i of the grid."""

    axes: tuple[int, ...]
    grid: Grid


@dataclass
class LabelSpace:
    """All labels of one trace and every fact about them, in arrays."""

    size: int = 0
    starts: list[int] = field(default_factory=list)
    left: list[Labels] = field(default_factory=list)
    right: list[Labels] = field(default_factory=list)
    frozen: list[tuple[Labels, str]] = field(default_factory=list)
    inexact: list[tuple[Labels, str]] = field(default_factory=list)
    marks: list[tuple[Labels, Mark]] = field(default_factory=list)
    multiples: list[tuple[Labels, int]] = field(default_factory=list)
    minima: list[tuple[Labels, int]] = field(default_factory=list)
    chosen: list[Labels] = field(default_factory=list)
    whole: list[tuple[Labels, str]] = field(default_factory=list)
    joints: list[Grid] = field(default_factory=list)
    heads: list[Labels] = field(default_factory=list)
    virtual: list[Labels] = field(default_factory=list)

    def fresh(self, count: int) -> Labels:
        """`count` new labels."""
        self.starts.append(self.size)
        self.size += count
        return np.arange(self.size - count, self.size, dtype=np.int32)

    def grid(self, cells: Labels) -> Grid:
        """A grid over `cells`; one of several axes must stay a rectangle, so it is kept for `resolve`."""
        grid = Grid(cells)
        if grid.joint and cells.size:
            self.joints.append(grid)
        return grid

    def tie(self, left: Labels, right: Labels) -> None:
        """These labels go together (with broadcasting)."""
        if left is right:
            return
        left, right = np.broadcast_arrays(left, right)
        self.left.append(left.ravel())
        self.right.append(right.ravel())

    def tie_along(self, cells: Labels, axis: int) -> Labels:
        """Tie all labels along `axis`; returns the labels without that axis."""
        first: Labels = cells[(slice(None),) * axis + (slice(0, 1),)]
        self.tie(first, cells)
        rest: Labels = first.squeeze(axis)
        return rest

    def freeze(self, labels: Labels, reason: str) -> None:
        """These labels stay."""
        self.frozen.append((labels.ravel(), reason))

    def mark_inexact(self, labels: Labels, reason: str) -> None:
        """Removing these labels is not the same function as zeroing them."""
        self.inexact.append((labels.ravel(), reason))

    def keep_at_least(self, labels: Labels, count: int) -> None:
        """The code needs so many of these neurons."""
        self.minima.append((labels.ravel(), count))

    def choose(self, labels: Labels) -> None:
        """What belongs to these neurons is looked up for those alone that the model chose."""
        self.chosen.append(labels.ravel())

    def freeze_unless_chosen(self, labels: Labels, reason: str) -> None:
        """These labels stay, unless the model chooses among them: then one that is not there has no part in it."""
        self.whole.append((labels.ravel(), reason))

    def keep_multiple(self, labels: Labels, of: int) -> None:
        """An operator takes this axis only where its size is a multiple of `of`."""
        self.multiples.append((labels.ravel(), of))

    def mark(self, labels: Labels, mark: Mark) -> None:
        """Remember what these labels took part in."""
        self.marks.append((labels.ravel(), mark))

    def margin(self, grid: Grid, axis: int) -> Labels:
        """The labels of one axis of a grid as a vector."""
        if not grid.joint:
            return grid.cells
        if axis not in grid.margins:
            grid.margins[axis] = self.fresh(grid.cells.shape[axis])
        return grid.margins[axis]

    def without(self, block: Block, axes: Iterable[int], reason: str) -> Block | None:
        """The block after the tensor's `axes` can no longer change size; None where nothing is left of it."""
        for axis in axes:
            at = block.axes.index(axis)
            if not block.grid.joint:
                self.freeze(block.grid.cells, reason)
                return None
            rest = self.grid(self.tie_along(block.grid.cells, at))
            block = Block(tuple(a for a in block.axes if a != axis), rest)
        return block


def constant_axes(cells: Labels) -> list[int]:
    """Axes along which all labels are equal."""
    return [axis for axis in range(cells.ndim) if (cells == cells.take([0], axis)).all()]


def is_run(labels: NDArray[np.integer]) -> bool:
    """Whether these are consecutive integers, ascending."""
    return bool(labels[-1] - labels[0] == len(labels) - 1 and (np.diff(labels) == 1).all())


def distinct(numbers: NDArray[np.integer]) -> NDArray[np.integer]:
    """`np.unique` for a vector, without sorting or hashing where it is ascending already, as vectors of labels are."""
    rises = np.diff(numbers)
    if len(numbers) and (rises >= 0).all():
        return numbers[np.flatnonzero(np.append(True, rises > 0))]
    return np.unique(numbers)
