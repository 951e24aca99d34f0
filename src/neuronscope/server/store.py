"""What the server must not forget: jobs and what happened in them, results, and selections; one SQLite file."""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tracker.errors import StorageError

VERSION = 1
EVENTS_KEPT = 200
"""Of a job's progress, so many of the latest events are kept for replay; of its states, all."""
STATES = ("queued", "running", "done", "failed", "cancelled", "interrupted")
OVER = ("done", "failed", "cancelled", "interrupted")

_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, params TEXT NOT NULL, model TEXT NOT NULL, key TEXT,
    state TEXT NOT NULL, description TEXT NOT NULL DEFAULT '', share REAL, eta REAL, error TEXT,
    cached INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL, started REAL, finished REAL
);
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_of_job ON events (job, number);
CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, body BLOB NOT NULL, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS selections (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, model TEXT NOT NULL, fingerprint TEXT NOT NULL, neurons TEXT NOT NULL,
    created REAL NOT NULL, changed REAL NOT NULL
);
"""


class Store:
    """All of it, safe to use from any thread; each has its own connection.

    Jobs that were queued or running when the last server ended are `interrupted` from the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._writing = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._write() as base:
                version = int(base.execute("PRAGMA user_version").fetchone()[0])
                if version not in (0, VERSION):
                    raise StorageError(
                        f"{path} is of version {version}; this one reads {VERSION}.", hint="Name another folder."
                    )
                base.executescript(_TABLES)
                base.execute(f"PRAGMA user_version = {VERSION}")
        except (OSError, sqlite3.DatabaseError) as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"Cannot keep jobs in {path}: {error}.", hint="Name another folder.") from error
        for job in self.jobs(states=("queued", "running")):
            self.finish(job["id"], "interrupted")

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._writing, self._connection as base:
            yield base

    @property
    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._local, "base"):
            base = sqlite3.connect(self._path, timeout=30)
            base.row_factory = sqlite3.Row
            base.execute("PRAGMA journal_mode = WAL")
            base.execute("PRAGMA synchronous = NORMAL")
            self._local.base = base
        found: sqlite3.Connection = self._local.base
        return found

    # jobs

    def add_job(self, kind: str, params: Mapping[str, Any], model: str, key: str | None) -> str:
        """A new job in the queue; returns its id."""
        job = secrets.token_urlsafe(9)
        with self._write() as base:
            base.execute(
                "INSERT INTO jobs (id, kind, params, model, key, state, created) VALUES (?, ?, ?, ?, ?, 'queued', ?)",
                (job, kind, json.dumps(params), model, key, time.time()),
            )
        self.add_event(job, "state", {"state": "queued"})
        return job

    def job(self, job: str) -> dict[str, Any] | None:
        """A job as clients see it, without its result."""
        row = self._connection.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone()
        return None if row is None else _job(row)

    def jobs(self, states: tuple[str, ...] = STATES, limit: int = 200) -> list[dict[str, Any]]:
        """The latest jobs, the newest first."""
        marks = ",".join("?" * len(states))
        query = f"SELECT * FROM jobs WHERE state IN ({marks}) ORDER BY created DESC, rowid DESC LIMIT ?"  # noqa: S608
        return [_job(row) for row in self._connection.execute(query, (*states, limit))]

    def start(self, job: str) -> None:
        """The job runs now."""
        with self._write() as base:
            base.execute("UPDATE jobs SET state = 'running', started = ? WHERE id = ?", (time.time(), job))
        self.add_event(job, "state", {"state": "running"})

    def progress(self, job: str, description: str, share: float | None, eta: float | None) -> None:
        """How far it is: `share` of all work, `eta` in seconds; None where that is not known."""
        with self._write() as base:
            base.execute(
                "UPDATE jobs SET description = ?, share = ?, eta = ? WHERE id = ?", (description, share, eta, job)
            )
        self.add_event(job, "progress", {"description": description, "share": share, "eta_seconds": eta})

    def finish(self, job: str, state: str, *, error: Mapping[str, Any] | None = None, cached: bool = False) -> None:
        """The job is over."""
        with self._write() as base:
            base.execute(
                "UPDATE jobs SET state = ?, error = ?, cached = ?, finished = ?, eta = NULL WHERE id = ?",
                (state, None if error is None else json.dumps(error), cached, time.time(), job),
            )
        self.add_event(job, "state", {"state": state, "error": error})

    # events

    def add_event(self, job: str, kind: str, data: Mapping[str, Any]) -> None:
        """Something that happened, for everybody who listens now or asks later."""
        with self._write() as base:
            number = base.execute(
                "INSERT INTO events (job, kind, data) VALUES (?, ?, ?)", (job, kind, json.dumps(data))
            ).lastrowid
            if kind == "progress" and number is not None and number % EVENTS_KEPT == 0:
                base.execute(
                    "DELETE FROM events WHERE kind = 'progress' AND job = ? AND number NOT IN "
                    "(SELECT number FROM events WHERE job = ? ORDER BY number DESC LIMIT ?)",
                    (job, job, EVENTS_KEPT),
                )

    def events(self, job: str, after: int = 0) -> list[tuple[int, str, dict[str, Any]]]:
        """(number, kind, data) of what happened in a job after event number `after`."""
        rows = self._connection.execute(
            "SELECT number, kind, data FROM events WHERE job = ? AND number > ? ORDER BY number", (job, after)
        )
        return [(row["number"], row["kind"], json.loads(row["data"])) for row in rows]

    # results

    def keep(self, key: str, body: bytes) -> None:
        """A result, by what was asked."""
        with self._write() as base:
            base.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?)", (key, body, time.time()))

    def result(self, key: str) -> bytes | None:
        """What was answered before."""
        row = self._connection.execute("SELECT body FROM results WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row["body"])

    # selections

    def keep_selection(
        self, name: str, model: str, fingerprint: str, neurons: list[list[int]], selection: str | None = None
    ) -> dict[str, Any]:
        """A new selection, or another content for one."""
        now = time.time()
        chosen = selection or secrets.token_urlsafe(9)
        with self._write() as base:
            base.execute(
                "INSERT INTO selections VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                "name = excluded.name, neurons = excluded.neurons, changed = excluded.changed",
                (chosen, name, model, fingerprint, json.dumps(neurons), now, now),
            )
        found = self.selection(chosen)
        assert found is not None  # noqa: S101 (it was written above)
        return found

    def selection(self, selection: str) -> dict[str, Any] | None:
        """A selection with its neurons."""
        row = self._connection.execute("SELECT * FROM selections WHERE id = ?", (selection,)).fetchone()
        return None if row is None else _selection(row)

    def selections(self) -> list[dict[str, Any]]:
        """All of them, the newest first."""
        rows = self._connection.execute("SELECT * FROM selections ORDER BY created DESC")
        return [_selection(row) for row in rows]

    def drop_selection(self, selection: str) -> bool:
        """Whether it was there."""
        with self._write() as base:
            return base.execute("DELETE FROM selections WHERE id = ?", (selection,)).rowcount > 0


def _job(row: sqlite3.Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "kind": row["kind"],
        "params": json.loads(row["params"]),
        "model": row["model"],
        "key": row["key"],
        "state": row["state"],
        "description": row["description"],
        "share": row["share"],
        "eta_seconds": row["eta"],
        "error": None if row["error"] is None else json.loads(row["error"]),
        "cached": bool(row["cached"]),
        "created": row["created"],
        "started": row["started"],
        "finished": row["finished"],
    }


def _selection(row: sqlite3.Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "name": row["name"],
        "model": row["model"],
        "fingerprint": row["fingerprint"],
        "neurons": json.loads(row["neurons"]),
        "created": row["created"],
        "changed": row["changed"],
    }
