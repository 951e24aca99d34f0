"""One process for each measurement, forked from one that has the libraries loaded, so that imports are not timed.

The child sends facts as it learns them. It is ended by its own limit on processor time (see `limits`), or by the parent
after a longer time on the wall clock.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

WALL_SECONDS = 900.0

Facts = dict[str, Any]


class _Running(NamedTuple):
    task: Any
    process: multiprocessing.process.BaseProcess
    facts: Facts
    deadline: float


def run_each(tasks: Iterable[Any], measure: Callable[[Any, Callable[..., None]], None], jobs: int) -> Iterator[Any]:
    """Yield (task, facts) for every task as it is done, at most `jobs` at a time.

    Facts hold "failure" where the measurement raised, was ended ("hang") or its process died.
    """
    context = multiprocessing.get_context("fork")
    waiting, running = iter(tasks), dict[Connection, _Running]()
    exhausted = False
    while running or not exhausted:
        while len(running) < jobs and not exhausted:
            task = next(waiting, None)
            if task is None:
                exhausted = True
                break
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(task, measure, writer), daemon=True)
            process.start()
            writer.close()
            running[reader] = _Running(task, process, {}, time.monotonic() + WALL_SECONDS)
        for reader in wait(list(running), timeout=1.0):
            one = running[reader]  # type: ignore[index]
            try:
                one.facts.update(reader.recv())  # type: ignore[union-attr]
            except EOFError:
                del running[reader]  # type: ignore[arg-type]
                yield one.task, _ended(one)
        for one in running.values():
            if time.monotonic() > one.deadline and one.process.pid:
                os.kill(one.process.pid, signal.SIGPROF)


def _child(task: Any, measure: Callable[[Any, Callable[..., None]], None], writer: Connection) -> None:
    warnings.simplefilter("ignore")
    try:
        measure(task, lambda **facts: writer.send(facts))
    except BaseException as error:  # noqa: BLE001 (whatever it is, it is the result)
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(last.filename)}:{last.lineno}"  # noqa: PTH119
        message = " ".join(str(error).split())[:300]
        writer.send({"failure": "error", "why": f"{type(error).__name__}: {message} ({where})"})
    finally:
        writer.close()


def _ended(one: _Running) -> Facts:
    one.process.join()
    code = one.process.exitcode
    if code == -signal.SIGPROF:
        return {**one.facts, "failure": "hang", "why": f"over the time limit while in: {one.facts.get('stage')}"}
    if code:
        return {
            **one.facts,
            "failure": "error",
            "why": f"the process died with {code} while in: {one.facts.get('stage')}",
        }
    return one.facts
