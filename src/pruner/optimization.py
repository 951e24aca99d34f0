"""`optimize`: the smallest model that is still good enough, or the best one of a size, found with few real evaluations.

Every try is a `compress` of a copy, judged by the caller's metric. The metric falls with the share that is removed, so
the share is found by bisection, once for each rule by which layers may share the loss. All that was tried is kept: the
points that nothing beats in both size and quality are the Pareto front.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pruner.companions import Companions
from pruner.compensation.bench import copied
from pruner.compensation.budgets import BUDGETS
from pruner.compensation.pipeline import effort_of
from pruner.compensation.targets import checked_target
from pruner.compression import compress
from pruner.config import PruningConfig, create_default_config
from pruner.execution import Results
from pruner.limits import LimitError
from pruner.metrics import count_parameters
from tracker.admission import admitted_for_change
from tracker.batches import evaluating
from tracker.errors import ConfigError, DataError, MissingExtraError, PlanError
from tracker.extras import require
from tracker.files import read_json, write_json
from tracker.fingerprint import content_fingerprint
from tracker.progress import step as long_step

FORMAT_VERSION = 1
RULES = ("measured", "uniform")

Metric = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Point:
    """One try: the share of neurons removed by a rule, the parameters left (share of the dense model's), the metric."""

    rule: str
    share: float
    parameters: float
    metric: float


def optimize(
    model: nn.Module,
    data: Iterable[Any],
    metric: Metric,
    *,
    tolerance: float | None = None,
    target: Mapping[str, float] | None = None,
    kinds: Collection[str] = (),
    rules: Sequence[str] = RULES,
    effort: str = "low",
    resolution: float = 0.01,
    folder: str | Path | None = None,
    config: PruningConfig | None = None,
    optimizer: Companions | None = None,
    dry_run: bool = False,
    seed: int = 0,
) -> Results:
    """Make `model` as small as `metric` allows, in place, and prove it right; or as good as a size allows.

    Args:
        model: the trained model.
        data: batches to learn from, as `compress` takes them.
        metric: model → number, larger is better; evaluated on data of the caller's that `data` does not hold.
        tolerance: the metric may fall by so much below the dense model's.
        target: instead, the share of the whole to keep, as in `compress`: then the rule with the best metric is chosen.
        kinds, config, optimizer, effort: as in `compress`.
        rules: ways in which the layers share the loss that are tried; see `budgets` in `compress`.
        resolution: shares are found to within this much.
        folder: where every try is written down, so that a run that was stopped goes on (with the same data and metric,
            which are not written down), and the picture of the front (`front.png`, if matplotlib is there).
        dry_run: search, and change nothing.
        seed: of all random numbers; the same seed gives the same model.

    Returns:
        The results of `compress` for what was chosen, and with them `search`: `dense` (its metric), `chosen`, `front`
        and `points` (each with rule, share, parameters, metric), and `evaluations`. Where nothing can go, the model
        stays and `neurons_pruned` is 0.

    Raises:
        PlanError: neither or both of `tolerance` and `target`.
        DataError: a metric that gives NaN, or no number.
        And what `compress` raises. The model then is as it was.
    """
    if (tolerance is None) == (target is None):
        raise PlanError("Give either a tolerance or a target.", hint='tolerance=0.01, or target={"params": 0.6}.')
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise PlanError(f"tolerance = {tolerance!r} is no loss of quality.", hint="Give a number of at least 0.")
    if not 1e-4 <= resolution <= 0.5:
        raise PlanError(f"resolution = {resolution!r} is not from 0.0001 to 0.5.", hint="Give a share, such as 0.01.")
    if target is not None:
        checked_target(target)
    effort_of(effort)
    unknown = [rule for rule in rules if rule not in BUDGETS]
    if unknown or not rules:
        raise ConfigError(f"rules = {list(rules)!r} are not known.", hint=f"Name some of {', '.join(BUDGETS)}.")
    bare = admitted_for_change(model)
    settings = config or create_default_config().update(logging={"log_to_console": False})
    how = {"kinds": kinds, "effort": effort, "config": settings, "seed": seed}
    tries = _Tries(bare, data, metric, how, Path(folder) if folder is not None else None)
    for rule in rules:
        if target is not None:
            tries.at(rule, target=target)
        else:
            _largest(tries, rule, tries.dense - float(tolerance or 0.0), resolution)
    chosen = _chosen(tries, None if target is not None else tries.dense - float(tolerance or 0.0))
    answer: Results = {"neurons_pruned": 0, "dry_run": dry_run}
    if chosen is not None:
        wanted: dict[str, Any] = {"target": target} if target is not None else {"ratio": chosen.share}
        answer = compress(model, data, **wanted, **how, budgets=chosen.rule, optimizer=optimizer, dry_run=dry_run)  # type: ignore[arg-type]
    front = pareto(tries.points)
    search = {
        "dense": tries.dense,
        "chosen": None if chosen is None else asdict(chosen),
        "front": [asdict(point) for point in front],
        "points": [asdict(point) for point in tries.points],
        "evaluations": tries.evaluations,
    }
    if folder is not None:
        _draw(tries, front, chosen, Path(folder) / "front.png")
    return answer | {"search": search}


def pareto(points: Iterable[Point]) -> list[Point]:
    """The points that no other one beats in both size and metric, the smallest first.

    >>> pareto([Point("a", 0.5, 0.6, 0.9), Point("b", 0.5, 0.7, 0.8), Point("a", 0.1, 0.9, 0.95)])[1].share
    0.1
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.parameters, -point.metric)):
        if not front or point.metric > front[-1].metric:
            front.append(point)
    return front


class _Tries:
    """What was tried, in memory and on disk; the same try is not made twice."""

    def __init__(
        self, model: nn.Module, data: Iterable[Any], metric: Metric, how: Mapping[str, Any], folder: Path | None
    ) -> None:
        self._model, self._data, self._metric, self._how = model, data, metric, how
        self._path = None if folder is None else folder / "tries.json"
        self._parameters = count_parameters(model)
        self._key = {
            "format": "neuronscope/tries",
            "version": FORMAT_VERSION,
            "model": content_fingerprint(model),
            "effort": how["effort"],
            "kinds": sorted(how["kinds"]),
            "seed": how["seed"],
            "config": how["config"].model_dump(mode="json"),
        }
        self._known: dict[str, dict[str, Any]] = {}
        if self._path is not None and self._path.is_file():
            saved = read_json(self._path, what="list of tries", error=DataError)
            if {name: saved.get(name) for name in self._key} != self._key:
                raise DataError(
                    f"{self._path} holds the tries of another model, or of another search.",
                    hint="Name another folder, or remove the file.",
                )
            self._known = dict(saved["tries"])
        self.evaluations = 0
        self.points: list[Point] = []
        whole = self._judged("dense", lambda: Point("dense", 0.0, 1.0, self._value(model)))
        self.dense = whole.metric if whole is not None else math.nan

    def at(self, rule: str, share: float = 0.0, target: Mapping[str, float] | None = None) -> Point | None:
        """Compress a copy and judge it; None where the limits do not allow so much."""
        name = f"{rule} {dict(target)}" if target is not None else f"{rule} {share:.6f}"
        wanted: dict[str, Any] = {"target": target} if target is not None else {"ratio": share}

        def attempt() -> Point | None:
            twin = copied(self._model)
            with long_step(f"Trying {name}"):
                try:
                    results = compress(twin, self._data, **wanted, **self._how, budgets=rule)
                except LimitError:
                    if target is not None:
                        raise
                    return None
                gone = results["neurons_pruned"] / results["neurons_before"] if target is not None else share
                return Point(rule, gone, count_parameters(twin) / self._parameters, self._value(twin))

        point = self._judged(name, attempt)
        if point is not None and point not in self.points:
            self.points.append(point)
        return point

    def _judged(self, name: str, attempt: Callable[[], Point | None]) -> Point | None:
        if name not in self._known:
            self.evaluations += 1
            point = attempt()
            self._known[name] = {} if point is None else asdict(point)
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._path, {**self._key, "tries": self._known})
        return Point(**self._known[name]) if self._known[name] else None

    def _value(self, model: nn.Module) -> float:
        with evaluating(model):
            value = self._metric(model)
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise DataError(f"The metric gave {value!r}.", hint="Return a number; larger is better.") from error
        if not math.isfinite(number):
            raise DataError(f"The metric gave {number}.", hint="Return a finite number; larger is better.")
        return number


def _largest(tries: _Tries, rule: str, least: float, resolution: float) -> None:
    """Bisect for the largest share at which the metric is at least `least`."""
    low, high = 0, max(1, round(1 / resolution))
    while high - low > 1:
        middle = (low + high) // 2
        point = tries.at(rule, middle * resolution)
        if point is not None and point.metric >= least:
            low = middle
        else:
            high = middle


def _chosen(tries: _Tries, least: float | None) -> Point | None:
    """The smallest that is good enough; without a limit, the best."""
    if least is None:
        return max(tries.points, key=lambda point: point.metric, default=None)
    good = [point for point in tries.points if point.metric >= least and point.share > 0]
    return min(good, key=lambda point: (point.parameters, -point.metric), default=None)


def _draw(tries: _Tries, front: Sequence[Point], chosen: Point | None, path: Path) -> None:
    try:
        require("matplotlib", "plot").use("Agg")
    except MissingExtraError:
        return
    pyplot = require("matplotlib.pyplot", "plot")
    figure, axis = pyplot.subplots(figsize=(6.4, 4.2))
    for number, rule in enumerate(dict.fromkeys(point.rule for point in tries.points)):
        own = [point for point in tries.points if point.rule == rule]
        axis.scatter(
            [100 * p.parameters for p in own], [p.metric for p in own], label=rule, s=24, marker="osD^"[number % 4]
        )
    axis.plot([100 * p.parameters for p in front], [p.metric for p in front], color="black", linewidth=1, label="front")
    axis.axhline(tries.dense, color="gray", linestyle=":", linewidth=1, label="dense")
    if chosen is not None:
        axis.scatter(
            [100 * chosen.parameters], [chosen.metric], s=160, facecolors="none", edgecolors="black", label="chosen"
        )
    axis.set_xlabel("parameters left, %")
    axis.set_ylabel("metric")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
