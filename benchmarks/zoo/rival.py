"""One model through Torch-Pruning, as its README uses it: half of every group goes, by magnitude."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch_pruning
from benchmarks.zoo.entries import Entry, Example
from benchmarks.zoo.forward import difference, outputs, tensors_in
from benchmarks.zoo.limits import Clock, Peak, limited
from torch import Tensor, nn

JUDGED_SECONDS = 5.0  # what takes longer is not pruned a second time

Report = Callable[..., None]


def warm_up() -> None:
    """Load what is loaded with the first model."""
    _pruner(Example(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), (torch.randn(1, 4),)), []).step()


def measure(entry: Entry, report: Report) -> None:
    """Time the pruning of the model as it comes, see whether it runs, then whether it is the model it claims to be."""
    report(stage="build", result="crash")
    example = entry.fresh()
    model = example.model
    before = sum(parameter.numel() for parameter in model.parameters())
    ignored = _output_layers(example)
    peak, clock = Peak(), Clock()
    report(stage="prune", parameters=before)
    with limited():
        _pruner(example, ignored).step()
        seconds = clock.lap()
        report(seconds=seconds, peak_mib=peak.mib())
    after = sum(parameter.numel() for parameter in model.parameters())
    report(stage="forward", result="forward fails", parameters_after=after)
    with limited():
        outputs(model, example.args, example.kwargs)
    report(result="ok" if after < before else "nothing pruned")
    if after < before and seconds < JUDGED_SECONDS:
        report(stage="judge")
        with limited():
            report(**_judged(entry))
    report(stage="done")


def _pruner(example: Example, ignored: list[nn.Module]) -> Any:
    return torch_pruning.pruner.BasePruner(
        example.model,
        example_inputs=example.args,
        forward_fn=lambda model, _: model(*example.args, **example.kwargs),
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=ignored,
    )


def _output_layers(example: Example) -> list[nn.Module]:
    """The layers whose output is an output of the model: they keep their width, as its README has it."""
    written: list[tuple[Tensor, nn.Module]] = []  # held, so that no memory is used twice
    hooks = [
        module.register_forward_hook(lambda module, _, result: written.extend((x, module) for x in tensors_in(result)))
        for module in example.model.modules()
        if not list(module.children()) and list(module.parameters())
    ]
    with torch.no_grad():
        answer = {x.untyped_storage().data_ptr() for x in tensors_in(example.model(*example.args, **example.kwargs))}
    for hook in hooks:
        hook.remove()
    return list(dict.fromkeys(module for x, module in written if x.untyped_storage().data_ptr() in answer))


def _judged(entry: Entry) -> dict[str, Any]:
    """Whether the pruned model is the dense one with the same channels silenced, as far as that can be said.

    Groups that reach a norm over channels or a bare parameter are left whole, for removing from those is no silencing.
    Of the others, what its own dependency graph says is pruned is set to zero in a dense copy: what the producers write
    and what the consumers read. Both in float64. `difference` is None where there was no such group.
    """
    try:
        example, dense = entry.fresh(torch.float64), entry.fresh(torch.float64).model
        modules = {module: name for name, module in example.model.named_modules()}
        pruner = _pruner(example, _output_layers(example))
        silencer = _Silencer(dense, pruner.DG)
        judged = 0
        for group in pruner.step(interactive=True):
            if all(silencer.knows(dependency.target.module) for dependency, _ in group):
                for dependency, indices in group:
                    silencer.silence(modules.get(dependency.target.module), dependency, list(indices))
                group.prune()
                judged += 1
        if not judged:
            return {"difference": None}
        pruned = outputs(example.model, example.args, example.kwargs)
        return {"difference": difference(pruned, outputs(dense, example.args, example.kwargs)), "judged_groups": judged}
    except Exception as error:  # noqa: BLE001 (the verdict above stands)
        return {"difference": None, "not_judged": f"{type(error).__name__}: {str(error)[:120]}"}


class _Silencer:
    """Zeros in a dense model where another copy of it was cut."""

    def __init__(self, dense: nn.Module, graph: Any) -> None:
        self._dense = dict(dense.named_modules())
        self._graph = graph
        self._left: dict[tuple[str, int], Tensor] = {}
        self._norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.PReLU)

    def knows(self, module: Any) -> bool:
        """Whether cutting this is the same as silencing it."""
        if not isinstance(module, nn.Module):
            return False
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return module.groups in (1, module.out_channels)
        layers = (nn.Linear, nn.ConvTranspose2d, *self._norms)
        return isinstance(module, layers) or not list(module.parameters(recurse=False))

    def silence(self, name: str | None, dependency: Any, indices: list[int]) -> None:
        """Zero these channels; the indices count what is left after earlier groups."""
        module = self._dense.get(name or "")
        if not name or not isinstance(getattr(module, "weight", None), Tensor):
            return
        reads = self._graph.is_in_channel_pruning_fn(dependency.handler) and not isinstance(module, self._norms)
        reads = reads and not (getattr(module, "groups", 1) > 1)
        dim = int(reads) ^ int(isinstance(module, nn.ConvTranspose2d))
        left = self._left.get((name, dim), torch.arange(module.weight.shape[dim]))
        gone = left[indices]
        self._left[name, dim] = left[~torch.isin(left, gone)]
        with torch.no_grad():
            module.weight.index_fill_(dim, gone, 0.0)
            if not reads and getattr(module, "bias", None) is not None:
                module.bias.index_fill_(0, gone, 0.0)
