"""Tensors that lie in the same memory without being the same tensor: cut, they would part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from tracker.errors import PlanError


def check_alone(named: Mapping[str, Tensor], cut: Iterable[Tensor]) -> None:
    """Raise `PlanError` where a tensor that will be cut overlaps in memory with another one of `named`.

    What is written into one of the two also changes the other, until cutting gives one of them memory of its own. That
    several tensors lie side by side in one buffer does no harm.
    """
    cuts = set(map(id, cut))
    spans: dict[int, list[tuple[int, int, str, Tensor]]] = {}
    for name, tensor in {id(tensor): (name, tensor) for name, tensor in named.items()}.values():
        if tensor.numel():
            first = tensor.storage_offset() * tensor.itemsize
            last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            end = first + (last + 1) * tensor.itemsize
            spans.setdefault(tensor.untyped_storage()._cdata, []).append((int(first), int(end), name, tensor))
    for beside in spans.values():
        (_, reach, name, furthest), *rest = sorted(beside, key=lambda span: span[:2])
        for start, end, other, tensor in rest:
            if start < reach and {id(furthest), id(tensor)} & cuts:
                raise PlanError(
                    f"'{name}' and '{other}' are two tensors in the same memory. Cut, they would part.",
                    hint="Make them one tensor by assigning the parameter itself, or give each memory of its own: "
                    "parameter.data = parameter.data.clone().",
                )
            if end > reach:
                reach, name, furthest = end, other, tensor
