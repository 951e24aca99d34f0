"""Every builder of torchvision.models but the quantised ones, whose weights are not floating-point numbers.

Inputs are small, so that a model runs in seconds on one core; what a model demands at least is in `_SIZES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from benchmarks.zoo.entries import Entry, Example
from torchvision import models
from torchvision.ops import boxes

boxes._assert_has_ops = lambda: None  # `vision_operators` has the one that is needed

_SIZES = {
    "inception_v3": 96,
    "maxvit_t": 224,
    "vit_h_14": 56,
    "ssd300_vgg16": 300,
    "raft_large": 128,
    "raft_small": 128,
    "vgg": 64,
    "alexnet": 64,
}
_VIDEOS = {"s3d": (16, 224), "mvit": (16, 224), "swin3d": (4, 64)}
_TRANSFORMER = "vit_"


def entries() -> Iterator[Entry]:
    """All of them, in alphabetical order."""
    for name in models.list_models():
        builder = models.get_model_builder(name)
        if ".quantization." in builder.__module__:
            continue
        kind = builder.__module__.removeprefix("torchvision.models.").split(".")
        family = kind[0] if kind[0] in ("detection", "segmentation", "video", "optical_flow") else "classification"
        inputs = _inputs(name, family)
        given = " and ".join("×".join(map(str, x.shape)) for x in inputs)
        yield Entry("torchvision", name, partial(_build, name, family), ".".join(kind), given)


def _build(name: str, family: str) -> Example:
    inputs = _inputs(name, family)
    options: dict[str, Any] = {} if family == "optical_flow" else {"weights": None}
    if family in ("detection", "segmentation"):
        options["weights_backbone"] = None
    if name.startswith(_TRANSFORMER):
        options["image_size"] = inputs[0].shape[-1]
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # it takes half a minute, and the values are replaced anyway
    if "rcnn" in name:
        options |= {"rpn_pre_nms_top_n_test": 100, "rpn_post_nms_top_n_test": 20, "box_detections_per_img": 10}
    model = models.get_model(name, **options)
    if family == "detection":
        model.transform.min_size, model.transform.max_size = (128,), 128
        return Example(model, ([inputs[0][0]],))
    return Example(model, inputs)


def _inputs(name: str, family: str) -> tuple[torch.Tensor, ...]:
    size = next((size for start, size in _SIZES.items() if name.startswith(start)), 64)
    if family == "video":
        frames, size = next((shape for start, shape in _VIDEOS.items() if name.startswith(start)), (4, 32))
        return (torch.randn(1, 3, frames, size, size),)
    if family == "optical_flow":
        return torch.rand(1, 3, size, size) * 2 - 1, torch.rand(1, 3, size, size) * 2 - 1
    if family == "detection":
        return (torch.rand(1, 3, max(size, 128), max(size, 128)),)
    return (torch.randn(1 if name == "maxvit_t" else 2, 3, size, size),)
