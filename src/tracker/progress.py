"""A progress bar for any step that turns out to be long, and silence for the others.

The bar goes to the standard error stream, appears once the step has lasted two seconds, and leaves nothing behind. It
stays away where no one looks on (the stream is not a terminal), unless `NEURONSCOPE_PROGRESS=1` asks for it: then every
long step leaves one line in the log.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

Listener = Callable[[str, int, int | None, int], None]
"""(description, steps done, steps in all, how many other steps it lies in). What it raises ends the step."""

PATIENCE_SECONDS = 2.0

# One console for all bars: rich stacks the bars of one console (an epoch's inside a run's) and mixes those of two.
_console = Console(stderr=True)
_enabled: bool | None = None
_listener: Listener | None = None
_depth = 0


def set_enabled(enabled: bool | None) -> None:
    """Show bars always (True) or never (False) in this process; None returns to the rule of the module."""
    global _enabled
    _enabled = enabled


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within the block, tell the listener of every step of this process as it goes on, however short."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def progress(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """The items of `iterable`, with a bar once the step has lasted two seconds.

    `total` is the number of items; by default the length of `iterable` where it has one.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with _bar(description, total) as bar, _heard(description, total) as told:
        for done, item in enumerate(iterable, 1):
            yield item
            if bar is not None:
                bar.advance(bar.task_ids[0])
            told(done)


@contextmanager
def step(description: str) -> Iterator[None]:
    """A step without countable parts: a bar that only says that work goes on, once it has lasted two seconds."""
    with _bar(description, None), _heard(description, None):
        yield


@contextmanager
def _heard(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    global _depth
    depth, _depth = _depth, _depth + 1

    def tell(done: int) -> None:
        if _listener is not None:
            _listener(description, done, total, depth)

    try:
        tell(0)
        yield tell
    finally:
        _depth = depth


@contextmanager
def _bar(description: str, total: int | None) -> Iterator[Progress | None]:
    if not _wanted():
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(
        *columns,
        TimeRemainingColumn(),
        console=_console,
        transient=_console.is_terminal,
        redirect_stdout=False,  # what a command prints is its answer: it must not end up among the bars on stderr
    )
    bar.add_task(description, total=total)
    # A timer, because the first item alone may be what takes long.
    timer = threading.Timer(PATIENCE_SECONDS, _show, [bar])
    timer.daemon = True
    timer.start()
    try:
        yield bar
    finally:
        timer.cancel()
        timer.join()
        if bar.live.is_started:
            bar.stop()


def _show(bar: Progress) -> None:
    bar.start()
    bar.refresh()  # a bar inside another one is not drawn by its own start


def _wanted() -> bool:
    if _enabled is not None:
        return _enabled
    return _console.is_terminal or os.environ.get("NEURONSCOPE_PROGRESS") == "1"
