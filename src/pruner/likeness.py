"""Whether two models are the same function, as far as inputs are known to ask them."""

from __future__ import annotations

import math

from torch import nn

from pruner.equivalence import answers, batch_of, coarsest_eps, difference, rounding
from tracker.discover import example_call
from tracker.example_inputs import candidate_calls


def difference_between(model: nn.Module, other: nn.Module) -> str:
    """In which output `other` differs from `model`, beyond rounding; "" where in none.

    They are asked the call that `model` was discovered with, else the first that it answers of those it names itself.
    Where there is none, that is the difference.
    """
    other.to(next(model.parameters()).device)
    known = example_call(model)
    for call in [known] if known is not None else candidate_calls(model):
        try:
            batch = batch_of(call, model)
            expected, found = answers(model, batch), answers(other, batch)
        except Exception:  # noqa: BLE001, S112 (a guess may fail in any way; the next is tried)
            continue
        tolerance = rounding(coarsest_eps([*model.parameters(), *expected.values()]))
        for name, output in expected.items():
            error = difference(found[name], output) if name in found else math.inf
            if error > tolerance:
                return f"its {name} differs by {error:.1e} of the largest value"
        return ""
    return "no example inputs are known to compare with: discover(model, example_inputs) remembers some"
