"""Labels, grids and their margins."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tracker.labels import Block, LabelSpace, constant_axes, distinct, is_run


def tied(space: LabelSpace) -> set[tuple[int, int]]:
    """All ties as unordered pairs of different labels."""
    pairs = zip(np.concatenate([*space.left, []]), np.concatenate([*space.right, []]), strict=True)
    return {(int(min(pair)), int(max(pair))) for pair in pairs if pair[0] != pair[1]}


def test_labels_are_never_given_twice() -> None:
    space = LabelSpace()
    assert space.fresh(3).tolist() == [0, 1, 2]
    assert space.fresh(2).tolist() == [3, 4]
    assert space.size == 5


def test_ties_broadcast() -> None:
    space = LabelSpace()
    cells = space.fresh(6).reshape(2, 3)
    space.tie(cells[:, :1], cells)
    assert tied(space) == {(0, 1), (0, 2), (3, 4), (3, 5)}


def test_tying_along_an_axis_leaves_the_others() -> None:
    space = LabelSpace()
    cells = space.fresh(6).reshape(2, 3)
    assert space.tie_along(cells, 0).tolist() == [0, 1, 2]
    assert tied(space) == {(0, 3), (1, 4), (2, 5)}


def test_only_grids_of_several_axes_wait_for_a_decision() -> None:
    space = LabelSpace()
    assert not space.grid(space.fresh(4)).joint
    joint = space.grid(space.fresh(4).reshape(2, 2))
    assert joint.joint
    assert space.joints == [joint]


def test_the_margin_of_a_vector_is_itself_and_of_a_grid_its_own() -> None:
    space = LabelSpace()
    vector, joint = space.grid(space.fresh(4)), space.grid(space.fresh(6).reshape(2, 3))
    assert space.margin(vector, 0) is vector.cells
    assert len(space.margin(joint, 1)) == 3
    assert space.margin(joint, 1) is space.margin(joint, 1)
    assert set(space.margin(joint, 0)).isdisjoint(joint.cells.ravel())


def test_an_axis_that_stays_ties_the_rest_or_freezes_a_vector() -> None:
    space = LabelSpace()
    joint = Block((1, 3), space.grid(space.fresh(6).reshape(2, 3)))
    left = space.without(joint, [3], "stays")
    assert left is not None
    assert left.axes == (1,)
    assert left.grid.cells.tolist() == [0, 3]
    assert tied(space) == {(0, 1), (0, 2), (3, 4), (3, 5)}
    assert space.without(left, [1], "stays as well") is None
    assert [(labels.tolist(), reason) for labels, reason in space.frozen] == [([0, 3], "stays as well")]


def test_constant_axes() -> None:
    assert constant_axes(np.array([[1, 1], [2, 2]], dtype=np.int32)) == [1]
    assert constant_axes(np.array([[1, 1], [1, 1]], dtype=np.int32)) == [0, 1]
    assert constant_axes(np.array([[1, 2], [3, 4]], dtype=np.int32)) == []


@given(st.lists(st.integers(0, 5)))
def test_distinct_is_unique(numbers: list[int]) -> None:
    for array in (np.array(numbers, dtype=np.int32), np.array(sorted(numbers), dtype=np.int32)):
        assert distinct(array).tolist() == np.unique(array).tolist()


def test_a_run_is_consecutive() -> None:
    assert is_run(np.array([3, 4, 5]))
    assert not is_run(np.array([3, 5, 4, 6]))
    assert not is_run(np.array([5, 4, 3]))
