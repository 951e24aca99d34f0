"""`optimize`: the smallest model that is still good enough, or the best one of a size, found with few real evaluations.

Every try is a `compress` of a copy, judged by the caller's metric. Within a rule, the sensitivity curves say which
layer loses how much at a size, and the metric falls with the size: so the size is found by bisection. What the curves
cannot know, how the kinds of layers share the loss best under *this* metric, is left to a search by Optuna (`trials`).
All that was tried is kept: the points that nothing beats in both size and quality are the Pareto front.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from pruner.companions import Companions
from pruner.compensation.budgets import BUDGETS
from pruner.compensation.pipeline import effort_of
from pruner.compensation.targets import checked_target
from pruner.compression import compress
from pruner.config import PruningConfig, create_default_config
from pruner.execution import Results
from pruner.quality import Metric
from pruner.refinement import refine
from pruner.tries import Point, Tries, pareto, without_kinds
from tracker.admission import admitted_for_change
from tracker.errors import ConfigError, MissingExtraError, PlanError
from tracker.extras import require

RULES = ("measured", "uniform")


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
    trials: int = 0,
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
        resolution: the size is found to within this share of the parameters.
        trials: with a tolerance, so many evaluations more to find a better share for each kind of layer, by Optuna's
            sampler (Bergstra et al. 2011), near what the curves said.
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
        MissingExtraError: `trials` without Optuna.
        DataError: a metric that gives NaN, or no number.
        And what `compress` raises. The model then is as it was.
    """
    if (tolerance is None) == (target is None):
        raise PlanError("Give either a tolerance or a target.", hint='tolerance=0.01, or target={"params": 0.6}.')
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise PlanError(f"tolerance = {tolerance!r} is no loss of quality.", hint="Give a number of at least 0.")
    if not 1e-4 <= resolution <= 0.5:
        raise PlanError(f"resolution = {resolution!r} is not from 0.0001 to 0.5.", hint="Give a share, such as 0.01.")
    if type(trials) is not int or trials < 0 or (trials and target is not None):
        raise PlanError(f"trials = {trials!r} is no number from 0 up, or goes with a target.", hint="Leave it out.")
    if trials:
        require("optuna", "search")
    if target is not None:
        checked_target(target)
    effort_of(effort)
    unknown = [rule for rule in rules if rule not in BUDGETS]
    if unknown or not rules:
        raise ConfigError(f"rules = {list(rules)!r} are not known.", hint=f"Name some of {', '.join(BUDGETS)}.")
    bare = admitted_for_change(model)
    settings = config or create_default_config().update(logging={"log_to_console": False})
    how = {"kinds": kinds, "effort": effort, "config": settings, "seed": seed}
    tries = Tries(bare, data, metric, how, Path(folder) if folder is not None else None)
    least = -math.inf if tolerance is None else tries.dense - tolerance
    for rule in rules:
        if target is not None:
            tries.at(rule, {"target": dict(target)}, required=True)
        else:
            _smallest(tries, rule, least, resolution)
    if trials:
        refine(tries, least, trials, seed)
    chosen = _chosen(tries, None if target is not None else least)
    answer: Results = {"neurons_pruned": 0, "dry_run": dry_run}
    if chosen is not None:
        options = {**how, **chosen.asked, "budgets": chosen.rule}
        answer = compress(model, data, optimizer=optimizer, dry_run=dry_run, **without_kinds(options))
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


def _smallest(tries: Tries, rule: str, least: float, resolution: float) -> None:
    """Bisect for the smallest share of the parameters at which the metric is at least `least`."""
    low, high = 0, max(1, round(1 / resolution))
    while high - low > 1:
        middle = (low + high) // 2
        point = tries.at(rule, {"target": {"params": round(1 - middle * resolution, 9)}})
        if point is not None and point.metric >= least:
            low = middle
        else:
            high = middle


def _chosen(tries: Tries, least: float | None) -> Point | None:
    """The smallest that is good enough; without a limit, the best."""
    if least is None:
        return max(tries.points, key=lambda point: point.metric, default=None)
    good = [point for point in tries.points if point.metric >= least and point.share > 0]
    return min(good, key=lambda point: (point.parameters, -point.metric), default=None)


def _draw(tries: Tries, front: Sequence[Point], chosen: Point | None, path: Path) -> None:
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
