"""Runs of a model over the same inputs, with its neurons and without some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neuronscope.ablation import Filler, by_neuron
from neuronscope.layers import Layers
from neuronscope.movement import Scale
from pruner.compensation.distance import Answer, answer
from pruner.compensation.footprint import free_bytes
from tracker.batches import Batch, forward, predicts_next
from tracker.errors import DataError
from tracker.neuron_map import NeuronGroup, NeuronMap, Read
from tracker.taps import tap

_COPIES = 4  # the answers before and after, and what is computed of each


class Trials:
    """To be used under `evaluating`. What the dense model says is found out once."""

    def __init__(self, model: nn.Module, neurons: NeuronMap, layers: Layers, batches: Sequence[Batch]) -> None:
        self.model, self.neurons, self.layers, self.batches = model, neurons, layers, batches
        self._dense: dict[int | None, tuple[list[Answer], NDArray[np.float32]]] = {}

    @property
    def nbytes(self) -> int:
        """What is kept of the dense model, in bytes."""
        seen = sum(read.nbytes for _, read in self._dense.values())
        said = next(iter(self._dense.values()), ([], None))[0]
        return seen + _COPIES * sum(one.values.nbytes for one in said)

    @cached_property
    def scale(self) -> Scale:
        """The dense answers, to hold others against."""
        dense, _ = next(iter(self._dense.values()), None) or self.dense(None)
        targets = [targets_of(self.model, batch, one) for batch, one in zip(self.batches, dense, strict=True)]
        return Scale(dense, targets)

    def dense(self, further: int | None) -> tuple[list[Answer], NDArray[np.float32]]:
        """`run` with all neurons."""
        if further not in self._dense:
            self.look_at([further])
        return self._dense[further]

    def look_at(self, further: Sequence[int | None]) -> None:
        """Run the dense model once for all of these layers."""
        if not further:
            return
        said, seen = self._run({}, further)
        said = next((known for known, _ in self._dense.values()), said)
        self._dense |= {number: (said, seen[number]) for number in further}

    def run(self, gone: Mapping[str, Filler], further: int | None) -> tuple[list[Answer], NDArray[np.float32]]:
        """The answers with these groups' neurons filled in, and what is read of layer number `further`.

        That is (places, neurons); behind the last layer the answers themselves. Without `further` nothing is kept.
        """
        said, seen = self._run(gone, [further])
        return said, seen[further]

    def _run(
        self, gone: Mapping[str, Filler], further: Sequence[int | None]
    ) -> tuple[list[Answer], dict[int | None, NDArray[np.float32]]]:
        watched = {
            group.name: group for number in further for group in self.further_groups(number) if group.name not in gone
        }
        heard: dict[str, dict[int, Tensor]] = {}
        at = 0

        def visit(group: NeuronGroup, read: Read, x: Tensor) -> Tensor | None:
            if group.name in watched:
                heard.setdefault(group.name, {}).setdefault(at, by_neuron(x, read, group, self.batches[at]))
            return gone[group.name](read, x, at) if group.name in gone else None

        found: list[Answer] = []
        groups = [group for group in self.neurons if group.name in gone or group.name in watched]
        with tap(self.model, groups, visit):
            for at, batch in enumerate(self.batches):  # noqa: B007 (the visitor reads it)
                found.append(answer(forward(self.model, batch), batch))
        seen: dict[int | None, NDArray[np.float32]] = {}
        for number in further:
            own = [heard[group.name] for group in self.further_groups(number) if group.name in heard]
            parts = [torch.cat(list(one.values())) for one in own]
            if number is None:
                joined = torch.empty(0, 0)
            elif parts:
                longest = max(map(len, parts))
                joined = torch.cat([part for part in parts if len(part) == longest], 1)
            else:
                joined = torch.cat([one.values for one in found])
            seen[number] = joined.float().cpu().numpy()
        return found, seen

    def further_groups(self, further: int | None) -> Sequence[NeuronGroup]:
        """The groups of a layer; none behind the last one."""
        return self.layers.all[further].groups if further is not None and further < len(self.layers) else ()


def check_room(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Raise `DataError` where the answers of a language model, before and after, would not fit into free memory."""
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    ids = [batch.kwargs.get("input_ids") for batch in batches]
    tokens = sum(x.numel() for x in ids if isinstance(x, Tensor))
    parameter = next(model.parameters())
    free = free_bytes(parameter.device)
    if not isinstance(vocabulary, int) or free is None:
        return
    needed = _COPIES * 4 * tokens * vocabulary
    if needed > free:
        raise DataError(
            f"The answers to {tokens} tokens take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free on "
            f"{parameter.device}.",
            hint="Give fewer texts, or shorter ones.",
        )


def targets_of(model: nn.Module, batch: Batch, said: Answer) -> Tensor | None:
    """The right answers where they are known: the next token of a language model, -1 where there is none, or labels."""
    ids = batch.kwargs.get("input_ids")
    if not predicts_next(model):
        target = batch.target
        fits = target is not None and not target.is_floating_point() and target.numel() == len(said.values)
        return target.flatten() if target is not None and fits else None
    if not isinstance(ids, Tensor) or ids.dim() != 2 or not said.classes:
        return None
    following = torch.full_like(ids, -1)
    following[:, :-1] = ids[:, 1:]
    if batch.mask is not None:
        following[:, :-1][~batch.mask[:, 1:]] = -1
        following = following[batch.mask]
    following = following.flatten()
    vocabulary = said.values.shape[-1]
    return following if len(following) == len(said.values) and int(following.max()) < vocabulary else None
