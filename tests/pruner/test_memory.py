import pytest
import torch
from torch import Tensor, nn

from pruner.memory import check_alone
from tracker.errors import PlanError


def named(**tensors: Tensor) -> dict[str, Tensor]:
    return tensors


def test_tensors_of_their_own_and_one_under_two_names_are_fine() -> None:
    one, other = torch.zeros(4, 3), torch.zeros(4, 3)
    check_alone(named(a=one, again=one, b=other), [one, other])


def test_neighbours_in_one_buffer_are_fine() -> None:
    flat = torch.zeros(20)
    a, b = flat[:12].view(4, 3), flat[12:].view(2, 4)
    check_alone(named(a=a, b=b, empty=flat[3:3]), [a, b])


@pytest.mark.parametrize(
    "view",
    [lambda x: x.data, lambda x: x.t(), lambda x: x[1:2], lambda x: x.flatten()[2:9], lambda x: x.view(torch.int32)],
    ids="same transposed row stretch type".split(),
)
def test_overlaps_are_named(view) -> None:
    weight = torch.zeros(4, 3)
    other = view(weight)
    for cut in ([weight], [other], [weight, other]):
        with pytest.raises(PlanError, match="two tensors in the same memory") as caught:
            check_alone(named(weight=weight, other=other), cut)
        assert "'weight'" in str(caught.value)
        assert "'other'" in str(caught.value)


def test_what_is_not_cut_may_overlap() -> None:
    mask, weight = torch.ones(4, 4), torch.zeros(4, 3)
    check_alone(named(mask=mask, part=mask[:2], broadcast=mask[:1].expand(9, 4), weight=weight), [weight])


def test_an_overlap_is_found_behind_a_small_neighbour() -> None:
    flat = torch.zeros(100)
    whole, small, late = flat, flat[2:4], flat[50:60]
    with pytest.raises(PlanError, match="'whole' and 'late'"):
        check_alone(named(whole=whole, small=small, late=late), [late])


def test_meta_tensors_overlap_too() -> None:
    weight = nn.Parameter(torch.zeros(4, 3, device="meta"))
    with pytest.raises(PlanError):
        check_alone(named(a=weight, b=weight.data), [weight])
    check_alone(named(a=weight, b=torch.zeros(4, 3, device="meta")), [weight])
