"""A dense model becomes the pruned one of a checkpoint: its tensors and integers are replaced, each after a check.

Everything in a checkpoint may come from a stranger. No shape and no integer may exceed the dense model's, or what its
history says was added (a file has to hold all those numbers, too), and only attributes that hold an integer already are
written.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pruner.lineage import HISTORY
from pruner.manifest import IntegerEntry, Manifest, growth
from pruner.skeleton import MODULE_INTERNALS, named_tensors, plain_tensors
from pruner.tensor_file import DTYPES, check_same_names
from tracker.code_sites import Site
from tracker.errors import CheckpointError, PlanError
from tracker.rewriting import CODE_SIZES
from tracker.sizes import write_path


def check_sizes(built: nn.Module, manifest: Manifest, path: Path) -> None:
    """Raise `CheckpointError` unless the manifest in `path` fits the dense model `built`, which is not changed."""
    if type(built).__qualname__ != manifest.model:
        raise CheckpointError(
            f"{path}: expected a {manifest.model}, found a {type(built).__qualname__}.",
            hint="Pass the model that was pruned.",
        )
    _check_tensors(path, manifest, built)


def assemble(built: nn.Module, manifest: Manifest, tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    """Give `built`, which passed `check_sizes`, the checkpoint's integers, tensors and history, in place.

    Raises `CheckpointError` where an integer is out of place, or a tensor of the model is left without values.
    """
    for entry in manifest.integers:
        _set_integer(path, built, entry, growth(manifest.history))
    _fill(built, manifest, tensors)
    _check_nothing_missing(path, built)
    vars(built)[HISTORY] = tuple(record.model_dump_json() for record in manifest.history)
    return built.eval()


def _check_tensors(path: Path, manifest: Manifest, built: nn.Module) -> None:
    """Every tensor of the model is in the manifest and the other way round, of its kind and no larger."""
    own = dict(named_tensors(built))
    most = growth(manifest.history)
    for alias, first in manifest.tied.items():
        if first not in manifest.tensors or alias in manifest.tensors:
            raise CheckpointError(f"{path}: '{alias}' is tied to '{first}', which is no tensor of its own.")
    check_same_names(path, set(own), {*manifest.tensors, *manifest.tied}, f"the {manifest.model}", "the manifest")
    for name, tensor in own.items():
        entry = manifest.tensors[manifest.tied.get(name, name)]
        same_kind = kind_of(tensor) == entry.kind and _family(DTYPES[entry.dtype]) == _family(tensor.dtype)
        fits = len(entry.shape) == tensor.dim() and all(
            new <= old * most for new, old in zip(entry.shape, tensor.shape, strict=True)
        )
        if not same_kind or not fits:
            raise CheckpointError(
                f"{path}: '{name}': expected a {kind_of(tensor)} of {tensor.dtype} within {tuple(tensor.shape)}, "
                f"found a {entry.kind} of {entry.dtype} and {tuple(entry.shape)}.",
                hint="The checkpoint is not of this model.",
            )


def kind_of(tensor: Tensor) -> Literal["parameter", "buffer"]:
    return "parameter" if isinstance(tensor, nn.Parameter) else "buffer"


def _family(dtype: torch.dtype) -> str:
    """Floating-point types may stand for each other, all others only for themselves."""
    return "floating" if dtype.is_floating_point else str(dtype)


def _set_integer(path: Path, built: nn.Module, entry: IntegerEntry, most: float) -> None:
    """Only an integer that is there already, in a module's own attributes, and at most `most` times as large a one."""
    where = ".".join([entry.module, *map(str, entry.path)]).lstrip(".")[:100]
    value = _own_value(built, entry)
    if type(value) is not int:
        raise CheckpointError(
            f"{path}: '{where}' is no integer attribute of {type(built).__name__}; "
            f"expected an integer, found {type(value).__name__}.",
            hint="The checkpoint is not of this model.",
        )
    if entry.value > value * most:
        raise CheckpointError(
            f"{path}: '{where}': expected at most {int(value * most)}, found {entry.value}.",
            hint="The checkpoint is not of this model.",
        )
    try:
        write_path(built.get_submodule(entry.module), tuple(entry.path), entry.value)
    except PlanError as error:
        raise CheckpointError(f"{path}: '{where}': {error.what}", hint=error.hint) from error


def _own_value(built: nn.Module, entry: IntegerEntry) -> Any:
    """What lies at the entry's path; None where the path leaves the module's own tuples, lists and dicts.

    A size in the module's code, whose name says what it comes to, is at most the largest dimension of any tensor.
    """
    module = dict(built.named_modules()).get(entry.module)
    if module is None or entry.path[0] in MODULE_INTERNALS:
        return None
    if entry.path[0] == CODE_SIZES:
        site = Site.parse(str(entry.path[-1])) if len(entry.path) == 2 else None
        largest = max((size for _, tensor in named_tensors(built) for size in tensor.shape), default=0)
        return site.value if site is not None and site.value <= largest else None
    value: Any = vars(module)
    for step in entry.path:
        inside = (
            step in value if isinstance(value, dict) else type(value) in (tuple, list) and step in range(len(value))
        )
        if not inside:
            return None
        value = value[step]
    return value


def _fill(built: nn.Module, manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
    """Give the model its tensors. Names that are tied in the checkpoint get one object, all others their own.

    Where possible the model's own tensor objects take the values, so that whatever else refers to them stays right;
    where something holds them weakly (an LSTM does) they are replaced.
    """
    own = dict(named_tensors(built))
    used: set[int] = set()
    names: dict[str, list[str]] = {first: [first] for first in manifest.tensors}
    for alias, first in manifest.tied.items():
        names[first].append(alias)
    for first, entry in manifest.tensors.items():
        value = tensors[first]
        filled = nn.Parameter(value, entry.trainable) if entry.kind == "parameter" else value
        if id(own[first]) not in used:
            with suppress(RuntimeError):
                torch.utils.swap_tensors(own[first], filled)
                filled = own[first]
        used.add(id(filled))
        for name in names[first]:
            owner, _, leaf = name.rpartition(".")
            setattr(built.get_submodule(owner), leaf, filled)


def _check_nothing_missing(path: Path, built: nn.Module) -> None:
    for name, tensor in chain(named_tensors(built), plain_tensors(built)):
        if tensor.is_meta:
            raise CheckpointError(
                f"{path.parent}: '{name}' of {type(built).__name__} has no values, and no checkpoint holds them: it is "
                "a tensor that the model keeps to itself.",
                hint="Pass a callable that builds the model with its values, or make it a buffer.",
            )
