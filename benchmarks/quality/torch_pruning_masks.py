"""What Torch-Pruning would remove: its criteria choose over its own dependency graph, and nothing is cut yet."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pruner.compensation.bench import copied
from pruner.criteria.gradients import drawn_loss
from tracker.batches import Batch, forward
from tracker.neuron_map import NeuronGroup, NeuronMap, Site

HANG_SECONDS = 120


def masks(
    model: nn.Module,
    neurons: NeuronMap,
    groups: Sequence[str],
    batches: Sequence[Batch],
    ratio: float,
    criterion: str,
    seed: int,
) -> dict[str, Tensor]:
    """The neurons of each of `groups` that go: the same share of every layer, by Torch-Pruning's "magnitude" or
    "taylor".

    Raises what Torch-Pruning raises, `TimeoutError` where it does not end, and `RuntimeError` where it removes nothing.
    """
    import torch_pruning

    twin = copied(model)
    written = _written(twin, neurons, groups)
    random = torch.Generator().manual_seed(seed)
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
    if criterion == "taylor":
        for batch in batches:
            with torch.enable_grad():
                drawn_loss(forward(twin, batch), batch, random).backward()
    importance = {
        "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
        "taylor": torch_pruning.importance.GroupTaylorImportance,
    }[criterion]
    gone: dict[str, Tensor] = {}
    with _limited(HANG_SECONDS), torch.enable_grad():
        pruner = torch_pruning.pruner.BasePruner(
            twin,
            example_inputs=batches[0].args,
            forward_fn=lambda model, _: _tensors(forward(model, batches[0])),
            importance=importance(),
            pruning_ratio=ratio,
            num_heads={module: group.size for module, (group, _) in written.items() if group.kind == "attention"},
            prune_num_heads=True,
            head_pruning_ratio=ratio,
            ignored_layers=[m for m in twin.modules() if isinstance(m, nn.Linear | nn.Conv2d) and m not in written],
        )
        for chosen in pruner.step(interactive=True):
            for dependency, indices in chosen:
                of = written.get(dependency.target.module)
                if of is not None and pruner.DG.is_out_channel_pruning_fn(dependency.handler):
                    gone[of[0].name] = _whole(of[0].members[of[1]], indices)
    if not any(map(len, gone.values())):
        raise RuntimeError("Torch-Pruning removes nothing of these layers.")
    return gone


def _written(model: nn.Module, neurons: NeuronMap, groups: Sequence[str]) -> dict[Any, tuple[NeuronGroup, Site]]:
    """The layers that write the neurons, and where."""
    found: dict[Any, tuple[NeuronGroup, Site]] = {}
    for name in groups:
        for site in neurons[name].producers:
            module = model.get_submodule(site.module)
            if site.parameter.endswith(".weight") and not isinstance(module, nn.modules.batchnorm._BatchNorm):
                found[module] = neurons[name], site
    return found


def _whole(positions: np.ndarray[Any, Any], indices: Sequence[int]) -> Tensor:
    """The neurons all of whose positions are among `indices`."""
    return torch.from_numpy(np.isin(positions, np.asarray(indices)).all(1).nonzero()[0])


def _tensors(output: Any) -> list[Tensor]:
    return [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.requires_grad]


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"Torch-Pruning did not end within {seconds} s.")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
