"""The numbers that a forward computes with: those that change with a width change the function, and no shape tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tracker.places import running

_FILLED = frozenset("fill full full_like new_full scalar_tensor arange linspace logspace masked_fill".split())
_LARGEST_CONSTANT = 64
_DEVICE = torch.ops.prim.device.default


class Use(NamedTuple):
    """An operator that was given numbers, and where in the model's code."""

    operator: str
    numbers: tuple[float, ...]
    where: str


class Numbers(TorchDispatchMode):
    """Records the numbers in the arguments of all operators, in order."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uses: list[Use] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not _DEVICE:  # the half of all calls
            self.uses.extend(use_of(func, args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def use_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Use, ...]:
    """The use of numbers that one operator makes, if any."""
    numbers = _numbers(func, (*args, *kwargs.values()))
    return (Use(str(func), tuple(numbers), running()),) if numbers else ()


def changed(before: Sequence[Use], after: Sequence[Use]) -> str | None:
    """What differs first between the numbers of two forwards, or None."""
    for old, new in zip(before, after, strict=False):
        if old.operator != new.operator:
            return f"the code runs `{new.operator}` instead of `{old.operator}` at {new.where} without some of them"
        if repr(old.numbers) != repr(new.numbers):
            change = f"{_listed(new.numbers)} instead of {_listed(old.numbers)}"
            return f"a number follows its size at {new.where}: `{old.operator}` gets {change}"
    if len(before) != len(after):
        return f"the code computes something else without some of them, after {(before or after)[-1].where}"
    return None


def _numbers(func: Any, arguments: Sequence[Any]) -> list[float]:
    """Every float, and integers where they are values and not sizes, axes or flags."""
    lifts, takes_values = _reading(func)
    if lifts:
        small = (x for x in arguments if isinstance(x, Tensor) and not isinstance(x, FakeTensor))
        return [value for x in small if x.numel() <= _LARGEST_CONSTANT for value in x.flatten().tolist()]
    found: list[float] = []
    for argument in arguments:
        if isinstance(argument, float):
            found.append(argument)
        elif isinstance(argument, int):
            if takes_values and not isinstance(argument, bool):
                found.append(argument)
        elif isinstance(argument, list | tuple | dict):
            found.extend(leaf for leaf in tree_leaves(argument) if isinstance(leaf, float))
    return found


@cache
def _reading(func: Any) -> tuple[bool, bool]:
    """Whether an operator takes a constant in, and whether the integers it is given are values."""
    name = str(func.name()).partition("::")[2].partition(".")[0].removesuffix("_")
    return name.startswith("lift_fresh"), name in _FILLED or torch.Tag.pointwise in getattr(func, "tags", ())


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.6g}" for number in numbers[:4])
