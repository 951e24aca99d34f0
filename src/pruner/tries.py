"""What `optimize` tried: a `compress` of a copy each, judged by the caller's metric, written down, never made twice."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from pruner.compensation.bench import copied
from pruner.compensation.targets import parameters_left
from pruner.compression import compress
from pruner.current_map import current_map
from pruner.execution import Results
from pruner.limits import LimitError
from pruner.metrics import count_parameters
from pruner.quality import Metric, judged
from tracker.errors import DataError
from tracker.files import read_json, write_json
from tracker.fingerprint import content_fingerprint
from tracker.neuron_map import NeuronMap
from tracker.progress import step as long_step

FORMAT_VERSION = 3


@dataclass(frozen=True)
class Point:
    """One try: what was asked of `compress` by which rule (a target, or a ratio for each kind), and what came of it.

    That is the share of neurons removed, of all and of each kind, the parameters left (share of the dense model's), the
    metric, and the neurons removed of every layer.
    """

    rule: str
    asked: Mapping[str, Mapping[str, float]]
    share: float
    kinds: Mapping[str, float]
    parameters: float
    metric: float
    remove: Mapping[str, Sequence[int]] = field(default_factory=dict, repr=False)


def pareto(points: Iterable[Point]) -> list[Point]:
    """The points that no other one beats in both size and metric, the smallest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.parameters, -point.metric)):
        if not front or point.metric > front[-1].metric:
            front.append(point)
    return front


class Tries:
    """What was tried, in memory and on disk; the same try is not made twice."""

    def __init__(
        self, model: nn.Module, data: Iterable[Any], metric: Metric, how: Mapping[str, Any], folder: Path | None
    ) -> None:
        self._model, self._data, self._metric, self._how = model, data, metric, how
        self._path = None if folder is None else folder / "tries.json"
        self._parameters = count_parameters(model)
        self._key = {
            "format": "neuronscope/tries",
            "version": FORMAT_VERSION,
            "model": content_fingerprint(model),
            "effort": how["effort"],
            "kinds": sorted(how["kinds"]),
            "seed": how["seed"],
            "config": how["config"].model_dump(mode="json"),
        }
        self._known: dict[str, dict[str, Any]] = {}
        if self._path is not None and self._path.is_file():
            saved = read_json(self._path, what="list of tries", error=DataError)
            if {name: saved.get(name) for name in self._key} != self._key:
                raise DataError(
                    f"{self._path} holds the tries of another model, or of another search.",
                    hint="Name another folder, or remove the file.",
                )
            self._known = dict(saved["tries"])
        self.evaluations = 0
        self.points: list[Point] = []
        whole = self._judged("dense", lambda: Point("dense", {}, 0.0, {}, 1.0, judged(metric, model)))
        self.dense = whole.metric if whole is not None else math.nan

    def at(self, rule: str, asked: Mapping[str, Mapping[str, float]], *, required: bool = False) -> Point | None:
        """Compress a copy and judge it; None where the limits do not allow so much and that is not `required`."""
        name = f"{rule} {json.dumps(asked, sort_keys=True)}"

        def attempt() -> Point | None:
            twin = copied(self._model)
            with long_step(f"Trying {name}"):
                try:
                    results = compress(twin, self._data, **without_kinds({**self._how, **asked, "budgets": rule}))
                except LimitError:
                    if required:
                        raise
                    return None
                shares = _shares_by_kind(results, current_map(self._model, self._data))
                gone = results["neurons_pruned"] / results["neurons_before"]
                return Point(
                    rule,
                    asked,
                    gone,
                    shares,
                    count_parameters(twin) / self._parameters,
                    judged(self._metric, twin),
                    results["plan"]["remove"],
                )

        point = self._judged(name, attempt)
        if point is not None and point not in self.points:
            self.points.append(point)
        return point

    def parameters_at(self, shares: Mapping[str, float]) -> float:
        """The share of the parameters left where every layer of a kind loses the same share, without a try."""
        neurons = current_map(self._model, self._data)
        counts = {group.name: int(shares.get(group.kind, 0.0) * group.size) for group in neurons if group.exact}
        return parameters_left(self._model, neurons, counts) / self._parameters

    def _judged(self, name: str, attempt: Callable[[], Point | None]) -> Point | None:
        if name not in self._known:
            point = attempt()
            self.evaluations += point is not None  # what the limits refuse costs next to nothing
            self._known[name] = {} if point is None else asdict(point)
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._path, {**self._key, "tries": self._known})
        return Point(**self._known[name]) if self._known[name] else None


def without_kinds(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `compress`, in which a ratio for each kind stands for the kinds."""
    return {name: value for name, value in options.items() if name != "kinds" or "ratio" not in options}


def _shares_by_kind(results: Results, neurons: NeuronMap) -> dict[str, float]:
    gone: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for name, layer in results["budgets"]["layers"].items():
        kind = neurons[name].kind
        gone[kind] = gone.get(kind, 0) + layer["removed"]
        sizes[kind] = sizes.get(kind, 0) + layer["neurons"]
    return {kind: gone[kind] / sizes[kind] for kind in sizes}
