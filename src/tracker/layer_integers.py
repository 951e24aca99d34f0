"""The integers that PyTorch's own layers show but do not compute with: `in_features`, `num_features` …"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from tracker.neuron_map import Integer, NeuronGroup, Site


def layer_integers(model: nn.Module, groups: Sequence[NeuronGroup], solved: Iterable[Integer]) -> Iterator[Integer]:
    """One `Integer` for every such attribute that a group touches and no equation gave."""
    taken = {(integer.module, integer.path) for integer in solved}
    touched: dict[Site, dict[str, int]] = {}
    for group in groups:
        for site, positions in group.members.items():
            touched.setdefault(site, {})[group.name] = positions.shape[1]
    for name, module in model.named_modules():
        for attribute, site in _shown(name, module):
            follows = dict(touched.get(site, {}))
            if isinstance(module, _CONVOLUTIONS) and module.groups > 1:
                follows = _grouped(module, attribute, follows, touched.get(site._replace(dim=0), {}))
            if follows and (name, (attribute,)) not in taken and hasattr(module, attribute):
                yield Integer(name, (attribute,), follows)


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def _shown(name: str, module: nn.Module) -> Iterator[tuple[str, Site]]:
    weight = f"{name}.weight".lstrip(".")
    if isinstance(module, nn.Linear):
        yield from (("out_features", Site(weight, 0)), ("in_features", Site(weight, 1)))
    elif isinstance(module, _TRANSPOSED):
        yield from (("in_channels", Site(weight, 0)), ("out_channels", Site(weight, 1)))
    elif isinstance(module, _CONVOLUTIONS):
        yield from (("out_channels", Site(weight, 0)), ("in_channels", Site(weight, 1)))
    elif isinstance(module, _BATCH_NORMS):
        yield "num_features", Site(weight if module.affine else f"{name}.running_mean".lstrip("."), 0)
    elif isinstance(module, nn.GroupNorm):
        yield "num_channels", Site(weight, 0)
    elif isinstance(module, nn.RNNBase):
        yield "input_size", Site(f"{name}.weight_ih_l0".lstrip("."), 1)
    elif isinstance(module, nn.Embedding):
        yield "embedding_dim", Site(weight, 1)
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        yield from (("nx", Site(weight, 0)), ("nf", Site(weight, 1)))


def _grouped(module: Any, attribute: str, follows: Mapping[str, int], rows: Mapping[str, int]) -> dict[str, int]:
    """Grouped convolutions keep one dimension per group: the attribute counts all groups."""
    if module.groups == module.in_channels and not follows and attribute == "in_channels":
        multiplier = int(module.out_channels) // int(module.in_channels)
        return {name: times // multiplier for name, times in rows.items()}
    transposed = isinstance(module, _TRANSPOSED)
    per_group = attribute == ("out_channels" if transposed else "in_channels")
    return {name: times * int(module.groups) for name, times in follows.items()} if per_group else dict(follows)
