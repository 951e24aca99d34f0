"""What to do about the neurons, from what they did: a versioned file between the tracker and the pruner.

`prune` names neurons that do little, each with the evidence; `merge` pairs that say the same; `expand` layers that are
at their limits. The layers' own activity is in the file too, so that a strategy can weigh every neuron.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tracker.errors import RecommendationError, nearest
from tracker.files import read_json, write_json

FORMAT_VERSION = 1
Index = Annotated[int, Field(ge=0)]
Reason = Literal["dead", "constant", "inactive", "redundant"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LayerActivity(_Entry):
    """One value for every neuron of a layer; see `tracker.activity.GroupActivity`."""

    firing_frequency: tuple[float, ...]
    mean_magnitude: tuple[float, ...]
    variance: tuple[float, ...]


class Layer(_Entry):
    """A layer that was looked at; `activity` is None where it was not tracked."""

    size: int = Field(ge=1)
    kind: str = "other"
    exact: bool = True
    activity: LayerActivity | None = None


class Prune(_Entry):
    """A neuron that can go, why, and the numbers that say so."""

    layer: str
    neuron: Index
    reason: Reason
    evidence: dict[str, float] = {}


class Merge(_Entry):
    """Two neurons of a layer that say the same."""

    layer: str
    neurons: tuple[Index, Index]
    correlation: float = Field(ge=-1, le=1)


class Expand(_Entry):
    """A layer at its limits, and the size it might have."""

    layer: str
    reason: str
    evidence: dict[str, float] = {}
    suggested: int = Field(ge=1)


class Recommendations(_Entry):
    """What a tracker recommends for one model.

    `fingerprint` is that of the model's structure, which training keeps: the file fits the same model trained further.
    A file written by hand may leave out everything but `prune`.
    """

    format: Literal["neuronscope/recommendations"] = "neuronscope/recommendations"
    version: Literal[1] = 1
    model: str = ""
    fingerprint: str = ""
    epoch: int | None = None
    layers: dict[str, Layer] = {}
    prune: tuple[Prune, ...] = ()
    merge: tuple[Merge, ...] = ()
    expand: tuple[Expand, ...] = ()

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        write_json(path, self.model_dump(mode="json"))


def load_recommendations(source: str | Path | Mapping[str, Any] | Recommendations) -> Recommendations:
    """Read recommendations from a file or from data, and check all of them.

    Raises `StorageError` for a file that cannot be read and `RecommendationError` for malformed JSON, another version,
    an unknown key, a neuron out of range or named twice.
    """
    if isinstance(source, Recommendations):
        _check_neurons(source)
        return source
    where = "The recommendations" if isinstance(source, Mapping) else f"'{source}'"
    data = (
        source if isinstance(source, Mapping) else read_json(source, what="recommendations", error=RecommendationError)
    )
    if not isinstance(data, Mapping):
        raise RecommendationError(
            f"{where} holds {type(data).__name__}, not an object.",
            hint="Write it with NeuronEngine.save_recommendations.",
        )
    try:
        read = Recommendations.model_validate_json(json.dumps(data), strict=True)
    except (ValidationError, TypeError, ValueError) as error:
        raise RecommendationError(
            f"{where} is no recommendations file of version {FORMAT_VERSION}: {_first_problem(error)}",
            hint="Mend the entry, or write the file again with NeuronEngine.save_recommendations.",
        ) from error
    _check_neurons(read)
    return read


def _check_neurons(read: Recommendations) -> None:
    for name, layer in read.layers.items():
        lengths = {} if layer.activity is None else {key: len(v) for key, v in layer.activity.model_dump().items()}
        for key, length in lengths.items():
            if length != layer.size:
                raise RecommendationError(
                    f"Layer '{name}' has {layer.size} neurons, and {length} values of {key}.",
                    hint="Track the model again.",
                )
    named = [("prune", entry.layer, (entry.neuron,)) for entry in read.prune]
    pairs = [("merge", entry.layer, entry.neurons) for entry in read.merge]
    for section, name, neurons in (*named, *pairs, *(("expand", entry.layer, ()) for entry in read.expand)):
        if not read.layers:
            break
        if name not in read.layers:
            raise RecommendationError(
                f"'{section}' names layer '{name}', which is not among the file's layers.{nearest(name, read.layers)}",
                hint="Use the names under 'layers', or leave 'layers' out.",
            )
        for neuron in neurons:
            if neuron >= read.layers[name].size:
                raise RecommendationError(
                    f"'{section}' names neuron {neuron} of layer '{name}', which has {read.layers[name].size}.",
                    hint=f"Use indices from 0 to {read.layers[name].size - 1}.",
                )
    for (name, neuron), times in Counter((entry.layer, entry.neuron) for entry in read.prune).items():
        if times > 1:
            raise RecommendationError(
                f"'prune' names neuron {neuron} of layer '{name}' {times} times.", hint="Name every neuron once."
            )
    for _, name, neurons in pairs:
        if neurons[0] == neurons[1]:
            raise RecommendationError(
                f"'merge' names neuron {neurons[0]} of layer '{name}' as both of a pair.", hint="Name two neurons."
            )


def _first_problem(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return f"{error}."
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        return f"unknown key '{'.'.join(map(str, first['loc']))}'.{nearest(key, _known_keys())}"
    place = ".".join(str(step) for step in first["loc"]) or "the file"
    given = f" (found {first['input']!r})" if isinstance(first.get("input"), str | int | float) else ""
    return f"{place}: {first['msg']}{given}."


def _known_keys() -> list[str]:
    kinds: tuple[type[BaseModel], ...] = (Recommendations, Layer, LayerActivity, Prune, Merge, Expand)
    return [name for kind in kinds for name in kind.model_fields]
