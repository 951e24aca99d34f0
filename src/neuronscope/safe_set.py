"""The largest set of neurons that can go together: cumulative impact, not the sum of what each does alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tracker.errors import DataError
from tracker.progress import progress

Pair = tuple[int, int]
LEFT_OVER = 12
"""After the bisection so many more runs try to add what was left out, in pieces that shrink."""


@dataclass(frozen=True)
class SafeSet:
    """(layer, neuron) pairs whose cumulative impact is `impact_score`; how many sets were tried, `evaluations`."""

    neurons: tuple[Pair, ...]
    impact_score: float
    evaluations: int


def largest_safe(
    order: Sequence[Pair], impact: Callable[[Sequence[Pair]], float], threshold: float, most: int = LEFT_OVER
) -> SafeSet:
    """Greedy: as many of the first as stay below the threshold, then whatever else still fits.

    Args:
        order: the candidates, least important first.
        impact: the cumulative impact score of a set, evaluated for real.
        threshold: to stay below.
        most: evaluations after the bisection.

    By bisection, for more neurons have more impact as a rule. That is a rule only, so what is returned was evaluated.
    """
    if not 0 < threshold <= 1:
        raise DataError(
            f"threshold = {threshold!r} is no impact score.", hint="Give a number from 0 to 1, such as 0.1."
        )
    known: dict[int, float] = {0: 0.0}
    low, high = 0, len(order) + 1
    # Sizes are searched by their length first: in a large model the safe set is a small part, or nearly all.
    while high - low > max(1, len(order) // 512):
        middle = (low + high) // 2
        known[middle] = impact(order[:middle])
        low, high = (middle, high) if known[middle] < threshold else (low, middle)
    chosen, score = list(order[:low]), known[low]
    evaluations = len(known) - 1
    left = list(order[low:])
    step = max(1, len(left) // 4)
    for _ in progress(range(most), "Adding what still fits"):
        if not left:
            break
        piece, rest = left[:step], left[step:]
        found = impact([*chosen, *piece])
        evaluations += 1
        if found < threshold:
            chosen, score, left = [*chosen, *piece], found, rest
        elif step > 1:
            step = max(1, step // 4)
        else:
            left = rest
    return SafeSet(tuple(chosen), score, evaluations)
