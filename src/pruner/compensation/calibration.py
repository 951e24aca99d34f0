"""The data that a repair is made from: batches of a handy size, samples to learn from and samples to judge by, and more
samples made of them.

Nobody needs labels: the dense model answers any input. So the samples to learn from are also cut and joined into new
ones, which the dense model answers too. That is worth about as much as half again as many real samples (see
`benchmarks/quality`), and costs one forward pass each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from tracker.batches import Batch, forward

HELD_OUT = 8
"""Every eighth sample is held out: solutions are judged by it, and not made from it."""

SAMPLES = 16
"""The most samples in a batch that is learned from."""


class Calibration(NamedTuple):
    """Batches, and the numbers of those that only judge. No such number: there are too few samples to hold any out."""

    batches: tuple[Batch, ...]
    held: frozenset[int]

    @property
    def seen(self) -> list[int]:
        """The numbers of the batches to learn from."""
        return [number for number in range(len(self.batches)) if number not in self.held]


def calibration(batches: Sequence[Batch], *, copies: int = 0, seed: int = 0) -> Calibration:
    """The batches of a loader in batches of at most `SAMPLES`, every eighth sample held out.

    With `copies`, so many new samples are made of each one to learn from (see `joined`).
    """
    seen: list[Batch] = []
    held: list[Batch] = []
    total = sum(map(samples_of, batches))
    offset = 0
    for batch in batches:
        count = samples_of(batch)
        number = torch.arange(offset, offset + count)
        offset += count
        out = (number % HELD_OUT == HELD_OUT - 1) & (total >= HELD_OUT)
        for into, rows in ((seen, (~out).nonzero().flatten()), (held, out.nonzero().flatten())):
            if count == 1 or not out.any():
                into += _parts(batch, count) if len(rows) else []
            else:
                into += [part for chunk in rows.split(SAMPLES) if len(chunk) for part in [_rows(batch, count, chunk)]]
    random = torch.Generator().manual_seed(seed)
    made = [new for _ in range(copies) for batch in seen if (new := joined(batch, random)) is not None]
    together = (*seen, *made, *held)
    return Calibration(together, frozenset(range(len(seen) + len(made), len(together))))


def in_samples(model: nn.Module, batches: Sequence[Batch]) -> tuple[Batch, ...]:
    """The batches, marked as whole where their rows are no samples.

    So it is where a part of the rows cannot be run, or where the batch holds indices that are not one for each row, as
    of a graph's edges. To be called under `evaluating`.
    """
    return tuple(batches) if _divides(model, batches[0]) else tuple(replace(batch, whole=True) for batch in batches)


def _divides(model: nn.Module, batch: Batch) -> bool:
    count = samples_of(batch)
    if count < 2:
        return True
    given = [x for x in tree_leaves((batch.args, batch.kwargs)) if isinstance(x, Tensor) and x.dim()]
    if any(x.shape[0] not in (1, count) and not x.is_floating_point() and x.dtype != torch.bool for x in given):
        return False
    try:
        with torch.no_grad():
            forward(model, pieces_of(batch, 2)[0])
    except (RuntimeError, ValueError, IndexError, AssertionError):
        return False
    return True


def samples_of(batch: Batch) -> int:
    """How many samples a batch holds: the length of the first dimension of what it is about."""
    if batch.whole:
        return 1
    if batch.mask is not None:
        return int(batch.mask.shape[0])
    leaves = [x for x in tree_leaves((batch.args, batch.kwargs)) if isinstance(x, Tensor) and x.dim()]
    return int(leaves[0].shape[0]) if leaves else 1


def pieces_of(batch: Batch, most: int) -> list[Batch]:
    """At most so many batches of the same shapes, each with as many samples of this one."""
    count = samples_of(batch)
    pieces = min(most, count)
    if pieces < 2:
        return [batch]
    return [_rows(batch, count, rows) for rows in torch.arange(count // pieces * pieces).view(pieces, -1)]


def joined(batch: Batch, random: torch.Generator) -> Batch | None:
    """New samples, each made of two of the batch; None where there are no two.

    Tokens and other sequences of integers: a piece of one and a piece of another behind it, between the first of the
    one and the last of the other, which may be markers. Images and other grids of numbers: a box of one in another
    (CutMix, Yun et al. 2019). Vectors: a convex combination.
    """
    count = samples_of(batch)
    if count < 2:
        return None
    other = (torch.arange(count) + torch.randint(1, count, (count,), generator=random)) % count
    pieces: dict[int, tuple[Tensor, Tensor]] = {}

    def join(x: Tensor) -> Tensor:
        if not x.dim() or x.shape[0] != count:
            return x
        if x.is_floating_point() and x.dim() > 2:
            return _boxed(x, other.to(x.device), random)
        if x.is_floating_point():
            share = torch.rand((count, *[1] * (x.dim() - 1)), generator=random).to(x)
            return share * x + (1 - share) * x[other.to(x.device)]
        if x.dim() < 2 or x.shape[1] < 4 or bool((x == x[:1]).all()):  # the same for all samples: their positions
            return x
        length = x.shape[1]
        if length not in pieces:
            pieces[length] = _pieces(batch.mask, length, other, random)
        rows, places = pieces[length]
        return x[rows.to(x.device), places.to(x.device)]

    args, kwargs, mask = tree_map_only(Tensor, join, (batch.args, batch.kwargs, batch.mask))
    return Batch(args, kwargs, None, mask)


def _pieces(mask: Tensor | None, length: int, other: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """For each new sample, where its tokens come from: the numbers of samples and of places, both (samples, length)."""
    count = len(other)
    real = torch.ones(count, length, dtype=torch.bool)
    if mask is not None and mask.shape == (count, length):
        real = mask.cpu()
    padded_left = bool(real[:, -1].all()) and not bool(real[:, 0].all())
    rows, places = torch.arange(count).unsqueeze(1).repeat(1, length), torch.arange(length).repeat(count, 1)

    def below(most: int) -> int:
        return int(torch.randint(0, max(1, most), (), generator=random))

    for row, second in enumerate(other.tolist()):
        one, two = real[row].nonzero().flatten(), real[second].nonzero().flatten()
        if min(len(one), len(two)) < 4:
            continue
        inside = (len(one) + len(two)) // 2 - 2
        first = max(inside - (len(two) - 2), min(len(one) - 2, below(inside + 1)))
        rest = inside - first
        a, b = 1 + below(len(one) - 1 - first), 1 + below(len(two) - 1 - rest)
        taken = torch.cat([one[:1], one[a : a + first], two[b : b + rest], two[-1:]])
        owner = torch.tensor([row] * (1 + first) + [second] * (rest + 1))
        empty = length - len(taken)
        if empty:  # then one of the two has padding to take
            lender = row if len(one) < length else second
            spare = (~real[lender]).nonzero().flatten()[:1].expand(empty)
            lent = torch.full((empty,), lender)
            taken = torch.cat([spare, taken] if padded_left else [taken, spare])
            owner = torch.cat([lent, owner] if padded_left else [owner, lent])
        rows[row], places[row] = owner, taken
    return rows, places


def _boxed(x: Tensor, other: Tensor, random: torch.Generator) -> Tensor:
    inside = torch.ones((), dtype=torch.bool)
    for dim in range(2, x.dim()):
        size = x.shape[dim]
        edges = torch.randint(0, size + 1, (x.shape[0], 2), generator=random).sort(1).values
        place = torch.arange(size)
        along = (place >= edges[:, :1]) & (place < edges[:, 1:])
        shape = [x.shape[0], *[1] * (x.dim() - 1)]
        shape[dim] = size
        inside = inside & along.reshape(shape)
    return torch.where(inside.to(x.device), x[other], x)


def _parts(batch: Batch, count: int) -> Iterator[Batch]:
    if count <= SAMPLES:
        yield batch
        return
    for rows in torch.arange(count).split(SAMPLES):
        yield _rows(batch, count, rows)


def _rows(batch: Batch, count: int, rows: Tensor) -> Batch:
    """Some samples of a batch: these rows of every tensor that has one for each sample."""

    def pick(x: Tensor) -> Tensor:
        return x[rows.to(x.device)] if x.dim() and x.shape[0] == count else x

    parts: tuple[Any, ...] = (batch.args, batch.kwargs, batch.target, batch.mask)
    args, kwargs, target, mask = _mapped(pick, parts)
    return replace(batch, args=args, kwargs=kwargs, target=target, mask=mask)


def _mapped(function: Callable[[Tensor], Tensor], tree: tuple[Any, ...]) -> tuple[Any, ...]:
    found: tuple[Any, ...] = tree_map_only(Tensor, function, tree)
    return found
