"""What clients are told: the fields of every answer. More may come; none goes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Told(BaseModel):
    """Fields that are not listed may be there too."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Health(Told):
    """That the server lives."""

    status: Literal["healthy"]
    message: str


class LayerSparsity(Told):
    """Zeros of one module."""

    sparsity: float
    total_params: int
    non_zero_params: int


class LayerStats(Told):
    """The weights of one module."""

    layer_name: str
    layer_index: int
    total_parameters: int
    non_zero_parameters: int
    sparsity: float
    mean_magnitude: float
    std_magnitude: float
    min_magnitude: float
    max_magnitude: float
    l1_norm: float
    l2_norm: float


class WeightAnalysis(Told):
    """All weights of the model; parameters are counted once."""

    overall_sparsity: float
    total_parameters: int
    non_zero_parameters: int
    layer_sparsity: dict[str, LayerSparsity]
    layer_stats: list[LayerStats]


class Candidate(Told):
    """A neuron by its weights."""

    layer_index: int
    neuron_index: int
    weight_magnitude: float
    weight_rank: int
    is_pruning_candidate: bool
    pruning_score: float


class Candidates(Told):
    """All neurons; those that are flagged are the lowest of each layer."""

    candidates: list[Candidate]
    total_candidates: int
    flagged_candidates: int
    threshold_percentile: float


class Impact(Told):
    """What the model says without some neurons."""

    impact_score: float
    mean_change: float
    max_change: float
    affected_neurons: list[int]
    safe_to_prune: bool
    ablation: str
    metrics: dict[str, Any]


class Simulation(Impact):
    """The same for neurons of any layers, with what is saved and how texts go on."""

    neurons: int
    saved: dict[str, int]
    continuations: list[dict[str, str]] | None


class Importance(Told):
    """Every neuron of a layer, or of the model."""

    importance_scores: list[dict[str, Any]]
    total_neurons: int
    critical_neurons: int
    method: str
    rank_correlation: list[float | None]


class Batch(Told):
    """Each neuron alone, and all together."""

    individual_impacts: list[dict[str, Any]]
    cumulative_impact: dict[str, Any] | None
    recommendations: dict[str, Any]


class SafeSet(Told):
    """The largest set found whose cumulative impact is below the threshold."""

    neurons: list[list[int]]
    impact_score: float
    evaluations: int


class Exported(Told):
    """Where the file is; `download` is where to get it."""

    message: str
    file_path: str
    download: str


class MadeHere(Told):
    """Where a model comes from that was made here, and where its files are."""

    title: str
    base: str
    report: str
    download: str


class ModelInfo(Told):
    """A model that can be loaded. What is not known before it is loaded is None."""

    name: str
    family: str
    layers: int | None
    hidden_size: int | None
    description: str
    recommended: bool
    made: MadeHere | None = None


class Models(Told):
    """All that can be loaded by name; other names lead to the hub."""

    models: dict[str, ModelInfo]
    current_model: str


class Switched(Told):
    """The model that is current now."""

    message: str
    current_model: str
    model_info: ModelInfo
    memory_usage: dict[str, Any]


class Memory(Told):
    """Bytes."""

    device: str
    free_bytes: int | None
    model_bytes: int


class Latency(Told):
    """Median milliseconds of a forward, the shape of what went in, and by layer a neuron's share of the operations."""

    latency_ms: float
    input_shape: list[int] | None
    neuron_shares: list[float]


class Job(Told):
    """Long work. `share` is from 0 to 1; None where nobody can tell."""

    id: str
    kind: str
    model: str
    state: Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
    description: str
    share: float | None
    eta_seconds: float | None
    error: dict[str, Any] | None
    cached: bool
    created: float
    started: float | None
    finished: float | None


class Jobs(Told):
    """The latest first."""

    jobs: list[Job]


class Selection(Told):
    """Neurons under a name."""

    id: str
    name: str
    model: str
    fingerprint: str
    neurons: list[list[int]]
    created: float
    changed: float


class Selections(Told):
    """The newest first."""

    selections: list[Selection]


class Histories(Told):
    """Names of training runs."""

    histories: list[str]


class History(Told):
    """A training run. `dead` and `gone` count neurons by epoch and layer; events are (layer, neuron, epoch)."""

    name: str
    model: str
    epochs: list[int]
    loss: list[float | None]
    accuracy: list[float | None]
    layer_names: list[str]
    layer_sizes: list[int]
    dead: list[list[int]]
    gone: list[list[int]]
    deaths: list[tuple[str, int, int]]
    revivals: list[tuple[str, int, int]]


class Anything(Told):
    """A result whose fields the description lists."""
