"""The record of all jobs. It outlives the service; SQLite keeps it whole."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

QUEUED, RUNNING, COMPLETED, FAILED = "IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED"
CANCELLED, TIMED_OUT = "CANCELLED", "TIMED_OUT"
OPEN = (QUEUED, RUNNING)

Job = dict[str, Any]

_TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
  number INTEGER PRIMARY KEY,
  id TEXT UNIQUE NOT NULL,
  status TEXT NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0,
  created REAL NOT NULL,
  started REAL,
  finished REAL,
  input TEXT,
  output TEXT
);
CREATE INDEX IF NOT EXISTS jobs_status ON jobs (status, number);
"""


class FullError(Exception):
    """As many jobs wait as may."""


class Store:
    """Jobs by id. All methods may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
        self._base.row_factory = sqlite3.Row
        self._base.execute("PRAGMA journal_mode = WAL")
        self._base.execute("PRAGMA synchronous = FULL")
        self._base.executescript(_TABLE)

    def add(self, id_: str, request: dict[str, Any], most: int) -> tuple[Job, bool]:
        """Accept a job, and say whether it is new. One that is known is answered from the record."""
        with self._lock, self._transaction():
            row = self._one(id_)
            if row is not None:
                return row, False
            (waiting,) = self._base.execute("SELECT COUNT(*) FROM jobs WHERE status = ?", (QUEUED,)).fetchone()
            if waiting >= most:
                raise FullError
            self._base.execute(
                "INSERT INTO jobs (id, status, created, input) VALUES (?, ?, ?, ?)",
                (id_, QUEUED, time.time(), json.dumps(request)),
            )
            return self._known(id_), True

    def take(self) -> Job | None:
        """Begin with the oldest job that waits."""
        with self._lock, self._transaction():
            row = self._base.execute(
                "UPDATE jobs SET status = ?, started = ?, attempts = attempts + 1 WHERE number = "
                "(SELECT number FROM jobs WHERE status = ? ORDER BY number LIMIT 1) RETURNING *",
                (RUNNING, time.time(), QUEUED),
            ).fetchone()
            return None if row is None else _job(row)

    def get(self, id_: str) -> Job | None:
        """Return a job, or None where there is none of that id."""
        with self._lock:
            return self._one(id_)

    def finish(self, id_: str, status: str, output: dict[str, Any], only: str = RUNNING) -> bool:
        """Write down the end of a job, and forget what it was given; say whether it was in the state ``only``."""
        with self._lock, self._transaction():
            done = self._base.execute(
                "UPDATE jobs SET status = ?, output = ?, finished = ?, input = NULL WHERE id = ? AND status = ?",
                (status, json.dumps(output), time.time(), id_, only),
            )
            return done.rowcount == 1

    def put_back(self, id_: str) -> None:
        """Let a job that could not go on wait again, as if it had not begun."""
        with self._lock, self._transaction():
            self._base.execute(
                "UPDATE jobs SET status = ?, attempts = attempts - 1 WHERE id = ? AND status = ?",
                (QUEUED, id_, RUNNING),
            )

    def recover(self, most_attempts: int, reason: dict[str, Any]) -> None:
        """After a start: let jobs that were cut off wait again, and fail those that were so too often."""
        with self._lock, self._transaction():
            self._base.execute(
                "UPDATE jobs SET status = ?, output = ?, finished = ?, input = NULL WHERE status = ? AND attempts >= ?",
                (FAILED, json.dumps(reason), time.time(), RUNNING, most_attempts),
            )
            self._base.execute("UPDATE jobs SET status = ? WHERE status = ?", (QUEUED, RUNNING))

    def counts(self) -> dict[str, int]:
        """How many jobs there are in each state."""
        with self._lock:
            return dict(self._base.execute("SELECT status, COUNT(*) FROM jobs GROUP BY status").fetchall())

    def forget(self, older_than_s: float) -> None:
        """Drop jobs that have ended long ago."""
        with self._lock, self._transaction():
            self._base.execute("DELETE FROM jobs WHERE finished < ?", (time.time() - older_than_s,))

    def close(self) -> None:
        """Close the record."""
        with self._lock:
            self._base.close()

    def _one(self, id_: str) -> Job | None:
        row = self._base.execute("SELECT * FROM jobs WHERE id = ?", (id_,)).fetchone()
        return None if row is None else _job(row)

    def _known(self, id_: str) -> Job:
        job = self._one(id_)
        assert job is not None, id_  # noqa: S101 (it was written a line ago)
        return job

    def _transaction(self) -> _Transaction:
        return _Transaction(self._base)


class _Transaction:
    def __init__(self, base: sqlite3.Connection) -> None:
        self._base = base

    def __enter__(self) -> None:
        self._base.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._base.in_transaction:
            self._base.execute("COMMIT" if kind is None else "ROLLBACK")


def _job(row: sqlite3.Row) -> Job:
    job = dict(row)
    for key in ("input", "output"):
        job[key] = json.loads(job[key]) if job[key] else None
    return job
