"""One walk through the dense model, block by block: every group of neurons with the moments of all that reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from pruner.compensation.bench import Bench
from pruner.compensation.closed_form import walk
from pruner.compensation.consumers import Consumer
from pruner.compensation.observation import Observed, observe


class Surveyed(NamedTuple):
    """A group's name, its consumers that ran, and what was observed of them, by their names."""

    group: str
    readers: Sequence[Consumer]
    observed: Mapping[str, Observed]


def survey(bench: Bench) -> Iterator[Surveyed]:
    """All groups of a bench whose consumers can be written as matrices, each once all its consumers were seen.

    Moments are forgotten when nobody needs them any more.
    """
    stages, consumers = bench.stages(), bench.consumers
    observed: dict[str, Observed] = {}
    waiting = {name: {c.name for c in consumers.reading(name)} for name in bench.groups if consumers.reading(name)}
    for stage, unit in walk(consumers.found, "Looking at what layers read", stages):
        if not any(name in waiting for consumer in unit for name in consumer.columns):
            continue
        observed |= observe(bench.neurons, stages, stages, stage, unit)
        seen = {consumer.name for consumer in unit}
        for name in [name for name, left in waiting.items() if left & seen]:
            waiting[name] -= seen
            if not waiting[name]:
                del waiting[name]
                readers = [consumer for consumer in consumers.reading(name) if consumer.name in observed]
                if readers:
                    yield Surveyed(name, readers, observed)
        needed = {consumer.name for name in waiting for consumer in consumers.reading(name)}
        observed = {name: one for name, one in observed.items() if name in needed}
