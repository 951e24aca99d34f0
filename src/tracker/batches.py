"""From whatever a data loader yields to a call of the model, and running the model without leaving a trace.

Batches may be tensors, tuples or lists (inputs, then the target), or mappings of keyword arguments, such as the
`BatchEncoding` of a tokenizer.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from tracker.admission import unwrapped
from tracker.compiled import as_written
from tracker.errors import DataError, nearest

LABELS = ("labels", "label", "targets", "target")
_KINDS = "a tensor, a tuple (inputs, target), or a mapping of keyword arguments"


@dataclass(frozen=True)
class Batch:
    """One call of the model, on its device and in its floating dtype.

    `mask` has shape (batch, tokens), True for real tokens; None where the batch has no padding to tell. A `whole` one
    is a single sample, whatever its rows are: a graph, say.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    target: Tensor | None = None
    mask: Tensor | None = None
    whole: bool = False


def iter_batches(data_loader: Iterable[Any], model: nn.Module) -> Iterator[Batch]:
    """Every batch of the loader, ready for the model.

    A generator of random numbers that the loader owns is afterwards where it was before.

    Raises `DataError`: the loader is empty, or a batch, named by its index, holds NaN or Inf or is of an unknown type.
    """
    if isinstance(data_loader, Tensor | str | bytes | Mapping) or not isinstance(data_loader, Iterable):
        raise DataError(
            f"The data loader is of type {type(data_loader).__name__}, which is not a series of batches.",
            hint="Give a DataLoader or a list of batches.",
        )
    index = -1
    with _generators_kept(data_loader):
        for index, raw in enumerate(data_loader):
            try:
                batch = as_batch(raw, model)
            except DataError as error:
                raise DataError(f"Batch {index}: {error.what}", hint=error.hint) from error
            yield batch
    if index < 0:
        raise DataError(
            "The data loader is empty.",
            hint="Give at least one batch. A generator that was read once before has nothing left: give a list.",
        )


def as_batch(batch: Any, model: nn.Module) -> Batch:
    """The call of `model` that `batch` stands for, as the forward's signature reads it.

    - a tensor is the only input;
    - a tuple or list holds the inputs and then the target; where the forward requires as many inputs as there are
      items, all are inputs;
    - a mapping holds keyword arguments. Labels that the forward does not take are the target only. Where the forward's
      one required argument is not among the keys, the mapping itself is that argument.

    Raises `DataError`: NaN or Inf in a tensor, a key the forward does not take, or a batch of an unknown type.
    """
    takes = _Signature.of(model)
    target: Any = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(batch, Tensor):
        args = (batch,)
    elif isinstance(batch, Mapping):
        args, kwargs, target = _from_mapping(batch, takes)
    elif isinstance(batch, Sequence) and batch and not isinstance(batch, str | bytes):
        items = list(batch)
        unknown = next((item for item in items if not isinstance(item, Tensor | Mapping | int | float | None)), None)
        if not isinstance(items[0], Tensor | Mapping) or unknown is not None:
            kind = type(items[0] if unknown is None else unknown).__name__
            raise DataError(f"It is a {type(batch).__name__} with a {kind} in it.", hint=f"Make every batch {_KINDS}.")
        if isinstance(items[0], Mapping):
            args, kwargs, target = _from_mapping(items[0], takes)
            target = items[1] if len(items) > 1 else target
        else:
            inputs = len(items) if takes.required >= len(items) else max(1, min(len(items) - 1, takes.positional))
            args = tuple(items[:inputs])
            target = items[inputs] if inputs < len(items) else None
    else:
        raise DataError(f"It is of type {type(batch).__name__}.", hint=f"Make every batch {_KINDS}.")

    named = {**{f"input {index}": value for index, value in enumerate(args)}, **kwargs}
    for name, value in named.items():
        _finite(name, value)
    mask = padding_mask(args, kwargs)
    device, dtype = _home(model)

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    return Batch(
        args=tree_map_only(Tensor, move, args),
        kwargs=tree_map_only(Tensor, move, kwargs),
        target=target.to(device) if isinstance(target, Tensor) else None,
        mask=None if mask is None else mask.to(device),
    )


def padding_mask(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The real tokens, shape (batch, tokens), from "attention_mask"; a mask of another shape does not tell them."""
    source = args[0] if args and isinstance(args[0], Mapping) else kwargs
    mask = source.get("attention_mask")
    return mask != 0 if isinstance(mask, Tensor) and mask.ndim == 2 else None


def forward(model: nn.Module, batch: Batch) -> Any:
    """The model's output for one batch."""
    return model(*batch.args, **batch.kwargs)


def repeated(model: nn.Module, batch: Batch, seed: int = 0) -> Any:
    """The same, with the same random numbers each time, so that two models can be compared which draw some.

    To be called under `evaluating`, which brings back the random numbers of before.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    return forward(model, batch)


def logits(output: Any) -> Tensor:
    """The tensor that a model's output is about: itself, `.logits`, `.last_hidden_state`, or the first tensor in it."""
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "last_hidden_state"):
        value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    for value in values:
        if isinstance(value, Tensor):
            return value
    raise DataError(
        f"The model's output is of type {type(output).__name__}, and no tensor was found in it.",
        hint="Wrap the model so that it returns a tensor.",
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, uncompiled, without gradients; afterwards every mode and all random numbers are as before."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    cuda = [device for device in devices if device.type == "cuda"]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=cuda), torch.no_grad(), as_written():
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        random.setstate(python)
        np.random.set_state(numpy)


def accuracy(model: nn.Module, data_loader: Iterable[Any]) -> float | None:
    """Share of right answers of a classifier, from 0 to 1; None where the batches hold no class indices.

    The last dimension of the output holds the classes, and the target has the shape of the others. Targets below zero
    (-100, as for tokens without a label) do not count. Of a language model the right answer at a token is the next one.
    """
    right = seen = 0
    with evaluating(model):
        for batch in iter_batches(data_loader, model):
            target = batch.target
            if target is None or target.is_floating_point():
                return None
            output = logits(forward(model, batch))
            if output.shape[:-1] != target.shape:
                return None
            if predicts_next(model) and target.dim() == 2:
                output, target = output[:, :-1], target[:, 1:]
            counted = target >= 0
            right += int(((output.argmax(-1) == target) & counted).sum())
            seen += int(counted.sum())
    return right / seen if seen else None


def predicts_next(model: nn.Module) -> bool:
    """Whether a model says at every token what comes next, by the names that transformers gives such models."""
    return type(unwrapped(model)).__name__.endswith(("ForCausalLM", "LMHeadModel"))


@dataclass(frozen=True)
class _Signature:
    """What a forward takes: names that may be keywords, and how many positional inputs it takes and requires.

    `may_be_mapping`: its one required argument is not said to be a tensor.
    """

    names: tuple[str, ...]
    needed: tuple[str, ...]
    positional: int
    required: int
    any_keyword: bool
    may_be_mapping: bool

    @classmethod
    def of(cls, model: nn.Module) -> _Signature:
        parameters = list(inspect.signature(model.forward).parameters.values())
        plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        any_position = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        needed = [p for p in plain if p.default is p.empty]
        return cls(
            names=tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)),
            needed=tuple(p.name for p in needed),
            positional=1_000 if any_position else len(plain),
            required=len(needed),
            any_keyword=any(p.kind is p.VAR_KEYWORD for p in parameters),
            may_be_mapping=len(needed) == 1 and needed[0].annotation not in (Tensor, "Tensor", "torch.Tensor"),
        )


def _from_mapping(batch: Mapping[Any, Any], takes: _Signature) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    target = next((batch[name] for name in LABELS if name in batch), None)
    missing = [name for name in takes.needed if name not in batch]
    if missing and takes.may_be_mapping and not set(takes.names) & set(batch):
        return (dict(batch),), {}, target
    kwargs = {key: value for key, value in batch.items() if key not in LABELS or key in takes.names}
    unknown = [key for key in kwargs if not isinstance(key, str) or (key not in takes.names and not takes.any_keyword)]
    if unknown:
        raise DataError(
            f"The model's forward does not take the key {unknown[0]!r}.{nearest(str(unknown[0]), takes.names)}",
            hint=f"Leave it out of the batch. The forward takes: {', '.join(takes.names)}.",
        )
    return (), kwargs, target


def _finite(name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _finite(str(key), item)
    elif isinstance(value, Tensor) and value.is_floating_point() and not value.is_meta:
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            raise DataError(
                f"{name} holds {bad} values that are NaN or Inf, of {value.numel()}.",
                hint="Clean the data, or leave this batch out.",
            )


def _home(model: nn.Module) -> tuple[torch.device, torch.dtype | None]:
    """Where the model's inputs belong, and the dtype of its floating-point inputs."""
    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    if device.type == "meta":
        raise DataError(
            "The model is on the meta device: it has shapes but no weights, so no data can run through it.",
            hint="Load its weights first, for example with model.to_empty(device='cpu') and load_state_dict.",
        )
    return device, next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)


@contextmanager
def _generators_kept(data_loader: Any) -> Iterator[None]:
    owners = (data_loader, getattr(data_loader, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    states = [(generator, generator.get_state()) for generator in found if isinstance(generator, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
