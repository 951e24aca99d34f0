"""What each of many neurons alone does, exactly or approximately, in memory for so many at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from neuronscope.ablation import fillers
from neuronscope.importance import estimated
from neuronscope.movement import RISKY, SAFE, Movement
from neuronscope.stacked import Absent, absences, single_rows
from neuronscope.trials import Trials
from tracker.neuron_map import NeuronGroup
from tracker.progress import progress

Pair = tuple[int, int]

CERTAIN = 2.0
"""An estimate is believed where it is further than by this factor from the thresholds of safe and risky."""
FEW = 6
"""Of fewer neurons each has a run of its own: to find out how they can be stacked takes some runs too."""
ROUNDS, PROBES = 4, 4
"""An estimate takes so many rounds of so many probes, fewer where another round moves nothing over a threshold."""


def impacts_alone(trials: Trials, chosen: Sequence[Pair], at_once: int) -> list[dict[str, Any]]:
    """The impact of each (layer, neuron) alone over the inputs; JSON-ready data in order."""
    wanted = sorted({(layer, neuron) for layer, neuron in chosen})
    stacked = len(wanted) >= FEW
    trials = _rows(trials) if stacked else trials
    trials.look_at(sorted({layer + 1 for layer, _ in wanted}))
    found: dict[Pair, dict[str, Any]] = {}
    for at in progress(range(0, len(wanted), at_once), "Without each candidate"):
        for (layer, neuron), entry in (_stacked if stacked else _each)(trials, wanted[at : at + at_once]):
            found[layer, neuron] = {"layer_index": layer, "neuron_index": neuron} | entry
    return [dict(found[layer, neuron]) for layer, neuron in chosen]


def approximate_impacts(trials: Trials, chosen: Sequence[Pair], at_once: int) -> list[dict[str, Any]]:
    """The same with as little work as tells safe from risky.

    All are estimated by second order, until another round of probes changes no verdict; what then is close to a
    threshold is found out exactly. `exact` says which is which; what is estimated has no `mean_change`.
    """
    layers = sorted({layer for layer, _ in chosen})
    total: dict[int, NDArray[np.float64]] = {}
    verdicts: list[int] = []
    for number in progress(range(ROUNDS), "Estimating the candidates"):
        asked = [trials.layers[layer] for layer in layers]
        new = estimated(trials.model, asked, trials.batches, "second-order", PROBES, seed=number)
        if new is None:
            return [{**entry, "exact": True} for entry in impacts_alone(trials, chosen, at_once)]
        total = {layer: total.get(layer, 0) + new[layer] ** 2 for layer in layers}
        scores = [math.sqrt(float(total[layer][neuron]) / (number + 1)) for layer, neuron in chosen]
        before, verdicts = verdicts, [sum(score > limit for limit in (SAFE, RISKY)) for score in scores]
        if verdicts == before:
            break
    close = [
        pair
        for pair, score in zip(chosen, scores, strict=True)
        if any(limit / CERTAIN < score < limit * CERTAIN for limit in (SAFE, RISKY))
    ]
    known = dict(zip(close, impacts_alone(trials, close, at_once), strict=True))
    found = []
    for (layer, neuron), score in zip(chosen, scores, strict=True):
        entry = known.get((layer, neuron)) or {
            "layer_index": layer,
            "neuron_index": neuron,
            "impact_score": score,
            "mean_change": None,
            "max_change": None,
            "safe_to_prune": score < SAFE,
            "metrics": None,
        }
        found.append({**entry, "exact": (layer, neuron) in known})
    return found


def _rows(trials: Trials) -> Trials:
    """The same inputs one by one."""
    rows = [row for batch in trials.batches for row in single_rows(batch)]
    return Trials(trials.model, trials.neurons, trials.layers, rows)


def _each(trials: Trials, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, dict[str, Any]]]:
    for layer, neuron in pairs:
        _, before = trials.dense(layer + 1)
        fill = fillers(trials.model, trials.neurons, trials.layers.split([(layer, neuron)]), trials.batches, "zero")
        answers, after = trials.run(fill, layer + 1)
        yield (layer, neuron), entry_of(trials.scale.movement(answers), np.abs(after - before))


def _stacked(trials: Trials, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, dict[str, Any]]]:
    gone = [trials.layers[layer].places[neuron] for layer, neuron in pairs]
    behind = [trials.further_groups(layer + 1) for layer, _ in pairs]
    watched = {groups[0].name: groups[0] for groups in behind if len(groups) == 1}
    gathered: list[list[Absent]] = [[] for _ in pairs]
    for absent in absences(trials.model, gone, trials.batches, list(watched.values())):
        gathered[absent.neuron].append(absent)
    for (layer, neuron), groups, own in zip(pairs, behind, gathered, strict=True):
        _, before = trials.dense(layer + 1)
        answers = [one.said for one in own]
        after = _further(own, groups)
        if after is None or after.shape != before.shape:
            yield from _each(trials, [(layer, neuron)])
        else:
            yield (layer, neuron), entry_of(trials.scale.movement(answers), np.abs(after - before))


def _further(own: Sequence[Absent], groups: Sequence[NeuronGroup]) -> NDArray[np.float32] | None:
    """What was read of the next layer, or behind the last one the answers; None where that is not known."""
    if not groups:
        return torch.cat([one.said.values for one in own]).float().cpu().numpy()
    name = groups[0].name
    if len(groups) > 1 or any(name not in one.further for one in own):
        return None
    wide = torch.cat([one.further[name] for one in own])
    found: NDArray[np.float32] = wide.unflatten(1, (groups[0].size, -1)).mean(2).float().cpu().numpy()
    return found


def entry_of(movement: Movement, change: NDArray[np.float32]) -> dict[str, Any]:
    """An impact as JSON-ready data: the score and its parts, and the change of what is read further on."""
    return {
        "impact_score": movement.score,
        "mean_change": float(change.mean()),
        "max_change": float(change.max()),
        "safe_to_prune": movement.score < SAFE,
        "metrics": asdict(movement),
    }
