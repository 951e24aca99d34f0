"""A time limit on what is measured, how long it took, and how much memory.

Seconds are processor time of one thread, so that a busy machine changes little about them. The limit is on the same
clock, and the system enforces it, so that no loop inside a library escapes.
"""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HANG_SECONDS = 30.0
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def limited(seconds: float = HANG_SECONDS) -> Iterator[None]:
    """End the whole process, by SIGPROF, when the block uses more processor time than this."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


class Clock:
    """Processor seconds since the last look."""

    def __init__(self) -> None:
        self._last = time.process_time()

    def lap(self) -> float:
        """Seconds since the clock was made or last asked."""
        now = time.process_time()
        taken, self._last = now - self._last, now
        return taken


class Peak:
    """The most memory since this was made, beyond what the process held then, in MiB."""

    def __init__(self) -> None:
        if _CLEAR.exists():
            _CLEAR.write_text("5")  # forget the peak so far
        self._before = _resident("VmRSS") or _most()

    def mib(self) -> float:
        """The peak so far."""
        return max(0.0, (_resident("VmHWM") or _most()) - self._before) / 1024


def _resident(field: str) -> int:
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)


def _most() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
