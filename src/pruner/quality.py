"""The caller's metric, asked in evaluation mode and held to give a number."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from tracker.batches import evaluating
from tracker.errors import DataError

Metric = Callable[[nn.Module], float]
"""How good a model is: a number, of which more is better."""


def judged(metric: Metric, model: nn.Module) -> float:
    """What the metric says of a model, which is afterwards as before; raises `DataError` for no finite number."""
    with evaluating(model):
        value = metric(model)
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"The metric gave {value!r}.", hint="Return a number; larger is better.") from error
    if not math.isfinite(number):
        raise DataError(f"The metric gave {number}.", hint="Return a finite number; larger is better.")
    return number
