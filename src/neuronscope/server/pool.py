"""Who runs the jobs: a queue, and for each device a worker process that is replaced when it dies or will not stop."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import multiprocessing
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from neuronscope.server.problems import Problem
from neuronscope.server.store import OVER, Store

logger = logging.getLogger("neuronscope.server")

KINDNESS_SECONDS = 0.4
"""A worker that is to stop and does not within this time is ended; the next one loads the model again."""
HEARTBEAT_SECONDS = 0.4
TICK_SECONDS = 0.05


class Pool:
    """Runs jobs one after the other on every device. What happens to them is written into the store."""

    def __init__(self, store: Store, folder: Path, devices: Sequence[str | None], most: int) -> None:
        self.store = store
        self._folder, self._most = folder, most
        self._queue: deque[str] = deque()
        self._changed = threading.Condition()
        self._cancelled: set[str] = set()
        self._waiting: dict[str, list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}
        self._closing = False
        self._threads = [
            threading.Thread(target=self._serve, args=(device,), name=f"jobs-{device}", daemon=True)
            for device in devices
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, kind: str, params: Mapping[str, Any], model: str, fingerprint: str | None) -> str:
        """Queue a job, or find its result among those known; returns its id.

        The result is known by the model's content (`fingerprint`), the kind and the parameters; without a fingerprint
        it is not looked for. Raises `Problem` 429 where the queue is full.
        """
        key = None
        if fingerprint is not None:
            key = key_of(kind, fingerprint, params)
        with self._changed:
            if key is not None and self.store.result(key) is not None:
                job = self.store.add_job(kind, params, model, key)
                self.store.finish(job, "done", cached=True)
                return job
            if len(self._queue) >= self._most:
                raise Problem(
                    429,
                    f"{len(self._queue)} jobs are waiting, and no more than {self._most} may.",
                    "Wait for some to finish, or cancel them.",
                    Retry_After="5",
                )
            job = self.store.add_job(kind, params, model, key)
            self._queue.append(job)
            self._changed.notify()
        return job

    def cancel(self, job: str) -> None:
        """Let a job end, at once where it waits, within a second where it runs; one that is over stays as it is."""
        with self._changed:
            if job in self._queue:
                self._queue.remove(job)
                self._over(job, "cancelled")
            elif (found := self.store.job(job)) is not None and found["state"] == "running":
                self._cancelled.add(job)

    async def wait(self, job: str) -> dict[str, Any]:
        """The job when it is over."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        with self._changed:
            found = self.store.job(job)
            if found is not None and found["state"] in OVER:
                return found
            self._waiting.setdefault(job, []).append((loop, over))
        await over.wait()
        found = self.store.job(job)
        assert found is not None  # noqa: S101 (jobs are never deleted)
        return found

    def result(self, job: Mapping[str, Any]) -> bytes | None:
        """The result of a job that is done, as JSON."""
        return self.store.result(job["key"] or job["id"]) if job["state"] == "done" else None

    def close(self) -> None:
        """End the workers; what runs or waits is interrupted."""
        with self._changed:
            self._closing = True
            waiting = list(self._queue)
            self._queue.clear()
            for job in waiting:
                self._over(job, "interrupted")
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=5)

    def _over(self, job: str, state: str, **more: Any) -> None:
        self.store.finish(job, state, **more)
        self._cancelled.discard(job)
        for loop, event in self._waiting.pop(job, ()):
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    def _serve(self, device: str | None) -> None:
        worker = _Worker(self._folder, device)
        try:
            while (job := self._next()) is not None:
                try:
                    self._run(worker, job)
                except Exception:  # a thread that dies would leave every later job waiting
                    logger.exception("Job %s could not be run.", job)
                    worker.end()
                    with self._changed:
                        self._over(job, "failed", error=_died("The job could not be run."))
        finally:
            worker.end(kindly=True)

    def _next(self) -> str | None:
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            if self._closing:
                return None
            job = self._queue.popleft()
            self.store.start(job)
            return job

    def _run(self, worker: _Worker, job: str) -> None:
        found = self.store.job(job)
        assert found is not None  # noqa: S101 (jobs are never deleted)
        worker.send({"job": job, **{name: found[name] for name in ("kind", "model", "params")}})
        started = said = time.monotonic()
        last: dict[str, Any] = {"description": "starting", "share": None}
        asked_to_stop: float | None = None
        while True:
            message = worker.receive(TICK_SECONDS)
            now = time.monotonic()
            if message is not None and message["job"] == job:
                if "partial" in message:
                    self.store.add_event(job, "partial", message["partial"])
                elif "progress" in message:
                    last = message["progress"]
                else:
                    break
            if asked_to_stop is None and (job in self._cancelled or self._closing):
                worker.stop.set()
                asked_to_stop = now
            stubborn = asked_to_stop is not None and now - asked_to_stop > KINDNESS_SECONDS
            if stubborn or (message is None and not worker.alive):
                worker.end()
                message = {"cancelled": True} if asked_to_stop is not None else {"error": _died()}
                break
            if message is not None or now - said > HEARTBEAT_SECONDS:
                self.store.progress(job, last["description"], last["share"], _eta(last["share"], now - started))
                said = now
        with self._changed:
            self._finish(found, message)

    def _finish(self, job: Mapping[str, Any], message: Mapping[str, Any]) -> None:
        if "result" in message:
            self.store.keep(job["key"] or job["id"], message["result"])
            self._over(job["id"], "done")
        elif "cancelled" in message:
            self._over(job["id"], "interrupted" if self._closing else "cancelled")
        else:
            self._over(job["id"], "failed", error=message["error"])


def key_of(kind: str, fingerprint: str, params: Mapping[str, Any]) -> str:
    """Under which the answer to a question about a model of these weights is kept."""
    asked = json.dumps([kind, fingerprint, params], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


class _Worker:
    """A process, started when it is first needed."""

    def __init__(self, folder: Path, device: str | None) -> None:
        self._folder, self._device = folder, device
        self._context = multiprocessing.get_context("spawn")  # a fork would share the threads' locks, and CUDA's state
        self._process: Any = None
        self._pipe: Connection | None = None
        self.stop = self._context.Event()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def send(self, order: Mapping[str, Any]) -> None:
        if not self.alive:
            self.end()
            self._start()
        self.stop.clear()
        assert self._pipe is not None  # noqa: S101 (it was started above)
        self._pipe.send(dict(order))

    def receive(self, seconds: float) -> dict[str, Any] | None:
        if self._pipe is None:
            return None
        try:
            if self._pipe.poll(seconds):
                found: dict[str, Any] = self._pipe.recv()
                return found
        except (EOFError, OSError):
            time.sleep(seconds)
        return None

    def end(self, kindly: bool = False) -> None:
        """Kindly: an idle worker sees that the pipe is closed, and leaves nothing behind."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is not None:
            if kindly:
                self._process.join(timeout=KINDNESS_SECONDS)
            self._process.kill()
            self._process.join(timeout=5)
            self._process = None

    def _start(self) -> None:
        from neuronscope.server.worker import run

        self.stop = self._context.Event()
        self._pipe, theirs = self._context.Pipe()
        arguments = (theirs, self.stop, str(self._folder), self._device)
        self._process = self._context.Process(target=run, args=arguments, daemon=True)
        self._process.start()
        theirs.close()


def _eta(share: float | None, seconds: float) -> float | None:
    return None if not share else seconds * (1 - share) / share


def _died(what: str = "The process that ran the job ended.") -> dict[str, Any]:
    return {"status": 500, "error": what, "details": "It may have run out of memory: ask for less.", "code": "worker"}
