"""What a pruning did, or would do: the answer of `prune_` and `check`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pruner.equivalence import Agreement
from pruner.plan import PruningPlan


class IntegerChange(NamedTuple):
    """An integer attribute that followed the neurons; `path` leads to it from the module."""

    module: str
    path: tuple[str | int, ...]
    old: int
    new: int


@dataclass(frozen=True)
class PruneResult:
    """What a pruning did, or would do.

    `plan` is the plan as carried out, under the groups' own names and with the fingerprint of the model before.
    `proof` is the comparison of the sliced with the masked model, or None where none was made; `unproven` says why.
    `repaired` are the tensors that were given new values before.
    """

    neurons_before: int
    neurons_after: int
    parameters_before: int
    parameters_after: int
    removed: Mapping[str, int]
    sizes: Mapping[str, int]
    integers: tuple[IntegerChange, ...]
    plan: PruningPlan
    fingerprint: str
    proof: Agreement | None
    unproven: str = ""
    repaired: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The result as JSON-ready data."""
        return {
            "neurons_before": self.neurons_before,
            "neurons_after": self.neurons_after,
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "removed": dict(self.removed),
            "integers": [
                {"module": change.module, "path": list(change.path), "old": change.old, "new": change.new}
                for change in self.integers
            ],
            "plan": self.plan.to_json(),
            "fingerprint": self.fingerprint,
            "proof": None
            if self.proof is None
            else {"output": self.proof.output, "error": self.proof.error, "tolerance": self.proof.tolerance},
            "unproven": self.unproven,
            "repaired": list(self.repaired),
        }
