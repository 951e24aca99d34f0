"""The repair of a plan that is made already: what the engine does when it is given data."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from torch import nn

from pruner.compensation.bench import Bench
from pruner.compensation.closed_form import Wanted
from pruner.compensation.pipeline import Repaired, announced, repaired
from pruner.config import PruningConfig
from pruner.log import logger
from pruner.plan import PruningPlan
from tracker.batches import evaluating, iter_batches
from tracker.caches import decoding_off
from tracker.errors import DataError
from tracker.neuron_map import NeuronMap
from tracker.progress import step as long_step

BATCHES = 64
"""At most so many batches of a loader are learned from."""


def repair_for(
    model: nn.Module, neurons: NeuronMap, plan: PruningPlan, data_loader: Iterable[Any] | None, config: PruningConfig
) -> Repaired | None:
    """New values for the weights that stay, learned from the loader; the model is only read.

    None where there are no data, where `repair.enabled` is off, or where nothing can be learned: a removal is as right
    without a repair, so what stands in the way is logged, and only wrong data are an error.
    """
    removed = plan.resolve(neurons)
    if data_loader is None or not config.repair.enabled or not removed:
        return None
    inexact = [name for name in removed if not neurons[name].exact]
    if inexact:
        logger.info("No repair: layer '%s' is not exact, and zeroing does not stand for its removal.", inexact[0])
        return None
    with evaluating(model), decoding_off(model), long_step("Repairing"):
        batches = list(islice(iter_batches(data_loader, model), BATCHES))
        try:
            bench = Bench.of(model, neurons, list(removed), batches)
            announced(bench, config.repair.effort)
            return repaired(bench, Wanted(removed, {}), effort=config.repair.effort)
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001 (a model's code may do anything when it is run in pieces)
            first_line = next(iter(str(error).splitlines()), "")[:200]
            logger.warning("The weights that stay could not be repaired (%s: %s).", type(error).__name__, first_line)
            return None
