"""Which neurons get more beside them: an immutable value like `PruningPlan`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from types import MappingProxyType
from typing import Any, Self

import torch

from pruner.plan import PruningPlan
from tracker.errors import PlanError
from tracker.files import read_json, write_json
from tracker.neuron_map import NeuronGroup, NeuronMap
from tracker.recommendations import Recommendations

FORMAT = "neuronscope/expansion-plan"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ExpansionPlan:
    """The neurons to add, by layer: each by the number of the one it is made of.

    Args:
        copy: for every layer, the neurons that get another one beside them, right after themselves; twice for two.
        fingerprint: structure of the model the plan was made for; a plan that has one fits no other structure.
        provenance: how the plan came about, as JSON-ready data.

    Raises:
        PlanError: an index is no integer or is negative; or the provenance is not JSON.

    >>> ExpansionPlan({"fc1": [3, 0, 3]}).copy["fc1"]
    (0, 3, 3)
    """

    copy: Mapping[str, tuple[int, ...]]
    fingerprint: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __init__(
        self,
        copy: Mapping[str, Iterable[int] | torch.Tensor],
        fingerprint: str | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(copy, Mapping):
            raise PlanError(
                f"A plan's neurons are {type(copy).__name__}, not a mapping of layers to indices.",
                hint='Write ExpansionPlan(copy={"fc1": [0, 5]}).',
            )
        sources: dict[str, tuple[int, ...]] = {}
        for layer, neurons in copy.items():
            raw: Any = neurons.tolist() if isinstance(neurons, torch.Tensor) else list(neurons)
            # A pruning plan knows what an index is. That one may be named twice is all that differs here.
            known = [PruningPlan({layer: [value]}).remove[layer][0] for value in raw]
            sources[layer] = tuple(sorted(known))
        object.__setattr__(self, "copy", MappingProxyType(sources))
        object.__setattr__(self, "fingerprint", fingerprint)
        object.__setattr__(self, "provenance", PruningPlan({}, None, provenance).provenance)

    def __reduce__(self) -> tuple[type[ExpansionPlan], tuple[dict[str, tuple[int, ...]], str | None, dict[str, Any]]]:
        """Copy and pickle by value: a read-only view of a dictionary can do neither itself."""
        return ExpansionPlan, (dict(self.copy), self.fingerprint, dict(self.provenance))

    @property
    def neurons(self) -> int:
        """Number of neurons the plan adds, over all layers."""
        return sum(map(len, self.copy.values()))

    @classmethod
    def to_sizes(cls, neurons: NeuronMap, sizes: Mapping[str, int], seed: int = 0) -> Self:
        """A plan that gives layers these sizes, the neurons to copy drawn at random as Net2Net does.

        No neuron is copied a second time before all were once. Raises `PlanError` for a size below that of the layer,
        and `UnknownLayerError`.
        """
        random = torch.Generator().manual_seed(seed)
        copy: dict[str, list[int]] = {}
        for layer, size in sizes.items():
            group = neurons[layer]
            if type(size) is not int or size < group.size:
                raise PlanError(
                    f"Layer '{layer}' has {group.size} neurons; {size!r} is no size to expand it to.",
                    hint="Give a larger whole number; to make it smaller, prune it.",
                )
            drawn: list[int] = []
            while len(drawn) < size - group.size:
                drawn += torch.randperm(group.size, generator=random).tolist()
            if size > group.size:
                copy[group.name] = drawn[: size - group.size]
        return cls(copy, neurons.fingerprint or None, {"strategy": "net2net", "seed": seed})

    @classmethod
    def recommended(cls, neurons: NeuronMap, recommendations: Recommendations, seed: int = 0) -> Self:
        """The sizes that a tracker recommends for layers at their limits, up to the next one that runs."""
        sizes = {entry.layer: entry.suggested for entry in recommendations.expand}
        return cls.to_sizes(
            neurons, {name: size + -size % neurons[name].multiple for name, size in sizes.items()}, seed
        )

    def resolve(self, neurons: NeuronMap) -> dict[str, dict[int, int]]:
        """The plan on one model: for every group that grows its name, and how often each neuron is copied.

        Raises:
            PlanError: the plan was made for another structure, an index is out of range, two names mean the same layer,
                or the layer cannot grow: it is not exact, or consists of experts.
            UnknownLayerError: the model has no such layer, or it is frozen; names the nearest.
        """
        once = PruningPlan({layer: set(sources) for layer, sources in self.copy.items()}, self.fingerprint)
        once.check_fingerprint(neurons)
        named: dict[str, str] = {}
        resolved: dict[str, dict[int, int]] = {}
        for layer, sources in self.copy.items():
            group = neurons[layer]
            if group.name in named:
                raise PlanError(
                    f"The plan lists one layer twice: '{named[group.name]}' and '{layer}' are the same neurons.",
                    hint=f"Put all of its neurons under '{group.name}'.",
                )
            named[group.name] = layer
            group.indices(once.remove[layer])
            if sources:
                _check_growth(layer, group, group.size + len(sources))
                resolved[group.name] = dict(Counter(sources))
        return resolved

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON-ready data; `from_json` is its inverse."""
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "copy": {layer: list(indices) for layer, indices in self.copy.items()},
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Rebuild a plan; raises `PlanError` where the data is not one of this version."""
        if not isinstance(data, Mapping) or (data.get("format"), data.get("version")) != (FORMAT, FORMAT_VERSION):
            raise PlanError(
                f"Not an expansion plan of version {FORMAT_VERSION}.", hint="Give a file written by ExpansionPlan.save."
            )
        if set(data) != {"format", "version", "fingerprint", "copy", "provenance"}:
            raise PlanError("The expansion plan has other keys than one has.", hint="Write it with ExpansionPlan.save.")
        return cls(data["copy"], data["fingerprint"], data["provenance"])

    def save(self, path: str | PathLike[str]) -> None:
        """Write the plan as JSON, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a plan written by `save`; raises `StorageError` if it is missing, `PlanError` if it is malformed."""
        return cls.from_json(read_json(path, what="an expansion plan", error=PlanError))


def _check_growth(layer: str, group: NeuronGroup, size: int) -> None:
    if not group.exact:
        why = group.note or "what one neuron does depends on how many there are"
        raise PlanError(
            f"Layer '{layer}' is not exact ({why}): with more neurons the model would be another function.",
            hint="Expand layers that are exact.",
        )
    if group.kind == "expert":
        raise PlanError(
            f"Layer '{layer}' consists of experts: a copy would be chosen beside its original, in place of another.",
            hint="Expand the neurons inside the experts.",
        )
    if size % group.multiple:
        raise PlanError(
            f"The plan gives layer '{layer}' {size} neurons; only multiples of {group.multiple} run.",
            hint=f"Give it {size + -size % group.multiple}.",
        )
