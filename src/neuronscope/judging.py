"""One word for how good a model is on data: `accuracy`, `loss`, `distance`, or `module:callable`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from neuronscope.imports import import_object
from pruner.compensation.distance import answer, distance, spread
from pruner.quality import Metric
from pruner.recovery_loss import labelled
from tracker.batches import accuracy, evaluating, forward, iter_batches, predicts_next
from tracker.errors import DataError

NAMES = ("accuracy", "loss", "distance")


def metric_of(name: str | None, model: nn.Module, data: Sequence[Any]) -> tuple[str, Metric]:
    """The metric called `name` on this data, of which more is better, and what it is called.

    - `accuracy`: the share of right answers of a classifier;
    - `loss`: minus the loss by the labels, a batch on the average;
    - `distance`: minus the distance from the answers that `model`, the dense one, gives now; needs no labels;
    - `module:callable`: your own, which is given the model;
    - None: the first of these that the data can tell; of a language model the loss.

    Raises `DataError` for a name that leads to no metric, and for labels that are missing.
    """
    known: dict[str, Callable[[], Metric]] = {
        "accuracy": lambda: _accuracy(data),
        "loss": lambda: _loss(data),
        "distance": lambda: _distance(model, data),
    }
    if name in known:
        return name, known[name]()
    if name is not None:
        found = import_object(name, DataError)
        if not callable(found):
            raise DataError(f"'{name}' is a {type(found).__name__}, and no function.", hint=f"Name one of {NAMES}.")
        return name, found
    if not predicts_next(model) and accuracy(model, data) is not None:
        return "accuracy", known["accuracy"]()
    try:
        _loss(data)(model)
    except DataError:
        return "distance", known["distance"]()
    return "loss", known["loss"]()


def _accuracy(data: Sequence[Any]) -> Metric:
    def metric(model: nn.Module) -> float:
        value = accuracy(model, data)
        if value is None:
            raise DataError("The data holds no class indices that fit.", hint="Judge by loss or distance.")
        return value

    return metric


def _loss(data: Sequence[Any]) -> Metric:
    def metric(model: nn.Module) -> float:
        with evaluating(model):
            losses = [labelled(forward(model, batch), batch).float() for batch in iter_batches(data, model)]
            return -float(torch.stack(losses).mean())

    return metric


def _distance(dense: nn.Module, data: Sequence[Any]) -> Metric:
    with evaluating(dense):
        wanted = [answer(forward(dense, batch), batch) for batch in iter_batches(data, dense)]
    unit = spread(wanted)

    def metric(model: nn.Module) -> float:
        with evaluating(model):
            found = [answer(forward(model, batch), batch) for batch in iter_batches(data, model)]
            parts = [distance(one, other, unit) for one, other in zip(found, wanted, strict=True)]
            return -float(torch.stack(parts).mean())

    return metric
