"""What clients are told when something is wrong: a status and `{error, details}`, never a traceback."""

from __future__ import annotations

import logging
from typing import Any

from tracker.errors import (
    MissingExtraError,
    ModelNameError,
    NeuronScopeError,
    StorageError,
    UnknownLayerError,
    VerificationError,
)

logger = logging.getLogger("neuronscope.server")

_STATUS: tuple[tuple[type[NeuronScopeError], int], ...] = (
    (UnknownLayerError, 404),
    (ModelNameError, 404),
    (MissingExtraError, 501),
    (StorageError, 507),
    (VerificationError, 500),
)


class Problem(Exception):  # noqa: N818 (what HTTP calls it)
    """An answer that is no success."""

    def __init__(self, status: int, error: str, details: str = "", **headers: str) -> None:
        super().__init__(error)
        self.status, self.error, self.details = status, error, details
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def problem_of(error: Exception) -> dict[str, Any]:
    """An error as clients see it: `{status, error, details, code}`."""
    if isinstance(error, Problem):
        return {"status": error.status, "error": error.error, "details": error.details, "code": "request"}
    if isinstance(error, NeuronScopeError):
        status = next((number for kind, number in _STATUS if isinstance(error, kind)), 422)
        return {"status": status, "error": error.what, "details": error.hint, "code": error.code}
    logger.error("A job failed.", exc_info=error)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return {
            "status": 507,
            "error": "There is not enough memory for this.",
            "details": "Ask for less.",
            "code": "memory",
        }
    return {
        "status": 500,
        "error": f"Something went wrong here ({type(error).__name__}).",
        "details": "The server's log says more.",
        "code": "internal",
    }
