"""The operators of torchvision, by stand-ins with their names and arguments that need nothing compiled."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.tracker.equivalence import check_exact
from tests.tracker.samples import Sample, convolved, image, reason, sizes
from torch import Tensor, nn
from torch.nn import functional as F

BOXES = torch.tensor([[0, 0, 0, 4, 4], [1, 2, 2, 6, 6.0]])


def deform_conv2d(x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *numbers: Any) -> Tensor:
    """Offsets that move everything alike, which is enough for labels."""
    groups = numbers[-3]
    return F.conv2d(x, weight, bias, padding=1, groups=groups) * offset.mean(1, True) * mask.mean(1, True)


def roi_align(x: Tensor, rois: Tensor, *numbers: Any) -> Tensor:
    """Whole pictures in place of regions."""
    return x[rois[:, 0].long(), :, :2, :2] * rois[:, 1:2, None, None]


def ps_roi_align(x: Tensor, rois: Tensor, *numbers: Any) -> tuple[Tensor, Tensor]:
    """Every four channels are the places of one."""
    regions = x[rois[:, 0].long()].mean((2, 3)).view(-1, x.shape[1] // 4, 2, 2)
    return regions, regions.int()


SCHEMAS = {
    "deform_conv2d": "(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, "
    "SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dil_h, SymInt dil_w, SymInt groups, SymInt offset_groups, "
    "bool use_mask) -> Tensor",
    "roi_align": "(Tensor input, Tensor rois, float scale, SymInt height, SymInt width, int ratio, bool aligned) "
    "-> Tensor",
    "ps_roi_align": "(Tensor input, Tensor rois, float scale, SymInt height, SymInt width, int ratio) "
    "-> (Tensor, Tensor)",
}


@pytest.fixture
def vision() -> Iterator[Any]:
    """`torch.ops.torchvision`."""
    if hasattr(torch.ops.torchvision, "roi_align"):
        pytest.skip("torchvision is loaded, and its operators are its own")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for function in (deform_conv2d, roi_align, ps_roi_align):
        library.define(f"{function.__name__}{SCHEMAS[function.__name__]}")
        library.impl(function.__name__, function, "CompositeExplicitAutograd")
    yield torch.ops.torchvision
    library._destroy()


@pytest.mark.parametrize(("groups", "expected"), [(1, {"a": 8, "w": 6}), (2, {})])
def test_deformable_convolutions(vision: Any, groups: int, expected: dict[str, int]) -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        h = F.relu(m.a(x))
        bent = vision.deform_conv2d(h, m.w, m.o(h), m.o(h).sigmoid(), m.bias, 1, 1, 1, 1, 1, 1, groups, 1, True)
        result: Tensor = m.b(bent)
        return result

    weight, bias = nn.Parameter(torch.randn(6, 8 // groups, 3, 3)), nn.Parameter(torch.randn(6))
    model = Sample(compute, a=nn.Conv2d(3, 8, 1), o=nn.Conv2d(8, 18, 1), b=nn.Conv2d(6, 2, 1), w=weight, bias=bias)
    found = check_exact(model, image())
    assert sizes(found) == expected
    assert "says where to convolve" in reason(found, "o")


def test_regions_have_the_channels_of_pictures(vision: Any) -> None:
    model = convolved(lambda m, h: vision.roi_align(F.relu(h), m.boxes, 1.0, 2, 2, 2, False))
    model.register_buffer("boxes", BOXES)
    assert sizes(check_exact(model, image())) == {"a": 8}


def test_channels_that_are_places_stay(vision: Any) -> None:
    model = convolved(lambda m, h: vision.ps_roi_align(F.relu(h), m.boxes, 1.0, 2, 2, 2)[0], read=2)
    model.register_buffer("boxes", BOXES)
    found = check_exact(model, image())
    assert not len(found)
    assert "looked at in regions" in reason(found, "a")
