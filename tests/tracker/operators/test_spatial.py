"""What works along the axes of pictures and sequences leaves the channels be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.tracker.equivalence import check_exact
from tests.tracker.samples import Sample, convolved, image, reason, sizes
from torch import Tensor, nn
from torch.nn import functional as F


def places(n: int, size: int) -> Tensor:
    """A grid of places to sample at."""
    return F.affine_grid(
        torch.eye(2, 3, dtype=torch.float64)[None].expand(n, -1, -1), [n, 1, size, size], align_corners=False
    )


@pytest.mark.parametrize(
    ("compute", "read", "width"),
    [
        (lambda m, h: F.pixel_shuffle(h, 2), 2, 2),
        (lambda m, h: F.pixel_unshuffle(h, 2), 32, 8),
        (lambda m, h: F.channel_shuffle(h, 2), 8, 4),
        (lambda m, h: F.unfold(h, 3, padding=1).view(2, -1, 8, 8), 72, 8),
        (lambda m, h: F.fold(F.unfold(h, 3, padding=1) ** 2, (8, 8), 3, padding=1), 8, 8),
        (lambda m, h: h.unfold(2, 2, 2).unfold(3, 4, 2).amax((-1, -2)), 8, 8),
        (lambda m, h: torch.rot90(h, 1, (2, 3)) + torch.rot90(h, -1, (2, 3)) * 2, 8, 8),
        (lambda m, h: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2), 8, 8),
        (lambda m, h: F.lp_pool2d(h, 2, 2), 8, 8),
        (lambda m, h: F.grid_sample(h, places(2, 4).to(h), align_corners=False), 8, 8),
        (lambda m, h: F.grid_sample(h, m.c(h).tanh().permute(0, 2, 3, 1), align_corners=False), 8, 8),
        (lambda m, h: F.interpolate(h, size=(4, 4), mode="bicubic"), 8, 8),
        (lambda m, h: F.interpolate(h, size=(3, 3), mode="area"), 8, 8),
        (lambda m, h: F.pad(h, (1, 2, 0, 3), mode="circular"), 8, 8),
        (lambda m, h: F.pad(h, (1, 1, 1, 1), mode="reflect"), 8, 8),
        (lambda m, h: F.instance_norm(h), 8, 8),
        (lambda m, h: torch.fft.irfft2(torch.fft.rfft2(h) * m.filter, s=(8, 8)), 8, 8),
        (lambda m, h: torch.fft.fftshift(torch.fft.fft2(h), dim=(-2, -1)).abs(), 8, 8),
        (lambda m, h: h.diagonal(dim1=2, dim2=3).diag_embed(), 8, 8),
        (lambda m, h: torch.linalg.det(h)[:, :, None, None].sigmoid(), 8, 8),
        (lambda m, h: h.tril().triu(-2), 8, 8),
    ],
    ids="shuffle unshuffle channels unfold fold windows rot90 unpool lp grid learned_grid bicubic area circular "
    "reflect instance_norm filter shift diagonal det triangle".split(),
)  # fmt: skip
def test_channels_pass(compute: Callable[..., Tensor], read: int, width: int) -> None:
    parts = {"c": nn.Conv2d(8, 2, 1), "filter": nn.Parameter(torch.randn(8, 8, 5))}
    found = check_exact(convolved(lambda m, h: compute(m, F.relu(h) + 0.1), read=read, **parts), image())
    assert sizes(found)["a"] == width


@pytest.mark.parametrize(
    ("compute", "why"),
    [
        (lambda m, h: torch.fft.fft(h, dim=1).real, "Fourier-transformed"),
        (lambda m, h: F.local_response_norm(h, 3), "computes its sizes itself"),
        (lambda m, h: h.unfold(1, 4, 4).movedim(-1, 2).flatten(1, 2), "cut into windows"),
        (lambda m, h: h.permute(0, 2, 3, 1).diag_embed().sum(-1).permute(0, 3, 1, 2), "becomes a diagonal"),
    ],
    ids="fft neighbours windows diagonal".split(),
)  # fmt: skip
def test_channels_stay(compute: Callable[..., Tensor], why: str) -> None:
    found = check_exact(convolved(lambda m, h: compute(m, F.relu(h))), image())
    assert "a" not in sizes(found)
    assert why in reason(found, "a")


def test_what_says_where_to_sample_stays() -> None:
    def compute(m: Any, h: Tensor) -> Tensor:
        return F.grid_sample(h, m.c(h).tanh().permute(0, 2, 3, 1), align_corners=False)

    found = check_exact(convolved(compute, c=nn.Conv2d(8, 2, 1)), image())
    assert sizes(found) == {"a": 8}
    assert "says where to sample" in reason(found, "c")


def test_volumes_are_sampled_and_unpooled() -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        h = F.relu(m.a(x))
        h = F.max_unpool3d(*F.max_pool3d(h, 2, return_indices=True), 2)
        result: Tensor = m.b(F.grid_sample(h, m.where.expand(2, -1, -1, -1, -1), align_corners=False))
        return result

    model = Sample(compute, a=nn.Conv3d(3, 8, 1), b=nn.Conv3d(8, 2, 1), where=nn.Parameter(torch.rand(1, 3, 3, 3, 3)))
    assert sizes(check_exact(model, torch.randn(2, 3, 4, 4, 4))) == {"a": 8}


def test_a_layer_that_pads_around_a_circle() -> None:
    layers = nn.Sequential(
        nn.Conv1d(3, 8, 1), nn.ReLU(), nn.Conv1d(8, 4, 3, padding=1, padding_mode="circular"), nn.Conv1d(4, 2, 1)
    )
    assert sizes(check_exact(layers, torch.randn(2, 3, 9))) == {"0": 8, "2": 4}


def test_a_convolution_over_time() -> None:
    model = Sample(
        lambda m, x: m.b(torch.conv_tbc(F.relu(m.a(x)), m.w, m.bias, 1)),
        a=nn.Linear(6, 8), w=nn.Parameter(torch.randn(3, 8, 5)), bias=nn.Parameter(torch.randn(5)), b=nn.Linear(5, 3),
    )  # fmt: skip
    assert sizes(check_exact(model, torch.randn(7, 2, 6))) == {"a": 8, "w": 5}
