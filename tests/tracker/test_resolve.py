"""Every grid stays a rectangle, and the axis that leaves the most neurons is chosen."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tracker.labels import Grid, LabelSpace
from tracker.resolve import Components, resolve


def row_tied(parts: Components, grid: Grid, axis: int) -> bool:
    """Whether every slab along `axis` is one component."""
    cells = np.moveaxis(parts.of[grid.cells], axis, 0).reshape(grid.cells.shape[axis], -1)
    return bool((cells == cells[:, :1]).all())


def test_ties_are_transitive_and_freezing_spreads() -> None:
    space = LabelSpace()
    a, b, c = space.fresh(4), space.fresh(4), space.fresh(4)
    space.tie(a, b)
    space.tie(b, c[::-1])
    space.freeze(c[:1], "stays")
    parts = resolve(space)
    assert np.array_equal(parts.of[a], parts.of[c[::-1]])
    assert parts.frozen[parts.of[a]].tolist() == [False, False, False, True]


def test_a_grid_that_nothing_decides_keeps_the_axis_with_more_neurons() -> None:
    space = LabelSpace()
    grid = space.grid(space.fresh(12).reshape(2, 6))
    parts = resolve(space)
    assert row_tied(parts, grid, 1)
    rows, columns = parts.rows(grid, 1), parts.rows(grid, 0)
    assert rows is not None
    assert len(np.unique(rows)) == 6
    assert columns is None


def test_the_heads_of_attention_are_kept_apart_though_widths_are_more() -> None:
    space = LabelSpace()
    grid = space.grid(space.fresh(12).reshape(2, 6))
    space.heads.append(space.margin(grid, 0))
    parts = resolve(space)
    assert row_tied(parts, grid, 0)
    assert parts.rows(grid, 1) is None


def test_an_axis_with_a_frozen_margin_gives_way() -> None:
    space = LabelSpace()
    grid = space.grid(space.fresh(12).reshape(2, 6))
    space.freeze(space.margin(grid, 1), "stays")
    parts = resolve(space)
    assert row_tied(parts, grid, 0)
    assert not parts.frozen[parts.of[grid.cells]].any()


def test_the_margins_of_other_axes_stay() -> None:
    space = LabelSpace()
    grid = space.grid(space.fresh(12).reshape(2, 6))
    chosen, other = space.margin(grid, 1), space.margin(grid, 0)
    parts = resolve(space)
    assert np.array_equal(parts.of[chosen], parts.of[grid.cells[0]])
    assert parts.frozen[parts.of[other]].all()


def test_cells_that_are_frozen_both_ways_stay_all() -> None:
    space = LabelSpace()
    grid = space.grid(space.fresh(4).reshape(2, 2))
    space.freeze(np.diag(grid.cells), "stays")
    parts = resolve(space)
    assert parts.frozen[parts.of[grid.cells]].all()


def test_an_axis_made_to_order_follows_the_others() -> None:
    space = LabelSpace()
    made = space.fresh(6)
    space.virtual.append(made)
    grid = space.grid(space.fresh(12).reshape(2, 6))
    space.tie(space.margin(grid, 1), made)
    parts = resolve(space)
    assert row_tied(parts, grid, 0)


@given(st.data())
def test_every_grid_of_any_web_of_grids_stays_a_rectangle(data: st.DataObject) -> None:
    space = LabelSpace()
    flat = space.fresh(12)
    grids: list[Grid] = []
    for _ in range(data.draw(st.integers(1, 4))):
        shape = data.draw(st.sampled_from([(3, 4), (4, 3), (2, 6), (6, 2), (2, 2, 3)]))
        order = data.draw(st.permutations(range(12))) if data.draw(st.booleans()) else range(12)
        grids.append(space.grid(flat[list(order)].reshape(shape)))
    for label in data.draw(st.lists(st.integers(0, 11), max_size=2)):
        space.freeze(flat[label : label + 1], "stays")
    parts = resolve(space)
    for grid in grids:
        cells = parts.of[grid.cells]
        varying = [axis for axis in range(cells.ndim) if not (cells == cells.take([0], axis)).all()]
        assert len(varying) <= 1 or parts.frozen[cells].all() or any(_free_slabs(parts, grid, axis) for axis in varying)


def _free_slabs(parts: Components, grid: Grid, axis: int) -> bool:
    """Whether whatever is not frozen comes in whole slabs along `axis`."""
    cells = np.moveaxis(parts.of[grid.cells], axis, 0).reshape(grid.cells.shape[axis], -1)
    free = ~parts.frozen[cells]
    return all((slab == slab[0]).all() for slab in cells[free.any(axis=1)])


@given(st.data())
def test_whole_vectors_and_parts_of_them_are_tied_alike(data: st.DataObject) -> None:
    space = LabelSpace()
    vectors = [space.fresh(data.draw(st.integers(1, 4))) for _ in range(data.draw(st.integers(1, 6)))]
    pairs = []
    for _ in range(data.draw(st.integers(0, 8))):
        a, b = data.draw(st.sampled_from(vectors)), data.draw(st.sampled_from(vectors))
        length = data.draw(st.integers(1, min(len(a), len(b))))
        a, b = a[:length], b[-length:]
        if data.draw(st.booleans()):
            a = a[::-1]
        space.tie(a, b)
        pairs += list(zip(a.tolist(), b.tolist(), strict=True))
    of = list(range(space.size))
    for one, other in pairs:
        of = [of[one] if part == of[other] else part for part in of]
    found = resolve(space).of.tolist()
    assert all((found[i] == found[j]) == (of[i] == of[j]) for i in range(space.size) for j in range(space.size))
    assert sorted(set(found)) == list(range(len(set(found))))
