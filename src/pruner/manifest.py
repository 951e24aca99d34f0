"""What lies in `pruning.json`: everything about a pruned checkpoint but the numbers in its tensors.

It comes from outside, so that all of it is validated here; what it claims about the model it is loaded into is checked
there, in `pruner.checkpoint`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from os import PathLike
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pruner.origin import Origin
from pruner.staging import place_of
from tracker.errors import CheckpointError, StorageError
from tracker.files import read_json

MANIFEST = "pruning.json"
MAX_MANIFEST_BYTES = 256 * 2**20

Size = Annotated[int, Field(ge=0, le=2**40)]
Name = Annotated[str, Field(max_length=1024)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TensorEntry(_Part):
    """A parameter or buffer. `dtype` is as safetensors writes it ("F32", "BF16").

    `apart` is true for a buffer that a state_dict leaves out: it lies in a file of its own.
    """

    shape: Annotated[list[Size], Field(max_length=16)]
    dtype: Annotated[str, Field(max_length=16)]
    kind: Literal["parameter", "buffer"]
    trainable: bool
    apart: bool = False


class IntegerEntry(_Part):
    """An integer attribute of a module and its value; `path` leads to it through tuples, lists and dicts."""

    module: Name
    path: Annotated[list[Name | int], Field(min_length=1, max_length=8)]
    value: Size


class FileEntry(_Part):
    """A tensor file. Its name is not here: a manifest names no paths."""

    bytes: Annotated[int, Field(ge=8, le=2**50)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class LayerRecord(_Part):
    """A layer's size before one change, the neurons that went, and those that more were made of, twice for two."""

    neurons: Size
    removed: list[Size]
    copied: list[Size] = Field(default_factory=list)


class IntegerRecord(_Part):
    """An integer attribute that one pruning changed."""

    module: Name
    path: Annotated[list[Name | int], Field(min_length=1, max_length=8)]
    old: Size
    new: Size


class ProofRecord(_Part):
    """How far the sliced model was from the masked one, in the output that differed most against its tolerance."""

    output: Name
    error: float
    tolerance: float


class PruningRecord(_Part):
    """One pruning: structure fingerprints before (`fingerprint`) and after (`result`), and all that went.

    `parameters` is how many there were before and after; `proof` is None where none was made, and
    `repaired` names the tensors that were given new values before their neurons went.
    """

    fingerprint: Name
    result: Name
    parameters: Annotated[list[Size], Field(min_length=2, max_length=2)] | None = None
    proof: ProofRecord | None = None
    layers: dict[Name, LayerRecord]
    integers: list[IntegerRecord]
    repaired: list[Name] = Field(default_factory=list)
    provenance: dict[str, Any]


class Manifest(_Part):
    """A pruned checkpoint.

    `model` is the class; `origin` says how a known library builds the dense model, and `base` how its user called it,
    for whoever loads it to use or not; `tensors` are by their first name and `tied` gives every other name of one its
    first. `integers` and shapes are final values, whatever was pruned in how many steps. `kept` gives, for every layer
    that changed, the neurons that are there, by their numbers in the dense model. `history` has one record for each
    pruning. `plain` says whether transformers loads the checkpoint with nothing of ours.
    """

    format: Literal["neuronscope/pruned-model"] = "neuronscope/pruned-model"
    version: Literal[1] = 1
    model: Name
    base: Annotated[str, Field(max_length=4096)] | None
    origin: Origin | None = None
    plain: bool = False
    dense_fingerprint: Name
    fingerprint: Name
    tensor_file: FileEntry
    buffer_file: FileEntry | None = None
    tensors: dict[Name, TensorEntry]
    tied: dict[Name, Name]
    integers: list[IntegerEntry]
    kept: dict[Name, list[Size]]
    history: list[PruningRecord]
    provenance: dict[str, Any]


def read_manifest(directory: str | PathLike[str]) -> Manifest:
    """The manifest of the checkpoint in `directory`.

    Raises `StorageError` where there is none, `CheckpointError` where it is malformed or too large.
    """
    path = place_of(directory, MANIFEST)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise StorageError(
            f"There is no pruned model in {directory}: {MANIFEST} cannot be read.",
            hint="Name a directory that save_pruned wrote.",
        ) from error
    if size > MAX_MANIFEST_BYTES:
        raise CheckpointError(
            f"{path} has {size} bytes; a manifest has at most {MAX_MANIFEST_BYTES}.", hint="This is no such file."
        )
    data = read_json(path, what="the manifest of a pruned model", error=CheckpointError)
    try:
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        found = repr(first["input"])
        raise CheckpointError(
            f"{path}: {place[:100]}: {first['msg']}; found {found if len(found) <= 60 else found[:57] + '...'}.",
            hint="Save the model again, or get the checkpoint again from where it came.",
        ) from error
    integers = {(entry.module, *entry.path) for entry in manifest.integers}
    changed = {(entry.module, *entry.path) for record in manifest.history for entry in record.integers}
    if changed != integers or kept_neurons(manifest.history) != manifest.kept:
        raise CheckpointError(
            f"{path}: the history does not lead to the {'kept neurons' if changed == integers else 'integers'} listed.",
            hint="Save the model again, or get the checkpoint again from where it came.",
        )
    return manifest


def kept_neurons(history: Sequence[PruningRecord]) -> dict[str, list[int]]:
    """For every layer that changed in any of several steps, what is there, by its numbers before the first.

    A neuron that was added goes by the number of the one it was made of.
    """
    kept: dict[str, list[int]] = {}
    for record in history:
        for layer, entry in record.layers.items():
            gone, more = set(entry.removed), Counter(entry.copied)
            before = enumerate(kept.get(layer, range(entry.neurons)))
            kept[layer] = [n for index, n in before if index not in gone for _ in range(1 + more[index])]
    return kept


def growth(history: Sequence[PruningRecord]) -> float:
    """How many times as large as the dense model's a size may be at most: 1 where nothing was ever added."""
    factor = 1.0
    for record in history:
        factor *= max((1 + len(e.copied) / e.neurons for e in record.layers.values() if e.neurons), default=1.0)
    return factor
