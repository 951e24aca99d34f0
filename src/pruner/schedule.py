"""How much of a model is gone after each epoch of a gradual removal."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from pruner.limits import checked_share
from tracker.errors import PlanError, nearest

FORMAT_VERSION = 1

# How fast the exponential schedule settles: after a third of the epochs four fifths are done, close to the cubic one.
_EXPONENTIAL_RATE = 5.0

CURVES: dict[str, Callable[[float], float]] = {
    "cubic": lambda progress: 1 - (1 - progress) ** 3,
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
    "exponential": lambda progress: math.expm1(-_EXPONENTIAL_RATE * progress) / math.expm1(-_EXPONENTIAL_RATE),
}
"""Share of the way from the initial to the final sparsity, by the share of the epochs that have passed."""


def gradual_targets(initial: float, final: float, num_epochs: int, schedule: str = "cubic") -> list[float]:
    """The sparsity target of every epoch: `initial` in the first, `final` in the last, never falling.

    "cubic" is s_t = s_f + (s_i − s_f)(1 − (t − t_0) / (n Δt))³ of Zhu & Gupta, "To prune, or not to prune" (2017),
    equation 1: fast at first, while there is redundancy, and slow at the end. A schedule of one epoch goes to `final`
    at once.

    Raises:
        PlanError: a sparsity outside [0, 1], a final one below the initial one, no epochs, or an unknown schedule.
    """
    initial, final = checked_share(initial, "initial sparsity"), checked_share(final, "final sparsity")
    if final < initial:
        raise PlanError(
            f"The final sparsity {final} is below the initial sparsity {initial}.",
            hint="Removed neurons cannot come back: give a final sparsity at least as high.",
        )
    if not _is_integer(num_epochs) or num_epochs < 1:
        raise PlanError(
            f"num_epochs = {num_epochs!r} is not a number of epochs.", hint="Give an integer of at least 1."
        )
    if schedule not in CURVES:
        raise PlanError(
            f"'{schedule}' is no known schedule.{nearest(schedule, CURVES)}", hint=f"Known: {', '.join(CURVES)}."
        )
    curve = CURVES[schedule]
    steps = num_epochs - 1
    return [initial + (final - initial) * curve(epoch / steps) for epoch in range(steps)] + [final]


def describe(
    schedule_id: str, initial: float, final: float, num_epochs: int, schedule: str = "cubic"
) -> dict[str, Any]:
    """A schedule as JSON-ready data: `schedule_id`, `schedule`, `initial_sparsity`, `final_sparsity`, `num_epochs`, and
    `targets`, one for every epoch. Raises what `gradual_targets` raises.
    """
    return {
        "version": FORMAT_VERSION,
        "schedule_id": schedule_id,
        "schedule": schedule,
        "initial_sparsity": float(initial),
        "final_sparsity": float(final),
        "num_epochs": num_epochs,
        "targets": gradual_targets(initial, final, num_epochs, schedule),
    }


def target_at(targets: Sequence[float], epoch: int) -> float:
    """The target of `epoch`, counted from 0. Raises `PlanError` where the schedule has no such epoch."""
    if not _is_integer(epoch) or not 0 <= epoch < len(targets):
        raise PlanError(
            f"The schedule has no epoch {epoch!r}.",
            hint=f"Its epochs are 0 to {len(targets) - 1}; make a schedule of more epochs if you train longer.",
        )
    return targets[epoch]


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
