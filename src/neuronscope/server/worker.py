"""The process that holds the models: it runs one job at a time, tells how far it is, and stops when it is told to.

Work is in a process of its own so that the server answers while it goes on, and so that what cannot be stopped kindly
can be ended. Both sides speak over one pipe, in plain data.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

SECONDS_BETWEEN = 0.2
NICENESS = 10
"""Who reads should not wait for who works: a job takes the processors only where the server does not want them."""


class Cancelled(BaseException):
    """Raised inside a job whose end was asked for; no code of a job may catch it by accident."""


def run(pipe: Connection, stop: Event, folder: str, device: str | None) -> None:
    """The life of a worker: until the pipe closes, take jobs and answer them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which closes the pipe
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    from neuronscope.server.session import Session
    from tracker.progress import listening

    session = Session(Path(folder), device)
    while True:
        try:
            order = pipe.recv()
        except (EOFError, OSError):
            return
        job = order["job"]
        session.tell = partial(_part, pipe, job)
        with listening(_Teller(pipe, stop, job)):
            answer = _answered(session, order)
        try:
            pipe.send({"job": job, **answer})
        except (BrokenPipeError, OSError):
            return


def _part(pipe: Connection, job: str, found: Mapping[str, Any]) -> None:
    pipe.send({"job": job, "partial": dict(found)})


class _Teller:
    """Passes progress on, not too often, and raises `Cancelled` where the job is to end."""

    def __init__(self, pipe: Connection, stop: Event, job: str) -> None:
        self._pipe, self._stop, self._job = pipe, stop, job
        self._said = 0.0
        self._shares: list[tuple[int, int | None]] = []
        self._described = ""

    def __call__(self, description: str, done: int, total: int | None, depth: int) -> None:
        if self._stop.is_set():
            raise Cancelled
        self._shares = [*self._shares[:depth], *[(0, None)] * (depth - len(self._shares)), (done, total)]
        now = time.monotonic()
        if now - self._said < SECONDS_BETWEEN and description == self._described:
            return
        self._said, self._described = now, description
        self._pipe.send({"job": self._job, "progress": {"description": description, "share": self._share()}})

    def _share(self) -> float | None:
        """How much of the outermost countable step is done, with what is done of the steps inside it."""
        share, part, known = 0.0, 1.0, False
        for done, total in self._shares:
            if total:
                known = True
                share += part * min(done, total) / total
                part /= total
        return min(share, 1.0) if known else None


def _answered(session: Any, order: Mapping[str, Any]) -> dict[str, Any]:
    from neuronscope.server.problems import problem_of

    try:
        result = session.run(order["kind"], order["model"], order["params"])
        return {"result": json.dumps(result, allow_nan=False).encode()}
    except Cancelled:
        return {"cancelled": True}
    except Exception as error:  # noqa: BLE001 (whatever a job does, the worker lives on)
        return {"error": problem_of(error)}
