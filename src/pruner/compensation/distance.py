"""How far a model's answers are from those of the dense model: the loss for which nobody needs labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from tracker.batches import Batch, logits


class Answer(NamedTuple):
    """What a model said to a batch: (samples, features), and whether those are logits of classes."""

    values: Tensor
    classes: bool


def answer(output: Any, batch: Batch) -> Answer:
    """What a model's output is about, padding left out.

    An output that names its `logits` is a choice among classes, and so is one that has the shape of class indices given
    as targets; everything else is a vector.
    """
    found = logits(output)
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    target = batch.target
    indices = target is not None and not target.is_floating_point() and target.shape == found.shape[:-1]
    mask = batch.mask
    if mask is not None and found.dim() >= 3 and found.shape[:2] == mask.shape:
        return Answer(found[mask], found is named or indices)
    values = found.flatten(0, -2) if found.dim() > 1 else found.unsqueeze(0)
    return Answer(values, found is named or indices)


def spread(dense: Sequence[Answer]) -> float:
    """The variance of a model's answers, summed over their features: the unit of distances between vectors."""
    count = sum(len(one.values) for one in dense)
    if not count or dense[0].classes:
        return 1.0
    total = torch.stack([one.values.double().sum(0) for one in dense]).sum(0) / count
    squares = sum(float((one.values.double() - total).square().sum()) for one in dense)
    if count == 1 or squares <= 0:
        squares = sum(float(one.values.double().square().sum()) for one in dense)
    return max(squares / count, 1e-300)


def distance(found: Answer, dense: Answer, unit: float) -> Tensor:
    """The mean over samples, differentiable in `found`.

    Between choices among classes: the Kullback–Leibler divergence in nats, KL(dense ‖ found). Between vectors: the
    square of the difference, in units of the variance of the dense answers (see `spread`).
    """
    wide = torch.promote_types(found.values.dtype, torch.float32)
    ours, theirs = found.values.to(wide), dense.values.detach().to(wide)
    if dense.classes and theirs.shape[-1] > 1:
        return F.kl_div(F.log_softmax(ours, -1), F.log_softmax(theirs, -1), log_target=True, reduction="batchmean")
    return (ours - theirs).square().sum() / (unit * max(1, len(theirs)))


def tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors of what a block returns."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


@contextmanager
def written(model: nn.Module, blocks: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """What these blocks of a model write within the block of code; the last time where one runs several times."""
    found: dict[str, list[Tensor]] = {}
    with ExitStack() as stack:
        for name in blocks:

            def keep(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                found[name] = tensors(output)

            stack.callback(model.get_submodule(name).register_forward_hook(keep).remove)
        yield found


def mean_error(outputs: Sequence[Tensor], wanted: Sequence[Tensor], batch: Batch, scale: Sequence[float]) -> Tensor:
    """The mean square of the differences, each tensor in units of its `scale`, padding left out.

    Only of tensors of one shape (see `comparable`): a block may also return something of each head.
    """
    parts = [
        (rows(x, batch).float() - rows(y, batch).float()).square().mean() / variance
        for x, y, variance in zip(outputs, wanted, scale, strict=True)
        if x.shape == y.shape
    ]
    return torch.stack(parts).mean()


def comparable(outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    """Whether what two blocks wrote can be compared: as many tensors, and the first ones of one shape."""
    return len(outputs) == len(wanted) > 0 and outputs[0].shape == wanted[0].shape


def rows(x: Tensor, batch: Batch) -> Tensor:
    """Without padding, as (samples, features)."""
    mask = batch.mask
    if mask is not None and x.dim() >= 3 and x.shape[:2] == mask.shape:
        return x[mask]
    return x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)
