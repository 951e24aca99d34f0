"""What clients may ask, with the limits of each field."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StringConstraints

from neuronscope.server.settings import Settings

_LIMITS = Settings()

Index = Annotated[StrictInt, Field(ge=0, le=2**31 - 1)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=_LIMITS.max_text_chars)]
Texts = Annotated[list[Text], Field(max_length=_LIMITS.max_texts)]
Pair = Annotated[list[Index], Field(min_length=2, max_length=2)]


MOST_PAIRS = 2_000_000


def _pairs(given: object) -> object:
    """(layer, neuron) pairs from the bits of each layer (base 64, the lowest bit first), where these were sent."""
    if not isinstance(given, list) or not given or not all(isinstance(layer, str) for layer in given):
        return given
    try:
        layers = [np.frombuffer(base64.b64decode(layer, validate=True), np.uint8) for layer in given]
    except binascii.Error as error:
        raise ValueError("The bits of a layer are not base 64.") from error
    if sum(int(np.unpackbits(bits).sum()) for bits in layers) > MOST_PAIRS:  # before they take a hundred times the room
        raise ValueError(f"More than {MOST_PAIRS} neurons are chosen.")
    chosen = [np.flatnonzero(np.unpackbits(bits, bitorder="little")).tolist() for bits in layers]
    return [[layer, neuron] for layer, neurons in enumerate(chosen) for neuron in neurons]


Pairs = Annotated[list[Pair], Field(max_length=MOST_PAIRS), BeforeValidator(_pairs)]
"""(layer, neuron) pairs, or for every layer its neurons as bits in base 64, the lowest bit first."""
Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")]
AblationName = Literal["zero", "mean", "repaired"]
Share = Annotated[float, Field(gt=0, lt=1)]


class Asked(BaseModel):
    """Unknown fields are errors: a word that is misspelt would be ignored without one."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ImpactRequest(Asked):
    """Neurons of one layer, and a text to try the model with."""

    layer_index: Index
    neuron_indices: Annotated[list[Index], Field(min_length=1, max_length=1_000_000)]
    input_text: Text
    ablation: AblationName = "zero"

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"layer_index": 0, "neuron_indices": [0, 1, 2], "input_text": "Hello world, this is a test."}]
        }
    )


class ImportanceRequest(Asked):
    """A layer, or without one the whole model. `exact` takes longest; see `/api/pruning/neuron-importance`."""

    layer_index: Index | None = None
    input_texts: Texts = []
    method: Literal["second-order", "first-order", "exact"] = "second-order"
    probes: Annotated[StrictInt, Field(ge=1, le=64)] | None = None

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"layer_index": 0, "input_texts": ["Hello world", "Machine learning"]}]}
    )


class CandidateRequest(Asked):
    """One neuron."""

    layer_index: Index
    neuron_index: Index


class BatchRequest(Asked):
    """Neurons to try one by one and together."""

    pruning_candidates: Annotated[list[CandidateRequest], Field(max_length=_LIMITS.max_candidates)]
    input_texts: Texts = []
    batch_size: Annotated[StrictInt, Field(ge=1, le=1000)] = 10
    approximate: StrictBool = False

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "pruning_candidates": [
                        {"layer_index": 0, "neuron_index": 0},
                        {"layer_index": 1, "neuron_index": 0},
                    ],
                    "input_texts": ["Hello world", "Test input"],
                    "batch_size": 10,
                }
            ]
        }
    )


class SimulateRequest(Asked):
    """Any neurons, as (layer, neuron) pairs. With `continuations`, texts go on by so many tokens, before and after."""

    neurons: Annotated[Pairs, Field(min_length=1)]
    input_texts: Texts = []
    ablation: AblationName = "zero"
    batch_size: Annotated[StrictInt, Field(ge=1, le=1000)] = 10
    continuations: Annotated[StrictInt, Field(ge=0, le=100)] = 0

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"neurons": [[0, 3], [1, 7]], "input_texts": ["Hello"], "continuations": 12}]}
    )


class SafeSetRequest(Asked):
    """Which neurons can go together, chosen from all or from `candidates`."""

    threshold: Share = 0.1
    candidates: Pairs | None = None
    input_texts: Texts = []
    ablation: AblationName = "zero"

    model_config = ConfigDict(json_schema_extra={"examples": [{"threshold": 0.1}]})


class OptimizeRequest(Asked):
    """The smallest model within a tolerance of the metric, or the best of a size (`target`)."""

    tolerance: Annotated[float, Field(ge=0)] | None = None
    target: dict[Literal["params", "flops", "latency"], Share] | None = None
    metric: Literal["accuracy", "loss", "distance"] | None = None
    effort: Literal["low", "default", "high"] = "low"
    resolution: Annotated[float, Field(ge=0.001, le=0.5)] = 0.05
    input_texts: Texts = []

    model_config = ConfigDict(json_schema_extra={"examples": [{"tolerance": 0.05, "resolution": 0.1}]})


class ApplyRequest(Asked):
    """Remove these neurons from a copy, let the others take over (`repair`), verify and store it."""

    neurons: Annotated[Pairs, Field(min_length=1)]
    repair: StrictBool = True
    effort: Literal["low", "default", "high"] = "low"
    name: Name | None = None
    input_texts: Texts = []

    model_config = ConfigDict(json_schema_extra={"examples": [{"neurons": [[0, 3], [1, 7]], "repair": True}]})


class FinetuneRequest(Asked):
    """Train a model that was made here; by default to give the answers of the model it was made from."""

    model_name: Name
    steps: Annotated[StrictInt, Field(ge=1, le=100_000)] = 50
    distill: StrictBool = True
    learning_rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    name: Name | None = None
    input_texts: Texts = []

    model_config = ConfigDict(json_schema_extra={"examples": [{"model_name": "made/…", "steps": 50}]})


class CompareRequest(Asked):
    """Models, or saved selections (plans) by their ids, to hold against the current model."""

    models: Annotated[list[Name], Field(max_length=8)] = []
    selections: Annotated[list[Name], Field(max_length=16)] = []
    input_texts: Texts = []

    model_config = ConfigDict(json_schema_extra={"examples": [{"models": ["stdlib-llama"], "input_texts": ["Hello"]}]})


class ExportRequest(Asked):
    """What to write, and in which format."""

    type: Literal["weight", "impact"]
    format: Literal["json", "csv", "parquet", "npz"] = "json"

    model_config = ConfigDict(json_schema_extra={"examples": [{"type": "weight"}]})


class ModelRequest(Asked):
    """The name of a model: one of those listed, or a name on the hub."""

    model_name: Name

    model_config = ConfigDict(json_schema_extra={"examples": [{"model_name": "stdlib-gpt"}]}, protected_namespaces=())


class SelectionRequest(Asked):
    """Neurons under a name, as (layer, neuron) pairs."""

    name: Name
    neurons: Pairs

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "idle ones", "neurons": [[0, 3], [1, 7]]}]})


class SelectionFile(Asked):
    """What `/api/selections/{id}/export` gives."""

    format: Literal["neuronscope/selection"]
    version: Literal[1]
    name: Name
    model: str
    fingerprint: str
    neurons: Pairs


class Problem(BaseModel):
    """Every error."""

    error: str
    details: str

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": "The model has 6 layers; 9 is none of them.",
                    "details": "Use a number from 0 to 5.",
                }
            ]
        }
    )


Anything = dict[str, Any]
