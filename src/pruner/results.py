"""What a run of the workflow returns: one dictionary, JSON all the way down.

The keys that the guide reads are `results["pruning_results"]["neurons_pruned"]` and
`results["verification_results"]["summary"]["overall_success"]`.
"""

from typing import Any, Literal, NotRequired, TypedDict

Outcome = Literal["pruned", "dry run", "nothing to remove", "restored"]
"""How a run ended. "restored": a check failed, and the model is as it was."""


class RunInfo(TypedDict):
    """Which run this was. `started` is ISO 8601 with the time zone; `seconds` gives every step's duration.

    `model` is the class; `base` is how to build the original model, where the caller said so.
    """

    name: str
    model_name: str
    model: str
    base: str | None
    started: str
    seconds: dict[str, float]
    outcome: Outcome


class TrackedLayer(TypedDict):
    """A neuron group as it was tracked. `firing_frequency` has `size` shares from 0 to 1; None when not measured."""

    size: int
    kind: str
    exact: bool
    note: str
    firing_frequency: list[float] | None


class FrozenLayer(TypedDict):
    """Neurons that cannot be removed, and why."""

    name: str
    size: int
    reason: str


class Epoch(TypedDict):
    """One epoch that the tracker logged."""

    epoch: int
    loss: float | None
    accuracy: float | None


class TrackingResults(TypedDict):
    """What the tracker saw: every layer before anything was removed."""

    neurons: int
    batches: int
    layers: dict[str, TrackedLayer]
    frozen: list[FrozenLayer]
    operators_without_rule: dict[str, int]
    history: list[Epoch]


class PrunedLayer(TypedDict):
    """A layer that lost neurons: which, as indices into the layer as it was, and the score and the reason of each.

    A score of 1 is that of the layer's average neuron; None where it cannot be told.
    """

    before: int
    after: int
    removed: list[int]
    scores: list[float | None]
    reasons: list[str]


class PruningResults(TypedDict):
    """What was removed; for a dry run, what would be.

    `reduction` is a share of all neurons, from 0 to 1. After a restored run nothing is removed; `plan` still says what
    was tried. `repair` is what became of the weights that stay, None where nothing did; `budgets` is how the layers
    shared the loss, where a target was given.
    """

    neurons_pruned: int
    neurons_before: int
    neurons_after: int
    reduction: float
    layers_affected: int
    layers: dict[str, PrunedLayer]
    parameters_before: int
    parameters_after: int
    dry_run: bool
    strategy: str
    plan: dict[str, Any]
    candidates: list[dict[str, Any]]
    verification: dict[str, Any] | None
    warnings: list[str]
    repair: NotRequired[dict[str, Any] | None]
    budgets: NotRequired[dict[str, Any]]


class CheckResult(TypedDict):
    """One check. `measured` holds the numbers it compared."""

    name: str
    passed: bool
    detail: str
    measured: dict[str, Any]


class VerificationSummary(TypedDict):
    """How many checks passed. Where nothing was verified there are none, and `overall_success` is False."""

    passed: int
    total: int
    overall_success: bool


class DifferenceResult(TypedDict):
    """How far answers are from those of the dense model; see `pruner.difference.Difference`."""

    relative_error: float
    top1_agreement: float | None


class MeasuredResult(DifferenceResult):
    """What the removal changed where `layers` are not exact: measured, not proved. See `pruner.difference.Measured`."""

    layers: dict[str, str]
    batches: int
    exact_alone: DifferenceResult | None
    accuracy_before: float | None
    accuracy_after: float | None


class VerificationResults(TypedDict):
    """The checks of the pruned model, what could not be checked and why, and what was measured instead.

    `measured` is None where every layer that lost neurons is exact.
    """

    checks: list[CheckResult]
    summary: VerificationSummary
    not_checked: list[str]
    measured: MeasuredResult | None


class Measured(TypedDict):
    """A model in numbers. Units: bytes of parameters and buffers; FLOPs and milliseconds of one forward on one batch.

    What could not be measured is None. `quality` holds the caller's own metrics by name.
    """

    neurons: int
    parameters: int
    bytes: int
    flops: int | None
    latency_ms: float | None
    accuracy: float | None
    quality: dict[str, float]


class Metrics(TypedDict):
    """The model before and after; `after` is None where nothing was changed. `custom` are the registered metrics."""

    before: Measured
    after: Measured | None
    custom: dict[str, Any]


class Environment(TypedDict):
    """Where and with what the run happened. `seed` is torch's initial seed, `batch` the shapes of one batch."""

    versions: dict[str, str]
    platform: str
    processor: str
    device: str
    dtype: str
    threads: int
    seed: int
    batch: list[str]
    config: dict[str, Any]


class WorkflowResults(TypedDict):
    """Everything about one run. `report` and `outputs` are paths; `outputs` names only files that were written."""

    run: RunInfo
    tracking_results: TrackingResults
    recommendations: dict[str, Any]
    pruning_results: PruningResults
    verification_results: VerificationResults
    metrics: Metrics
    environment: Environment
    report: dict[str, str]
    outputs: dict[str, str]
