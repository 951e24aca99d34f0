"""Pruned models on disk: `model.safetensors` and `pruning.json`, written whole, read with distrust, never unpickled.

A checkpoint is loaded by building the original class and giving it the tensors and integers in the files. No shape and
no integer may exceed the dense model's, or what the history says was added, and no tensor what the file really holds:
so a file cannot make the loader allocate more than the dense model or the file itself takes. `model.safetensors` holds
what a state_dict holds, each tensor once. The buffers that a state_dict leaves out lie in `buffers.safetensors`: a
model built on the meta device has no values for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pruner.assembly import assemble, check_sizes, kind_of
from pruner.likeness import difference_between
from pruner.lineage import pruning_history
from pruner.manifest import (
    MANIFEST,
    FileEntry,
    IntegerEntry,
    Manifest,
    PruningRecord,
    TensorEntry,
    kept_neurons,
    read_manifest,
)
from pruner.model_card import CARD, may_be_written, model_card
from pruner.origin import Origin, origins
from pruner.pretrained import CONFIG, is_pretrained, write_pretrained
from pruner.skeleton import built_by, named_tensors, skeleton, stored_names
from pruner.staging import place_of, replacing
from pruner.tensor_file import DTYPE_NAMES, check_header, read_tensors, sha256
from tracker.admission import unwrapped
from tracker.errors import CheckpointError, StorageError
from tracker.files import atomic_path, write_json, write_text
from tracker.fingerprint import structure_fingerprint
from tracker.sizes import read_path

TENSORS = "model.safetensors"
BUFFERS = "buffers.safetensors"


@dataclass(frozen=True)
class Saved:
    """What `save_pruned` wrote.

    `plain` says whether transformers' `from_pretrained` loads the directory with nothing of this project, which was
    tried; `why_not` says what is in the way where it does not.
    """

    directory: Path
    plain: bool
    why_not: str


def save_pruned(
    model: nn.Module,
    directory: str | PathLike[str],
    *,
    base: str | None = None,
    tokenizer: Any = None,
    provenance: Mapping[str, Any] | None = None,
) -> Saved:
    """Write `model` to `directory` as `model.safetensors` and `pruning.json`, from which `load_pruned` makes it again.

    A process killed at any point leaves the checkpoint that was there before, or the new one. What was removed, in how
    many steps, comes from the model's own record (`pruner.lineage.pruning_history`).

    A model of transformers gets its configuration, generation configuration, tokenizer and model card as well. Where
    some configuration of its class has these very widths, `from_pretrained(directory)` loads it with nothing of ours;
    that is tried, with the model's example inputs, before it is believed. Elsewhere `from_pretrained` refuses and says
    how to load it. The trial holds the pruned model in memory once more.

    Args:
        model: the pruned model (one that was not pruned is saved as well).
        directory: made if needed.
        base: how to build the dense model: "module:callable", "timm:NAME", a transformers name …
        tokenizer: a tokenizer or processor of transformers to be saved along. By default the dense model's own is
            copied where it is at hand: in the directory it was loaded from, or in the local cache of the hub.
        provenance: anything worth knowing, as JSON-ready data.

    Raises:
        StorageError: the directory cannot be written, or holds a model of transformers that this one is not.
        CheckpointError: a tensor has no values or a type that safetensors lacks.
    """
    model = unwrapped(model)
    folder = Path(directory)
    extra = _plain_json(provenance or {})
    entries, tied, tensors = _collect(model)
    history = [PruningRecord.model_validate(record) for record in pruning_history(model)]
    now = structure_fingerprint(model)
    dense = history[0].fingerprint if history else now
    integers = _integers(model, history)
    pretrained = is_pretrained(model)
    if not pretrained and (folder / CONFIG).exists():
        raise StorageError(
            f"{folder} holds a {CONFIG}, and {type(model).__name__} is no model of transformers.",
            hint="Choose another directory: from_pretrained would mix the two.",
        )
    with replacing(folder, last=MANIFEST) as new:
        stored = _write(new / TENSORS, {name: tensors[name] for name, entry in entries.items() if not entry.apart})
        apart = {name: tensors[name] for name, entry in entries.items() if entry.apart}
        beside = _write(new / BUFFERS, apart) if apart else None
        manifest = Manifest(
            model=type(model).__qualname__,
            base=base,
            dense_fingerprint=dense,
            fingerprint=now,
            tensor_file=stored,
            buffer_file=beside,
            tensors=entries,
            tied=tied,
            integers=integers,
            kept=kept_neurons(history),
            history=history,
            provenance=extra,
        )
        origin = _origin(model, manifest, tensors)
        manifest = manifest.model_copy(update={"origin": origin})
        why_not = f"{type(model).__name__} is no model of transformers"
        if pretrained:
            why_not = write_pretrained(new, model, origin, integers, tokenizer, base)
            manifest = manifest.model_copy(update={"plain": not why_not})
            if may_be_written(folder / CARD):
                write_text(new / CARD, model_card(manifest, why_not))
        write_json(new / MANIFEST, manifest.model_dump())
    return Saved(folder, not why_not, why_not)


def load_pruned(
    directory: str | PathLike[str],
    model: nn.Module | Callable[[], nn.Module] | None = None,
    *,
    resolve: Callable[[str], nn.Module] | None = None,
) -> nn.Module:
    """The pruned model in `directory`, on the CPU, in its own dtypes, in evaluation mode.

    Args:
        directory: written by `save_pruned`.
        model: the dense model, with or without weights; it is only looked at, not changed. Or a callable that builds
            it, which is called on the meta device where that works. A checkpoint of a model of transformers, timm or
            torchvision mostly knows how to build it, and needs none.
        resolve: without both, turns the checkpoint's `base` into the dense model. Nothing that a file names is
            imported or called otherwise.

    Raises:
        StorageError: there is no checkpoint, or it cannot be read.
        MissingExtraError: the library that the model comes from is not installed.
        CheckpointError: the files are damaged, contradict each other, or do not fit the model; names the file, the
            tensor or attribute, what was expected and what was found.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    files = list(_tensor_files(folder, manifest))
    for path, _, entries in files:
        check_header(path, entries)
    built = _build(folder, manifest, model, resolve)
    check_sizes(built, manifest, folder / MANIFEST)
    tensors: dict[str, Tensor] = {}
    for path, file, entries in files:
        tensors |= read_tensors(path, file, entries)
    return assemble(built, manifest, tensors, folder / MANIFEST)


def _collect(model: nn.Module) -> tuple[dict[str, TensorEntry], dict[str, str], dict[str, Tensor]]:
    """Every tensor once by its first name, the other names of tied ones, and the values ready to be written."""
    first: dict[int, str] = {}
    entries: dict[str, TensorEntry] = {}
    tied: dict[str, str] = {}
    values: dict[str, Tensor] = {}
    storages: set[int] = set()
    stored = stored_names(model)
    for name, tensor in named_tensors(model):
        if id(tensor) in first:
            tied[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        if tensor.is_meta:
            raise CheckpointError(f"'{name}' is on the meta device and has no values.", hint="Load the weights first.")
        if tensor.dtype not in DTYPE_NAMES or tensor.layout != torch.strided:
            raise CheckpointError(
                f"'{name}' is {tensor.dtype} in layout {tensor.layout}, which safetensors cannot hold.",
                hint=f"Convert it to one of {', '.join(str(dtype) for dtype in DTYPE_NAMES)}.",
            )
        entries[name] = TensorEntry(
            shape=list(tensor.shape),
            dtype=DTYPE_NAMES[tensor.dtype],
            kind=kind_of(tensor),
            trainable=tensor.requires_grad,
            apart=name not in stored,
        )
        value = tensor.detach().contiguous()
        storage = value.untyped_storage()
        alone = storage.data_ptr() not in storages and storage.nbytes() == value.numel() * value.element_size()
        storages.add(storage.data_ptr())
        values[name] = value if alone else value.clone()
    return entries, tied, values


def _integers(model: nn.Module, history: Sequence[PruningRecord]) -> list[IntegerEntry]:
    """Every integer that any pruning changed, with its value now."""
    paths = {(change.module, tuple(change.path)) for record in history for change in record.integers}
    return [
        IntegerEntry(module=name, path=list(path), value=int(read_path(model.get_submodule(name), path)))
        for name, path in sorted(paths, key=str)
    ]


def _origin(model: nn.Module, manifest: Manifest, tensors: Mapping[str, Tensor]) -> Origin | None:
    """The origin from which, with these tensors, the very model is made: same modules, same outputs."""
    for origin, built in origins(model, manifest.base, manifest.dense_fingerprint):
        with suppress(CheckpointError):
            check_sizes(built, manifest, Path(MANIFEST))
            views = {name: tensor.detach() for name, tensor in tensors.items()}
            other = assemble(built, manifest, views, Path(MANIFEST))
            if repr(other) == repr(model) and not difference_between(model, other):
                return origin
    return None


def _write(path: Path, tensors: Mapping[str, Tensor]) -> FileEntry:
    with atomic_path(path) as temporary:
        save_file(dict(tensors), temporary, metadata={"format": "pt"})
        return FileEntry(bytes=temporary.stat().st_size, sha256=sha256(temporary))


def _plain_json(provenance: Mapping[str, Any]) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(provenance), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"The provenance cannot be written as JSON: {error}.", hint="Use strings, numbers, lists and dicts."
        ) from error
    return plain


def _tensor_files(folder: Path, manifest: Manifest) -> Iterator[tuple[Path, FileEntry, dict[str, TensorEntry]]]:
    """Each file of tensors, with what the manifest says of it and of the tensors in it."""
    for name, file in ((TENSORS, manifest.tensor_file), (BUFFERS, manifest.buffer_file)):
        entries = {key: entry for key, entry in manifest.tensors.items() if entry.apart == (name == BUFFERS)}
        if file is None and entries:
            raise CheckpointError(
                f"{folder / MANIFEST}: '{next(iter(entries))[:100]}' is to lie in {name}, of which nothing is said.",
                hint="Get the checkpoint again.",
            )
        if file is not None:
            yield _checked_file(folder, name, file), file, entries


def _checked_file(folder: Path, name: str, file: FileEntry) -> Path:
    path = place_of(folder, name)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(
            f"{folder} has a {MANIFEST} but no readable {name}.", hint="Get the checkpoint again, all its files."
        ) from error
    if size != file.bytes:
        raise CheckpointError(f"{path}: expected {file.bytes} bytes, found {size}.", hint="Get the checkpoint again.")
    return path


def _build(
    folder: Path,
    manifest: Manifest,
    model: nn.Module | Callable[[], nn.Module] | None,
    resolve: Callable[[str], nn.Module] | None,
) -> nn.Module:
    """The dense model to be filled: ours alone, its weights of no interest."""
    if isinstance(model, nn.Module):
        built = skeleton(unwrapped(model))
    elif model is not None:
        built = built_by(model)
    elif manifest.origin is not None:
        built = unwrapped(manifest.origin.build())
    elif resolve is None or manifest.base is None:
        missing = "the checkpoint does not say how to build it" if manifest.base is None else "no `resolve` was given"
        raise CheckpointError(
            f"{folder} holds the weights of a {manifest.model}, and {missing}.",
            hint="Pass the dense model, or a callable that builds it: load_pruned(directory, model=...).",
        )
    else:
        base, build = manifest.base, resolve
        built = built_by(lambda: build(base))
    return built
