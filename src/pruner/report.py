"""The report of a run, as versioned data: what a person asks about it.

`report_building` makes it of a run's results, `report_files` stores and finds it, `report_html` draws the page.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pruner.results import Outcome

PROFILE_BINS = 64
"""A layer's activity is drawn in at most this many steps."""

Unit = Literal["count", "bytes", "flops", "milliseconds", "share", "number"]
Better = Literal["lower", "higher"]
REASONS: Mapping[str, str] = {
    "dead": "never fired on any of the data",
    "constant": "always said the same, whatever the data",
    "inactive": "fired less often than the threshold",
    "redundant": "said the same as another neuron, which stays",
    "weak": "had smaller weights than the threshold",
    "chosen by hand": "was chosen by a person",
    "low score": "ranked lowest by weight and activity, up to the target",
}
"""Why a neuron goes, in words. "low score" are the neurons that the strategy chose and no recommendation named."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Figure(_Part):
    """One number, before and after. `after` is None where nothing was changed, `better` says which way is good."""

    name: str
    unit: Unit
    before: float | int
    after: float | int | None
    better: Better


class Bin(_Part):
    """Some neighbouring neurons of a layer: their mean firing frequency, and how many of `size` were removed."""

    size: int
    firing: float | None
    removed: int


class Layer(_Part):
    """A layer before and after, and its neurons in order as at most 64 bins."""

    name: str
    kind: str
    exact: bool
    note: str
    before: int
    after: int
    profile: tuple[Bin, ...]


class Removal(_Part):
    """A neuron that went: why, on which evidence, and its score where the strategy gave one."""

    layer: str
    neuron: int
    reason: str
    evidence: str
    score: float | None


class Suggestion(_Part):
    """Advice that pruning does not follow by itself: neurons to merge, a layer to widen."""

    kind: Literal["merge", "expand"]
    layer: str
    detail: str


class FrozenNeurons(_Part):
    """Neurons that cannot be removed, and why."""

    name: str
    size: int
    reason: str


class Check(_Part):
    """A check of the pruned model and what it measured."""

    name: str
    passed: bool
    detail: str
    measured: dict[str, Any]


class Difference(_Part):
    """How far the answers are from those before."""

    relative_error: float
    top1_agreement: float | None


class Unproven(Difference):
    """What the removal changed where these layers, which are not exact, lost neurons: measured, not proved."""

    layers: dict[str, str]
    batches: int
    exact_alone: Difference | None
    accuracy_before: float | None
    accuracy_after: float | None


class Epoch(_Part):
    """An epoch that the tracker logged."""

    epoch: int
    loss: float | None
    accuracy: float | None


class Environment(_Part):
    """Where, with what and on what the run happened."""

    versions: dict[str, str]
    platform: str
    processor: str
    device: str
    dtype: str
    threads: int
    seed: int
    batch: tuple[str, ...]
    batches: int
    config: dict[str, Any]


class Report(_Part):
    """Everything the page shows."""

    version: Literal[1] = 1
    run: str
    model_name: str
    model: str
    started: str
    seconds: dict[str, float]
    outcome: Outcome
    headline: str
    summary: str
    strategy: str
    figures: tuple[Figure, ...]
    custom: dict[str, Any]
    layers: tuple[Layer, ...]
    reasons: dict[str, int]
    removals: tuple[Removal, ...]
    suggestions: tuple[Suggestion, ...]
    passed: int
    total: int
    checks: tuple[Check, ...]
    not_checked: tuple[str, ...]
    measured: Unproven | None = None
    proven: bool = False
    repair: dict[str, Any] | None = None
    budgets: dict[str, Any] | None = None
    frozen: tuple[FrozenNeurons, ...]
    operators_without_rule: dict[str, int]
    loading: str
    history: tuple[Epoch, ...]
    environment: Environment
    files: dict[str, str]
    warnings: tuple[str, ...]
