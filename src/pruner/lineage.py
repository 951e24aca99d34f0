"""What was done to a model so far: records that the model carries, and copies of it too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from pruner.snapshot import Snapshot
from tracker.admission import unwrapped

HISTORY = "_neuronscope_history"


def pruning_history(model: nn.Module) -> tuple[dict[str, Any], ...]:
    """What was removed from this model so far, or added, oldest first: one JSON-ready record for every change.

    The model carries it, so copies of the model have it too. A record has the structure fingerprint before
    (`fingerprint`) and after (`result`), for every layer its size before and the indices removed (`layers`; `copied`
    names those that more were made of), the integers that changed (`integers`), the parameters before and after, the
    proof's numbers or None, the names of the tensors that were given new values (`repaired`), and the plan's
    provenance.
    """
    return tuple(json.loads(record) for record in vars(unwrapped(model)).get(HISTORY, ()))


def recorded(model: nn.Module, record: Mapping[str, Any], snapshot: Snapshot) -> None:
    """Add to the model's history, as text: discovery looks for integers in attributes, and this holds thousands."""
    snapshot.hold(model, HISTORY)
    vars(model)[HISTORY] = (*vars(model).get(HISTORY, ()), json.dumps(record))
