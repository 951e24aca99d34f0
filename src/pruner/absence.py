"""Experts out of a router's choice: what a model without them computes.

Zero is a score like any other. An expert that is not there is one of score -inf: it has no share in a distribution over
the experts, and no choice falls on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tracker.neuron_map import NeuronGroup
from tracker.taps import is_part

_PRODUCTS = frozenset({"linear", "mm", "addmm", "bmm", "baddbmm"})
_CHOICES = frozenset({"topk"})


def is_chosen(group: NeuronGroup) -> bool:
    """Whether the model chooses among the neurons of a group: no weight reads them, and it needs several."""
    return group.kind == "expert" and not group.exact and not group.consumers


@contextmanager
def absent(
    model: nn.Module, removed: Sequence[tuple[NeuronGroup, Tensor]], *, jitter: float = 0.0
) -> Iterator[list[str]]:
    """Within the block, the experts `removed` of each group are never chosen.

    Yields a list that holds, after the block, the routers that never ran. With `jitter`, the scores of the others are
    moved by plus or minus that share of themselves.
    """
    never: list[str] = []
    if not removed:
        yield never
        return
    scores = _Scores(model, removed, jitter)
    with scores:
        yield never
    never.extend(name for name in scores.routers if name not in scores.seen)


class _Scores(TorchDispatchMode):
    """Sets the scores that routers compute to -inf, and also what is chosen by, until another product is as wide.

    Scores that are computed from these, such as their sigmoid with a bias added, may be finite again.
    """

    def __init__(self, model: nn.Module, removed: Sequence[tuple[NeuronGroup, Tensor]], jitter: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[str] = set()
        self.routers: dict[str, tuple[Tensor, int, Tensor]] = {}
        self._signs, self._jitter = np.random.default_rng(0), jitter
        self._running: tuple[int, Tensor] | None = None
        for group, experts in removed:
            weight = next(w for site in group.producers if (w := model.get_parameter(site.parameter)).dim() > 1)
            self.routers[group.name] = weight, group.size, experts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in _CHOICES and self._running is not None:
            size, experts = self._running
            axis = args[2] if len(args) > 2 else -1
            if args[0].dim() > 1 and args[0].shape[axis] == size:
                args = (args[0].index_fill(axis, experts.to(args[0].device), -torch.inf), *args[1:])
        out = func(*args, **(kwargs or {}))
        return self._without(out, args) if name in _PRODUCTS else out

    def _without(self, out: Tensor, operands: Sequence[Any]) -> Tensor:
        for name, (weight, size, experts) in self.routers.items():
            if out.shape[-1] == size and any(isinstance(x, Tensor) and is_part(x, weight) for x in operands):
                self.seen.add(name)
                self._running = size, experts
                if self._jitter:
                    signs = self._signs.choice([-self._jitter, self._jitter], size=size)
                    out = out + out * torch.from_numpy(signs).to(out.device, out.dtype)
                return out.index_fill(-1, experts.to(out.device), -torch.inf)
        if self._running is not None and out.shape[-1] == self._running[0]:
            self._running = None
        return out
