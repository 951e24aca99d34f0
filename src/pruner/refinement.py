"""How the kinds of layers share the loss: what no curve knows of the caller's metric, found near the best try.

A proposal that could not be smaller than the best model so far costs nothing: its size is known without a try.
Optuna proposes; it comes with the extra "search".
"""

from __future__ import annotations

from typing import Any

from pruner.tries import Point, Tries
from tracker.extras import require

_REACH = 0.2
"""How far from the best try, in shares of a kind's neurons."""
_PROPOSALS = 40
"""Proposals for each evaluation, before there is no hope for a smaller model."""
_STEPS = 100
"""Shares are whole hundredths, so that a search that was stopped finds its tries again."""


def refine(tries: Tries, least: float, evaluations: int, seed: int) -> None:
    """Evaluate at most so many other splits between the kinds that are smaller than the best try.

    Nothing is done where there is one kind only, or no try was good enough. Raises `MissingExtraError` without Optuna.
    """
    optuna = require("optuna", "search")
    best = _best(tries, least)
    if best is None or len(best.kinds) < 2:
        return
    center = dict(best.kinds)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(2, evaluations // 3))
    study = optuna.create_study(sampler=sampler)
    made = 0
    for _ in range(_PROPOSALS * evaluations):
        if made >= evaluations:
            return
        trial = study.ask()
        shares = {kind: _proposed(trial, kind, share) for kind, share in center.items()}
        size = tries.parameters_at(shares)
        if size >= best.parameters or not any(shares.values()):
            study.tell(trial, size)
            continue
        point = tries.at(best.rule, {"ratio": shares})
        made += point is not None
        if point is None:
            study.tell(trial, 2.0)
        elif point.metric < least:
            study.tell(trial, 1.0 + min(1.0, (least - point.metric) / max(abs(tries.dense), 1e-12)))
        else:
            study.tell(trial, point.parameters)
            best = point if point.parameters < best.parameters else best


def _proposed(trial: Any, kind: str, share: float) -> float:
    low, high = max(0.0, share - _REACH), min(0.99, share + _REACH)
    return int(trial.suggest_int(kind, round(low * _STEPS), round(high * _STEPS))) / _STEPS


def _best(tries: Tries, least: float) -> Point | None:
    good = [point for point in tries.points if point.metric >= least and point.share > 0]
    return min(good, key=lambda point: point.parameters, default=None)
