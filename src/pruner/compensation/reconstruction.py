"""Past the linear limit: every block is trained, alone and without labels, to write what the dense block wrote.

The blocks go in order. A block's inputs come from the pruned blocks before it, its targets from the dense model, the
residual stream included, so that what went wrong before is corrected too (as BRECQ, Li et al. 2021, does for
quantisation). It starts from the closed form, and ends at the step that was best on samples it was not trained on; if
no step is better than the start, the block stays as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from pruner.compensation.calibration import Calibration
from pruner.compensation.distance import (
    Answer,
    answer,
    comparable,
    distance,
    mean_error,
    rows,
    spread,
    tensors,
    written,
)
from pruner.compensation.stages import Inputs, Stages
from tracker.batches import Batch, repeated
from tracker.progress import progress

LEARNING_RATE = 5e-4
TOGETHER = 2e-4
"""The learning rate where all blocks are trained together: at 5e-4, less was gained for stdlib-gpt, and MiniLM lost."""
CHECKS = 12
"""How often a training is judged on held-out samples."""
PATIENCE = 7
"""The training of a block ends when so many checks in a row were no better."""
_VALUES = (Tensor, bool, int, float, complex, str, bytes, torch.dtype, torch.device)


@dataclass(frozen=True)
class Trained:
    """What training made of a block: its error on held-out samples before and after, as a share of the variance of
    what the dense one wrote (for the model's answers: the distance to the dense ones), and the steps taken.
    """

    block: str
    before: float
    after: float
    steps: int


def reconstruct_blocks(
    dense: Stages, pruned: Stages, *, steps: int, parameters: Callable[[str], Sequence[nn.Parameter]], seed: int = 0
) -> list[Trained]:
    """Train the blocks of `pruned.model` in order, in place.

    `parameters` gives those of a block that may be trained; a block for which there are none is left as it is.
    """
    done = []
    last = -1
    for stage in progress(range(len(dense)), "Training block by block"):
        if stage > last:
            found = _last(dense, pruned, stage)
            last = len(dense) - 1 if found is None else found
            blocks = () if found is None else dense.blocks[stage : last + 1] or ("",)
            own = [parameter for block in blocks for parameter in parameters(block)]
            if own:
                done.append(_reconstruct(dense, pruned, stage, last, ", ".join(blocks), own, steps, seed + stage))
        dense.advance(stage)
        pruned.advance(stage)
    return done


def _last(dense: Stages, pruned: Stages, stage: int) -> int | None:
    """The block from which on nothing of this one's neurons is seen: the first that writes what the dense one does."""
    for last in range(stage, len(dense)):
        now, then = (tensors(stages.run(stage, 0, last=last)) for stages in (pruned, dense))
        if comparable(now, then):
            return last
    return None


def _reconstruct(
    dense: Stages,
    pruned: Stages,
    stage: int,
    last: int,
    name: str,
    own: Sequence[nn.Parameter],
    steps: int,
    seed: int,
) -> Trained:
    numbers = range(len(dense.batches))
    wanted = [[x.detach() for x in tensors(dense.run(stage, number, last=last))] for number in numbers]
    scale = _variances(wanted, dense.batches)
    inputs: list[Inputs] = []
    if stage == last and dense.blocks:  # the block alone, with what the model's own code hands it
        module = pruned.model.get_submodule(dense.blocks[stage])
        inputs = [_detached(pruned.given(stage, number)) for number in numbers]
        inputs = inputs if all(map(_again, inputs)) else []

    def loss(number: int) -> Tensor:
        if inputs:
            args, kwargs = inputs[number]
            output = module(*_fresh(args), **_fresh(kwargs))
        else:
            output = pruned.run(stage, number, last=last)
        return mean_error(tensors(output), wanted[number], dense.batches[number], scale)

    return fit(name, own, loss, dense.data, steps, seed)


def reconstruct_answers(
    dense: Stages, model: nn.Module, own: Sequence[nn.Parameter], *, steps: int, seed: int = 0
) -> Trained:
    """Train all blocks of `model` together, in place, for the dense model's answers where these are choices among
    classes. A vector is too easily learned by heart (a sentence's embedding by MiniLM: nothing was gained); there it is
    for what all the dense blocks wrote.

    The dense model runs along, so that no more is remembered than what it said to the samples that judge.
    """
    batches, judging = dense.batches, sorted(dense.data.held) or dense.data.seen
    with torch.no_grad():
        first = _said(dense.model, (), batches[judging[0]], judging[0])
        blocks = () if first.answer.classes else dense.blocks
        known = {number: _said(dense.model, blocks, batches[number], number) for number in judging}
    unit = spread([said.answer for said in known.values()])
    own_batches = [batches[number] for number in judging]
    scales = {block: _variances([known[number].written[block] for number in judging], own_batches) for block in blocks}

    def loss(number: int) -> Tensor:
        batch = batches[number]
        with torch.no_grad():
            then = known[number] if number in known else _said(dense.model, blocks, batch, number)
        now = _said(model, blocks, batch, number)
        errors = [
            mean_error(now.written[block], then.written[block], batch, scales[block])
            for block in blocks
            if comparable(now.written.get(block, []), then.written.get(block, []))
        ]
        return torch.stack(errors).mean() if errors else distance(now.answer, then.answer, unit)

    return fit("", own, loss, dense.data, steps, seed, TOGETHER, patience=CHECKS)


class _Said(NamedTuple):
    """What a model answered, and what its blocks wrote on the way."""

    answer: Answer
    written: dict[str, list[Tensor]]


def _said(model: nn.Module, blocks: Sequence[str], batch: Batch, number: int) -> _Said:
    with written(model, blocks) as found:
        return _Said(answer(repeated(model, batch, number), batch), found)


def fit(
    name: str,
    own: Sequence[nn.Parameter],
    loss: Callable[[int], Tensor],
    data: Calibration,
    steps: int,
    seed: int,
    learning_rate: float = LEARNING_RATE,
    patience: int = PATIENCE,
) -> Trained:
    """Adam with a cosine schedule on `loss(batch)`; the batches held out judge. The best state seen is kept."""
    seen, held = data.seen, sorted(data.held) or data.seen
    with _trainable(own):
        before = _judge(loss, held)
        best, kept, worse, taken = before, [p.detach().clone() for p in own], 0, 0
        optimizer = torch.optim.Adam(own, lr=learning_rate, betas=(0.9, 0.99))
        warm_up = max(1, steps // 20)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-3)
        )
        random = torch.Generator().manual_seed(seed)
        order: list[int] = []
        for step in range(steps):
            order = order or [seen[i] for i in torch.randperm(len(seen), generator=random).tolist()]
            optimizer.zero_grad()
            with torch.enable_grad():
                value = loss(order.pop())
                if not value.requires_grad:  # the model's code lets no gradient through
                    break
                value.backward()
            nn.utils.clip_grad_norm_(own, 1.0)
            optimizer.step()
            schedule.step()
            taken = step + 1
            if taken % max(1, steps // CHECKS) == 0 or taken == steps:
                now = _judge(loss, held)
                if now < best:
                    best, worse = now, 0
                    kept = [p.detach().clone() for p in own]
                else:
                    worse += 1
                    if worse >= patience:
                        break
        for parameter, value in zip(own, kept, strict=True):
            parameter.data.copy_(value)
        return Trained(name, before, best, taken)


def _judge(loss: Callable[[int], Tensor], held: Sequence[int]) -> float:
    with torch.no_grad():
        value = float(torch.stack([loss(number).detach().float() for number in held]).mean())
    return value if math.isfinite(value) else math.inf


@contextmanager
def _trainable(own: Collection[nn.Parameter]) -> Iterator[None]:
    """Parameters that take gradients for the while, and have none afterwards that they did not have before."""
    before = [(p, p.requires_grad, p.grad) for p in own]
    try:
        for parameter in own:
            parameter.requires_grad_(True)
            parameter.grad = None
        yield
    finally:
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient


def _variances(wanted: Sequence[Sequence[Tensor]], batches: Sequence[Batch]) -> list[float]:
    """The variance of each tensor that a block writes, over all its values."""
    found = []
    for place in range(len(wanted[0])):
        parts = [rows(outputs[place], batch) for outputs, batch in zip(wanted, batches, strict=True)]
        total = torch.stack([(p.float() - p.float().mean(0)).square().mean() for p in parts]).mean()
        found.append(max(float(total), 1e-12))
    return found


def _detached(inputs: Inputs) -> Inputs:
    return Inputs(*tree_map_only(Tensor, torch.Tensor.detach, tuple(inputs)))


def _again(inputs: Inputs) -> bool:
    """Whether a block may be called with these more than once: an object, such as a cache, may remember each call."""
    return all(leaf is None or isinstance(leaf, _VALUES) for leaf in tree_leaves(tuple(inputs)))


def _fresh(given: Any) -> Any:
    """Copies, for the model's code may write into what it is given."""
    return tree_map_only(Tensor, torch.clone, given)
