"""The integers that PyTorch's own layers show but do not compute with: `in_features`, `num_features` …"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from tracker.labels import Labels
from tracker.neuron_map import Site
from tracker.sizes import Arithmetic, Attribute, Expression, evaluate, sources

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def layer_integers(model: nn.Module, labels: Mapping[Site, Labels]) -> Iterator[tuple[Expression, Labels]]:
    """For every such attribute an expression of it that counts the labels of a dimension of the layer's weights."""
    for name, module in model.named_modules():
        for expression, (tensor, dim) in _shown(name, module):
            found = labels.get(Site(f"{name}.{tensor}".lstrip("."), dim))
            if found is not None and _value(module, expression) == len(found):
                yield expression, found


def _shown(name: str, module: Any) -> Iterator[tuple[Expression, tuple[str, int]]]:
    def shows(attribute: str) -> Attribute:
        return Attribute(name, (attribute,))

    if isinstance(module, _CONVOLUTIONS):
        yield from _of_convolution(module, shows("in_channels"), shows("out_channels"))
    elif isinstance(module, nn.Linear):
        yield from ((shows("out_features"), ("weight", 0)), (shows("in_features"), ("weight", 1)))
    elif isinstance(module, _BATCH_NORMS + _INSTANCE_NORMS):
        yield shows("num_features"), ("weight" if module.affine else "running_mean", 0)
    elif isinstance(module, nn.GroupNorm):
        yield shows("num_channels"), ("weight", 0)
    elif isinstance(module, nn.PReLU):
        yield shows("num_parameters"), ("weight", 0)
    elif isinstance(module, nn.RNNBase):
        yield shows("input_size"), ("weight_ih_l0", 1)
    elif isinstance(module, nn.MultiheadAttention):
        yield shows("embed_dim"), ("out_proj.weight", 0)
    elif isinstance(module, nn.Embedding):
        yield shows("embedding_dim"), ("weight", 1)
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        yield from ((shows("nx"), ("weight", 0)), (shows("nf"), ("weight", 1)))


def _of_convolution(module: Any, reads: Attribute, writes: Attribute) -> Iterator[tuple[Expression, tuple[str, int]]]:
    """Grouped convolutions have one dimension a group: the attribute counts all groups."""
    transposed, groups = isinstance(module, _TRANSPOSED), int(module.groups)
    first, second = (reads, writes) if transposed else (writes, reads)
    yield first, ("weight", 0)
    if groups == 1:
        yield second, ("weight", 1)
    elif groups < module.in_channels:
        yield Arithmetic("floordiv", second, groups), ("weight", 1)
    else:  # depthwise: the rows tell how many channels there are
        multiplier = int(module.out_channels) // groups
        yield Arithmetic("floordiv" if transposed else "mul", second, multiplier), ("weight", 0)


def _value(module: nn.Module, expression: Expression) -> int | None:
    """The value of an expression in one attribute; None where a subclass keeps it in another way."""
    (attribute,) = sources(expression)
    value = vars(module).get(str(attribute.path[0])) if isinstance(attribute, Attribute) else None
    return evaluate(expression, lambda _: value) if isinstance(value, int) else None
