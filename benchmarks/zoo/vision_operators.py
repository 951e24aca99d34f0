"""The operators of torchvision that detection needs, in plain PyTorch: its own are compiled for one build of torch."""

from __future__ import annotations

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")


def declare() -> None:
    """Make `torchvision` importable beside any build of torch. Call it before the import."""
    for name in ("nms", "qnms"):
        _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARY.impl(name, nms, "CPU")


def nms(boxes_N4: Tensor, scores_N: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes that no better box overlaps by more than `threshold` (of their union), best first."""
    order = scores_N.argsort(descending=True, stable=True)
    low, high = boxes_N4[order, :2], boxes_N4[order, 2:]
    overlap = (torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)).clamp(min=0).prod(-1)
    areas = (high - low).prod(-1)
    covers = overlap > threshold * (areas[:, None] + areas - overlap)
    kept = torch.ones(len(order), dtype=torch.bool)
    for i in range(len(order)):
        if kept[i]:
            kept[i + 1 :] &= ~covers[i, i + 1 :]
    return order[kept]
