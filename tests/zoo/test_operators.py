"""The operators of the zoo's own, against those they stand for."""

import torch
from benchmarks.zoo.grouped_products import _grouped_product
from benchmarks.zoo.vision_operators import nms


def test_boxes_that_a_better_one_overlaps_are_left_out() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 10, 4]])
    scores = torch.tensor([0.8, 0.9, 0.1, 0.7])
    assert nms(boxes, scores, 0.5).tolist() == [1, 3, 2]
    assert nms(boxes, scores, 0.3).tolist() == [1, 2]
    assert nms(boxes, scores, 0.95).tolist() == [1, 0, 3, 2]
    assert nms(boxes[:0], scores[:0], 0.5).tolist() == []


def test_grouped_products_are_those_of_pytorch() -> None:
    rows, matrices = torch.randn(12, 8), torch.randn(3, 8, 16)
    ends = torch.tensor([4, 4, 12], dtype=torch.int32)
    expected = torch._grouped_mm(rows, matrices, offs=ends)
    torch.testing.assert_close(_grouped_product(rows, matrices, ends), expected)
    assert _grouped_product(rows.double(), matrices.double(), ends).dtype == torch.float64
