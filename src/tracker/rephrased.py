"""Functions of PyTorch as others that say the same: what fills a tensor of a size of its own, and what takes long.

On fake tensors a recurrent layer runs two steps: every further one would say the same of its neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def _pad(x: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Padding; around a circle it is a concatenation."""
    if mode != "circular" or min(pad) < 0:
        return functional.pad(x, pad, mode, value)
    for back, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True), 1):
        size = x.shape[-back]
        ends = (x.narrow(-back, size - before, before), x, x.narrow(-back, 0, after)) if before or after else (x,)
        x = torch.cat(ends, -back)
    return x


def _pad_packed_sequence(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding: float, length: int
) -> tuple[Tensor, Tensor]:
    """Sequences of a batch, packed step by step, side by side again."""
    steps = data.split(batch_sizes.tolist())
    rows = steps[0].shape[0]
    beside = (0, 0) * (data.dim() - 1)
    filled = [functional.pad(step, (*beside, 0, rows - step.shape[0]), value=padding) for step in steps]
    filled += [torch.full_like(filled[0], padding) for _ in range(length - len(steps))]
    lengths = (batch_sizes[:, None] > torch.arange(rows)).sum(0)
    return torch.stack(filled, 0 if not batch_first else 1), lengths


def _recurrent(layer: Callable[..., Any]) -> Callable[..., Any]:
    """Two steps of a recurrent layer, and as many copies of what they answer as there are steps."""

    def shortened(x: Tensor, *args: Any) -> Any:
        packed = not isinstance(args[2], bool)  # their batch sizes say how many steps there are
        time = 1 if args[-1] else 0
        if packed or not isinstance(x, FakeTensor) or x.shape[time] <= _STEPS:
            return layer(x, *args)
        out, *states = layer(x.index_select(time, torch.arange(_STEPS, device=x.device)), *args)
        sizes = [-1, -1, -1]
        sizes[time] = x.shape[time]
        return out.narrow(time, 0, 1).expand(sizes).contiguous(), *states

    return shortened


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Attention to one head is attention to as many copies: so it runs as one operator, whatever the heads."""
    heads = query.shape[1] if query.dim() == 4 else 1
    if heads > 1:
        key, value = (t.expand(-1, heads, -1, -1) if t.dim() == 4 and t.shape[1] == 1 else t for t in (key, value))
    return functional.scaled_dot_product_attention(query, key, value, *args, **kwargs)


_STEPS = 2
_RECURRENT = (torch._VF.lstm, torch._VF.gru, torch._VF.rnn_tanh, torch._VF.rnn_relu)

REPHRASED: Mapping[Callable[..., Any], Callable[..., Any]] = {
    functional.pad: _pad,
    functional.scaled_dot_product_attention: _attention,
    **{layer: _recurrent(layer) for layer in _RECURRENT},
    torch._VF._pad_packed_sequence: _pad_packed_sequence,
}


class Rephrasing(TorchFunctionMode):
    """Runs these functions as the others."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return REPHRASED.get(func, func)(*args, **(kwargs or {}))
