"""What is trained along with a model and shrinks with it: optimizers, their fp32 masters, and averages of the weights.

An optimizer keeps state value by value (momentum, moments), or summed over one dimension (Adafactor's rows and
columns). An average (`torch.optim.swa_utils.AveragedModel`, `ema_pytorch.EMA`) holds a second model of the same names
and shapes. A master is a copy in higher precision that an optimizer steps instead of the model's own parameter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from pruner.repair import tensors_of
from tracker.errors import PlanError

Companions = Optimizer | nn.Module | Sequence[Optimizer | nn.Module]
"""One of them, or several."""


class Follower(NamedTuple):
    """A tensor that changes its size with another one: for each of its dimensions that do, the dimension of the other.

    `degree` is None where it holds what the other does (weights), else by which power of the gradient it grows.
    """

    tensor: Tensor
    dims: Mapping[int, int]
    degree: int | None


@dataclass(frozen=True)
class Along:
    """The companions of a model. `averages` are the models inside of averages, `twins` the tensors of each by name;
    `masters` are by the id of the parameter that they are a copy of.
    """

    optimizers: tuple[Optimizer, ...] = ()
    averages: tuple[nn.Module, ...] = ()
    twins: tuple[Mapping[str, Tensor], ...] = ()
    masters: Mapping[int, tuple[Tensor, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, given: Companions | None) -> Along:
        """Look at what is given; raises `PlanError` for what has nothing to do with the model."""
        if given is None:
            return cls()
        several = list(given) if isinstance(given, Sequence) else [given]
        optimizers = [one for one in several if isinstance(one, Optimizer)]
        masters: dict[int, tuple[Tensor, ...]] = {}
        averages: list[nn.Module] = []
        for one in several:
            if isinstance(one, Optimizer):
                for parameter, master in _masters(model, one):
                    masters[id(parameter)] = (*masters.get(id(parameter), ()), master)
            elif isinstance(one, nn.Module):
                averages += _averages(model, one)
            else:
                raise PlanError(
                    f"optimizer = {type(one).__name__} is neither an optimizer nor an average of the weights.",
                    hint="Give a torch.optim.Optimizer, an AveragedModel or EMA, or a list of such.",
                )
        return cls(tuple(optimizers), tuple(averages), tuple(map(tensors_of, averages)), masters)

    def followers(self, names: Sequence[str], tensor: Tensor, own: set[int]) -> Iterator[Follower]:
        """All that follows a parameter or buffer of the model, which has these names; `own` are the ids of the others.

        Raises `PlanError` for state of which it is not known how to slice it.
        """
        same = {dim: dim for dim in range(tensor.dim())}
        masters = self.masters.get(id(tensor), ())
        twins = [named[names[0]] for named in self.twins if names[0] in named]
        for one in (tensor, *masters, *twins):
            if one is not tensor:
                yield Follower(one, same, None)
            if one.grad is not None:
                yield Follower(one.grad, same, 1)
        for key, value in vars(tensor).items():  # as some trainers hang masters and gradients on parameters
            if isinstance(value, Tensor) and value.shape == tensor.shape and id(value) not in own:
                yield Follower(value, same, 1 if "grad" in key else None)
        for optimizer in self.optimizers:
            for stepped in (tensor, *masters):
                kept = {str(key): value for key, value in optimizer.state.get(stepped, {}).items()}
                for key, value in kept.items():
                    for state in tree_leaves(value):
                        if isinstance(state, Tensor) and state.numel() != 1:
                            dims = _dims(optimizer, names[0], tensor, key, state)
                            yield Follower(state, dims, _degree(str(key), kept))


def _degree(key: str, keys: Collection[str]) -> int | None:
    """See `Follower`; by what PyTorch's and other common optimizers call their state."""
    squares = ("sq", "sum", "row", "col", "var")
    if any(part in key for part in squares):
        return 2
    if key == "ax" or "master" in key:
        return None
    # What was divided by the root of the squares before it was kept does not grow.
    normalised = key == "momentum_buffer" and any(part in other for other in keys for part in squares)
    return 0 if normalised or key in ("acc_delta", "step_size") else 1


def _dims(optimizer: Optimizer, name: str, tensor: Tensor, key: str, state: Tensor) -> dict[int, int]:
    """Which dimension of the parameter each dimension of its state is; those of size 1 were summed over."""
    shape = tuple(tensor.shape)
    pairs = list(enumerate(range(tensor.dim())))
    if state.dim() == tensor.dim() - 1 and "row" in key:
        pairs = [(dim, dim) for dim in range(state.dim())]
    elif state.dim() == tensor.dim() - 1 and "col" in key:
        pairs = [(dim, dim if dim < state.dim() - 1 else dim + 1) for dim in range(state.dim())]
    fits = len(pairs) == state.dim() and all(state.shape[own] in (1, shape[other]) for own, other in pairs)
    if not fits:
        raise PlanError(
            f"{type(optimizer).__name__} keeps '{key}' of shape {tuple(state.shape)} for '{name}' of shape "
            f"{shape}; it is not known how to slice that.",
            hint="Prune without `optimizer` and make a new optimizer afterwards.",
        )
    return {own: other for own, other in pairs if state.shape[own] == shape[other]}


def _masters(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[Tensor, Tensor]]:
    """Parameters with what an optimizer steps in their place; none where it steps the model's own."""
    own = {id(parameter) for parameter in model.parameters()}
    stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    known = [parameter for parameter in stepped if id(parameter) in own]
    if stepped and len(known) == len(stepped):
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if len(trained) == len(stepped) and all(map(_stands_for, stepped, trained)):
        yield from ((p, master) for p, master in zip(trained, stepped, strict=True) if master is not p)
    elif not known:
        raise PlanError(
            f"The {type(optimizer).__name__} holds none of this model's parameters, nor a copy of each in order and in "
            "higher precision.",
            hint="Pass the optimizer that trains this model, or none.",
        )


def _stands_for(master: Tensor, parameter: Tensor) -> bool:
    if master is parameter:
        return True
    wider = master.shape == parameter.shape and master.itemsize > parameter.itemsize
    return wider and torch.equal(master.detach().to(parameter), parameter.detach())


def _averages(model: nn.Module, given: nn.Module) -> list[nn.Module]:
    """The models in `given` that have the names and shapes of `model`, outermost first, `model` itself aside."""
    shapes = {name: x.shape for name, x in tensors_of(model).items()}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found: list[nn.Module] = []
    inside: set[int] = set()
    for module in given.modules():
        if module is model or id(module) in inside:
            continue
        named = tensors_of(module)
        if parameters <= named.keys() and all(named[n].shape == shapes[n] for n in shapes.keys() & named.keys()):
            found.append(module)
            inside |= set(map(id, module.modules()))
    if not found:
        raise PlanError(
            f"{type(given).__name__} holds no model of the names and shapes of this {type(model).__name__}.",
            hint="Give the average of this model's weights, made from the model as it is now.",
        )
    return found
