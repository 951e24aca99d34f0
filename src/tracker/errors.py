"""Every error this project raises on purpose: what happened, with which value, and what to do about it.

All of them are `NeuronScopeError`, so one `except` catches the project. Each also is the built-in error that a caller
who has never heard of this project would expect (`ValueError` for a bad argument, `OSError` for a full disk, …).
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class NeuronScopeError(Exception):
    """Base of the hierarchy.

    `what` says what happened and names the value; `hint` says the way out and may be empty. `code` is a short, stable
    word for programs that have to tell one kind from another.

    >>> str(NeuronScopeError("Sparsity is 1.5.", hint="Give a number from 0 to 1."))
    'Sparsity is 1.5. Give a number from 0 to 1.'
    """

    code: ClassVar[str] = "neuronscope"

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what} {self.hint}".strip()


class DiscoveryError(NeuronScopeError):
    """The neurons of a model could not be found: no example inputs that run, or a forward that cannot be traced."""

    code = "discovery"


class DataError(NeuronScopeError, ValueError):
    """Data that cannot be used: an empty loader, NaN or Inf, a batch of an unknown type."""

    code = "data"


class PlanError(NeuronScopeError, ValueError):
    """A pruning plan that cannot be carried out on this model."""

    code = "plan"


class UnknownLayerError(PlanError, KeyError):
    """A name that belongs to no neuron group of the model."""

    code = "unknown-layer"


class ConfigError(NeuronScopeError, ValueError):
    """A configuration key or value that is not allowed."""

    code = "config"


class RecommendationError(NeuronScopeError, ValueError):
    """Recommendations that are malformed or that belong to another model."""

    code = "recommendations"


class VerificationError(NeuronScopeError, RuntimeError):
    """A pruned model that is not what the plan says it should be."""

    code = "verification"


class StorageError(NeuronScopeError, OSError):
    """A file that cannot be read or written."""

    code = "storage"


class CheckpointError(NeuronScopeError, ValueError):
    """A saved model that does not match its manifest or the model it is loaded into."""

    code = "checkpoint"


class ExportError(NeuronScopeError, RuntimeError):
    """A model that cannot be written for another runtime."""

    code = "export"


class MissingExtraError(NeuronScopeError, ImportError):
    """A feature whose optional dependency is not installed."""

    code = "missing-extra"


class ModelNameError(NeuronScopeError, ValueError):
    """A model name that leads to no model."""

    code = "model-name"


def nearest(name: str, candidates: Iterable[str]) -> str:
    """The end of an error message that suggests the candidate closest to `name`, or "" when none is close.

    >>> nearest("conv11", ["conv1", "fc"])
    " Did you mean 'conv1'?"
    """
    matches = get_close_matches(name, list(candidates), n=1)
    return f" Did you mean '{matches[0]}'?" if matches else ""
