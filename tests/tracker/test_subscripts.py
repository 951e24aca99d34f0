"""Slices in subscripts are found in the order of the axes, with their bounds as given."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tracker.subscripts import Bounds, listed, resolved, slices


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (slice(None, 2), [(0, 2)]),
        (slice(None), []),
        (slice(0, 100), []),
        ((slice(None), slice(1, None)), [(1, 5)]),
        ((slice(None, 2), slice(None, 3)), [(0, 2), (0, 3)]),
        ((..., slice(-3, None)), [(-3, 6)]),
        ((0, slice(None), slice(2, 4)), [(2, 4)]),
        ((None, slice(1, 3), ...), [(1, 3)]),
        ((torch.zeros(4, 5, dtype=torch.bool), slice(1, None)), [(1, 6)]),
        ((torch.tensor([0, 1]), slice(1, None)), [(1, 5)]),
        ((slice(None), slice(None, None, 2)), [(0, 5)]),
        ((True, slice(None, 3)), [(0, 3)]),
        (3, []),
    ],
)
def test_cuts_of_a_tensor_of_4_by_5_by_6(index: object, expected: list[tuple[int, int]]) -> None:
    assert [found.bounds[:2] for found in slices((4, 5, 6), index) if found.cuts] == expected


bounds = st.none() | st.integers(-9, 9)


def test_axes_are_counted_in_the_tensor() -> None:
    found = list(slices((4, 5, 6), (None, 0, ..., slice(None))))
    assert [(slice_.axis, slice_.cuts) for slice_ in found] == [(2, False)]


def test_slices_know_their_place_in_the_subscript() -> None:
    found = list(slices((4, 5, 6), (None, slice(1, 2), ..., slice(0, 3))))
    assert [slice_.bounds.item for slice_ in found] == [1, 3]


@given(size=st.integers(1, 8), first=st.integers(-9, 9), last=st.integers(-9, 9))
def test_bounds_are_counted_as_python_counts_them(size: int, first: int, last: int) -> None:
    start, stop = resolved(Bounds(first, last), size)
    assert list(range(size))[first:last] == list(range(start, stop))


@given(parts=st.lists(st.tuples(bounds, bounds), min_size=1, max_size=3))
def test_every_slice_that_leaves_something_out_is_a_cut(parts: list[tuple[int | None, int | None]]) -> None:
    shape = (4, 5, 6)[: len(parts)]
    kept = [len(range(size)[slice(*part)]) for size, part in zip(shape, parts, strict=True)]
    found = list(slices(shape, tuple(slice(*part) for part in parts)))
    assert [slice_.axis for slice_ in found] == list(range(len(parts)))
    assert [slice_.cuts for slice_ in found] == [left < size for left, size in zip(kept, shape, strict=True)]


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ((..., [-2], slice(None)), {2: [-2]}),
        ((slice(None), [0, 3]), {1: [0, 3]}),
        ([1, 2], {0: [1, 2]}),
        ((slice(None), [True, False]), {}),
        ((0, [1]), {}),
        (([0], [1]), {}),
        ((slice(None), torch.tensor([0])), {}),
        ((..., None, [1]), {}),
    ],
)
def test_positions_that_a_subscript_lists(index: object, expected: dict[int, list[int]]) -> None:
    found = {axis: listed(4, index, axis) for axis in range(4)}
    assert {axis: positions for axis, positions in found.items() if positions is not None} == expected
