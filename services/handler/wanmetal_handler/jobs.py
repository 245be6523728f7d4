"""All jobs: accepts them, does them in threads, and keeps a record of them that outlives the service."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, suppress
from typing import Any

from . import isolated
from .failure import JobError, cancelled
from .job import Worker
from .limit import Limit

QUEUED, RUNNING, COMPLETED, FAILED = "IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED"
CANCELLED, TIMED_OUT = "CANCELLED", "TIMED_OUT"
OPEN, ENDED_BADLY = (QUEUED, RUNNING), (FAILED, CANCELLED, TIMED_OUT)
Job = dict[str, Any]

_TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
  number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, status TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
  created REAL NOT NULL, started REAL, finished REAL, input TEXT, output TEXT, attempt INTEGER NOT NULL DEFAULT 0,
  bytes INTEGER NOT NULL DEFAULT 0, options TEXT
);
CREATE INDEX IF NOT EXISTS jobs_status ON jobs (status, number);
CREATE INDEX IF NOT EXISTS jobs_finished ON jobs (finished);
CREATE INDEX IF NOT EXISTS jobs_bytes ON jobs (bytes);
"""
_ONE = "SELECT id, status, attempt, created, started, finished, output FROM jobs WHERE id = ?"
_FORGET_ONE = """
DELETE FROM jobs WHERE number = (SELECT number FROM jobs WHERE finished IS NOT NULL ORDER BY finished LIMIT 1)
RETURNING 1
"""
_STARTS, _MOST_JOBS = 2, 10_000
_WEBHOOK_PAUSES_S, _WEBHOOK_S, _WEBHOOKS = (10.0, 10.0), 10.0, 16
_CUT_OFF = JobError("restart", "the service was restarted while the job ran, twice; it was not tried again")
_FULL = JobError("storage", "the job's end could not be written down, since the disk is full")
_log = logging.getLogger("handler")


class Jobs:
    """The jobs of one worker. All methods may be called from any thread."""

    def __init__(
        self, worker: Worker, told: Callable[[str, dict[str, Any]], None] = lambda *_unused: None, resume: bool = True
    ) -> None:
        """Begin. Without ``resume`` it is for somebody else to bring again what a restart has cut off."""
        self.worker, self._settings, self._told = worker, worker.settings, told
        self._news = threading.Condition()  # its lock is that of everything below
        self._limits: dict[str, Limit] = {}
        self._progress: dict[str, dict[str, Any]] = {}
        self._unwritten: dict[str, Job] = {}
        self._ends: dict[str, Future[None]] = {}
        self._closing = False
        self.draining = False  # jobs that are new are refused, and the others go on
        # Each statement is a transaction of its own.
        self._base = sqlite3.connect(self._settings.record, check_same_thread=False, isolation_level=None, timeout=10)
        self._base.row_factory = sqlite3.Row
        self._base.executescript(f"PRAGMA journal_mode = WAL; PRAGMA journal_size_limit = 0; {_TABLE}")
        # What a queue has given is for the queue to give again.
        gone = (
            "DELETE FROM jobs WHERE status IN (?, ?) AND (? OR json_extract(options, '$.queue') IS TRUE) RETURNING id"
        )
        for row in self._sql(gone, *OPEN, not resume):
            _log.info("job %s: cut off by a restart", row["id"])
        self._hooks = ThreadPoolExecutor(_WEBHOOKS)
        for row in self._sql("SELECT id, options FROM jobs WHERE finished IS NOT NULL AND options IS NOT NULL"):
            self._hooks.submit(self._report, row["id"], json.loads(row["options"])["webhook"])
        # What ran at the end of the last service waits again, unless it has ended the service before.
        cut_off = self._sql("SELECT id FROM jobs WHERE status = ? AND attempts >= ?", RUNNING, _STARTS)
        for row in cut_off:
            self._finish(row["id"], FAILED, _CUT_OFF.output())
        self._sql("UPDATE jobs SET status = ? WHERE status = ?", QUEUED, RUNNING)
        worker.clean()
        self._threads = [
            threading.Thread(target=self._work, daemon=True) for _unused in range(self._settings.concurrency)
        ]
        for thread in self._threads:
            thread.start()

    async def run_job(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Do a job that a queue gives, and return its output, or error and failure.

        A known id is answered from the record, unless it ended badly and ``attempt`` is a later one, or is not there.
        """
        id_, attempt = str(job["id"]), job.get("attempt")
        options = {name: job[name] for name in ("policy", "s3Config") if job.get(name)}
        try:
            attempt = attempt if isinstance(attempt, int) else None
            await asyncio.to_thread(self.accept, id_, job.get("input"), attempt, options)
            found = await self.ended(id_)
            if not found:
                raise JobError("internal", "the record has lost the job")  # noqa: TRY301
        except asyncio.CancelledError:
            await asyncio.to_thread(self.cancel, id_)
            raise
        except JobError as error:
            return error.output()
        return dict(found["output"]) if found["status"] not in OPEN else cancelled().output()

    async def ended(self, id_: str, seconds: float | None = None) -> Job | None:
        """Return a job when it has ended, or as it stands when the time is over."""
        if end := self._end(id_):
            await asyncio.wait([asyncio.wrap_future(end)], timeout=seconds)
        return await asyncio.to_thread(self.get, id_)

    def _end(self, id_: str) -> Future[None] | None:
        """What is done when a job ends; nothing, where it has."""
        with self._news:
            job = self.get(id_)
            if not job or job["status"] not in OPEN or self._closing:
                return None
            return self._ends.setdefault(id_, Future())

    def accept(self, id_: str, given: Any, attempt: int | None = 0, options: Mapping[str, Any] | None = None) -> Job:
        """Check a request and take it on. A repeated id is answered from the record.

        A job that has made nothing is done again for a later ``attempt``; None is always a later one.
        """
        if (limit := self._limits.get(id_)) and limit.cancelled:
            self.wait(id_, 30.0)  # it is about to end
        if known := self._known(id_, attempt):
            return known
        if isinstance(given, str):  # as worker-comfyui takes it
            with suppress(ValueError, RecursionError):
                given = json.loads(given)
        self.worker.check(given)
        text = json.dumps(given)
        with self._news:
            if not self._known(id_, attempt):
                if self.draining and not (options or {}).get("queue"):  # the queue gave it a moment before
                    why = "the service takes no new jobs before a restart; try again later"
                    raise JobError("restart", why, status=503)
                [(waiting,)] = self._sql("SELECT COUNT(*) FROM jobs WHERE status = ?", QUEUED)
                if waiting >= self._settings.queue or not self._has_room(len(text), 1):
                    raise JobError("full", "too many jobs wait; try again later", status=429)
                if attempt is None:
                    attempt = (self.get(id_) or {"attempt": -1})["attempt"] + 1
                self._unwritten.pop(id_, None)
                new = (id_, QUEUED, time.time(), text, len(text), attempt, json.dumps(options) if options else None)
                # A job outlives a loss of power from here on. Its progress need not: it would only run again.
                self._sql("PRAGMA synchronous = FULL")
                columns = "(id, status, created, input, bytes, attempt, options) VALUES (?, ?, ?, ?, ?, ?, ?)"
                self._sql(f"INSERT OR REPLACE INTO jobs {columns}", *new)
                self._sql("PRAGMA synchronous = NORMAL")
                self._news.notify_all()
        return self.get(id_) or {}

    def _known(self, id_: str, attempt: int | None) -> Job | None:
        job = self.get(id_)
        again = job and job["status"] in ENDED_BADLY and (attempt is None or attempt > job["attempt"])
        return None if again else job

    def _has_room(self, more: int = 0, jobs: int = 0) -> bool:
        """Forget jobs that have ended, the oldest first, until there is room for so many bytes and jobs."""
        self._sql("DELETE FROM jobs WHERE finished < ?", time.time() - self._settings.keep_hours * 3600)
        most = self._settings.keep_mb * 1e6 - more
        [(waiting,)] = self._sql("SELECT TOTAL(bytes) FROM jobs WHERE finished IS NULL")
        while waiting <= most:
            [(number, total)] = self._sql("SELECT COUNT(*), TOTAL(bytes) FROM jobs")
            if number + jobs <= _MOST_JOBS and total <= most:
                return True
            if not self._sql(_FORGET_ONE):
                break
        return False

    def get(self, id_: str) -> Job | None:
        """Return a job as it stands, without what it was given."""
        with self._news:
            found = self._sql(_ONE, id_)
            if not found:
                return None
            job = self._unwritten.get(id_) or {**found[0], "output": json.loads(found[0]["output"] or "null")}
            return {**job, "progress": self._progress.get(id_)}

    def is_open(self, id_: str) -> bool:
        """Say whether a job waits or runs."""
        return bool(self._sql("SELECT 1 FROM jobs WHERE id = ? AND status IN (?, ?)", id_, *OPEN))

    def wait(self, id_: str, seconds: float) -> Job | None:
        """Do as ``ended`` does, for threads."""
        if end := self._end(id_):
            wait([end], seconds)
        return self.get(id_)

    def stop(self, id_: str) -> None:
        """Take a job out of the queue, or begin to stop it."""
        with self._news:
            if not self._finish(id_, CANCELLED, cancelled().output(), only=QUEUED) and id_ in self._limits:
                limit = self._limits[id_]
            else:
                return
        limit.cancel()

    def cancel(self, id_: str) -> Job | None:
        """Stop a job, and return it."""
        self.stop(id_)
        return self.wait(id_, 10.0)

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Say whether jobs can be done, how many there are of each kind, and how each ComfyUI is."""
        draining = self.draining  # before the counts, so that they have all jobs that were accepted before
        counts = dict(map(tuple, self._sql("SELECT status, COUNT(*) FROM jobs GROUP BY status")))
        names = {"completed": COMPLETED, "failed": FAILED, "cancelled": CANCELLED}
        names |= {"timedOut": TIMED_OUT, "inProgress": RUNNING, "inQueue": QUEUED}
        found = self.worker.comfyuis.health()
        states = [one["state"] for one in found]
        workers = {"idle": "idle", "running": "busy", "away": "away", "warming": "warming"}
        return states.count("away") < len(states), {
            "draining": draining,
            "jobs": {name: counts.get(status, 0) for name, status in names.items()},
            "workers": {name: states.count(state) for name, state in workers.items()},
            "comfyui": found,
            "workflows": {name: list(workflow.inputs) for name, workflow in self.worker.workflows.items()},
        }

    def close(self, seconds: float = 15.0) -> None:
        """Stop the jobs that run. They wait in the record, and begin anew at the next start."""
        with self._news:
            self._closing = True
            limits = list(self._limits.values())
            self._news.notify_all()
        self.release()
        for limit in limits:
            limit.cancel()
        for thread in self._threads:
            thread.join(seconds)
        self._hooks.shutdown(wait=False, cancel_futures=True)
        with self._news:
            self._base.close()

    def release(self) -> None:
        """Let all go on that wait for the end of a job."""
        with self._news:
            self._closing = True
            ends, self._ends = list(self._ends.values()), {}
            self._news.notify_all()
        for end in ends:
            end.set_result(None)

    def _sql(self, text: str, *values: Any) -> list[sqlite3.Row]:
        with self._news:
            return self._base.execute(text, values).fetchall()

    def _finish(self, id_: str, status: str, result: dict[str, Any], only: str = RUNNING) -> bool:
        """Write down the end of a job, and forget what it was given; say whether it was in the state ``only``."""
        end = (
            "UPDATE jobs SET status = ?, output = ?, bytes = ?, finished = ?, input = NULL, "
            "options = CASE WHEN json_extract(options, '$.webhook') IS NULL THEN NULL "
            "ELSE json_object('webhook', json_extract(options, '$.webhook')) END "
            "WHERE id = ? AND status = ? RETURNING options"
        )
        text = json.dumps(result)
        with self._news:
            self._has_room(len(text))
            done = self._sql(end, status, text, len(text), time.time(), id_, only)
            self._news.notify_all()
            self._ended(id_)
        for row in done:
            if row["options"]:
                self._hook(id_, json.loads(row["options"])["webhook"])
        return bool(done)

    def _ended(self, id_: str) -> None:
        if end := self._ends.pop(id_, None):
            end.set_result(None)

    def _report(self, id_: str, url: str, pauses: tuple[float, ...] = _WEBHOOK_PAUSES_S) -> None:
        """Post a job's end to the address that it names, signed where there is a secret; later again, where it fails.

        No thread waits for the next try, so that addresses which do not answer hold up no others for long.
        """
        body, stamp = json.dumps(told(self.get(id_) or {})).encode(), str(int(time.time()))
        headers = {"Content-Type": "application/json", "webhook-id": id_, "webhook-timestamp": stamp}
        if secret := self._settings.webhook_secret:
            signed = hmac.digest(secret.encode(), f"{id_}.{stamp}.".encode() + body, "sha256")
            headers["webhook-signature"] = f"v1,{base64.b64encode(signed).decode()}"
        status = "no answer"
        with closing(Limit(60)) as limit, suppress(JobError, TimeoutError, ChildProcessError):
            given = (url, body, headers, tuple(self._settings.image_allow))
            status = isolated.run(limit, _WEBHOOK_S, 100_000_000 + 4 * len(body), "post", *given).decode()
        with self._news:
            if self._closing:
                return  # the next service tells it
            if status.startswith("2") or not pauses:
                self._sql("UPDATE jobs SET options = NULL WHERE id = ?", id_)
        if not status.startswith("2"):
            _log.warning("job %s: its webhook answered: %s", id_, status)
            if pauses:
                later = threading.Timer(pauses[0], self._hook, (id_, url, pauses[1:]))
                later.daemon = True
                later.start()

    def _hook(self, *given: Any) -> None:
        with self._news:
            if not self._closing:
                self._hooks.submit(self._report, *given)

    def _work(self) -> None:
        while job := self._next():
            id_, limit = job["id"], job.pop("limit")
            try:
                with ExitStack() as after:
                    try:
                        self._do(id_, job, limit, after)
                    except sqlite3.Error as error:
                        _log.error("job %s: its end cannot be written down: %s", id_, error)
                        self._unwritten[id_] = {**job, "status": FAILED, "output": _FULL.output()}
                        self._ended(id_)
            except Exception as error:  # the next job needs this thread
                place = traceback.extract_tb(error.__traceback__)[-1]
                _log.error("job %s, after its end: %s at %s:%s", id_, type(error).__name__, place.name, place.lineno)
            with self._news:
                limit.close()
                if self._limits.get(id_) is limit:  # and not that of the next attempt
                    del self._limits[id_]
                    self._progress.pop(id_, None)
                self._news.notify_all()

    def _next(self) -> Job | None:
        """Begin with the oldest job that waits, as soon as there is one."""
        first = (
            "UPDATE jobs SET status = ?, started = ?, attempts = attempts + 1 WHERE number = "
            "(SELECT number FROM jobs WHERE status = ? "
            "ORDER BY json_extract(options, '$.policy.lowPriority') IS TRUE, number LIMIT 1) "
            "RETURNING id, attempt, created, started, finished, input, options"
        )
        with self._news:
            while not self._closing:
                again_s = 600.0
                try:
                    self._has_room()
                    for row in self._sql(first, RUNNING, time.time(), QUEUED):
                        options = json.loads(row["options"] or "{}")
                        policy, most_s = options.get("policy") or {}, self._settings.job_timeout
                        if time.time() - row["created"] > policy.get("ttl", 2**53) / 1000:
                            self._finish(
                                row["id"], TIMED_OUT, JobError("timeout", "its time to live was over").output()
                            )
                            again_s = 0.0
                            continue
                        limit = Limit(min(most_s, policy.get("executionTimeout", 2**53) / 1000))
                        self._limits[row["id"]] = limit
                        return {**row, "limit": limit, "options": options}
                except sqlite3.Error as error:
                    _log.error("the record cannot be used: %s", error)
                    again_s = 5.0
                self._news.wait(again_s)
        return None

    def _do(self, id_: str, job: Job, limit: Limit, after: ExitStack) -> None:
        def tell(progress: dict[str, Any]) -> None:
            self._progress[id_] = progress
            self._told(id_, progress)

        status, given, waited_s = COMPLETED, json.loads(job.pop("input")), max(0.0, job["started"] - job["created"])
        try:
            result = self.worker.do(id_, given, waited_s, tell, limit, after, job["options"])
        except JobError as error:
            if error.kind == "cancelled" and self._closing:
                again = "UPDATE jobs SET status = ?, attempts = attempts - 1 WHERE id = ? AND status = ?"
                self._sql(again, QUEUED, id_, RUNNING)
                return
            status = {"cancelled": CANCELLED, "timeout": TIMED_OUT}.get(error.kind, FAILED)
            own = job["options"].get("s3Config") or {}
            result = error.output([*self._settings.secrets, own.get("accessSecret", ""), own.get("accessId", "")])
            _log.info("job %s: %s: %s", id_, status, result["error"])
        except Exception as error:
            # What an unforeseen exception says may hold anything, so where it happened is told instead.
            place = traceback.extract_tb(error.__traceback__)[-1]
            _log.error("job %s: %s at %s:%s", id_, type(error).__name__, place.name, place.lineno)
            status = FAILED
            result = JobError("internal", f"an error inside the handler: {type(error).__name__}").output()
        self._finish(id_, status, result)


def told(job: Job) -> dict[str, Any]:
    """A job as RunPod tells it."""
    answer: dict[str, Any] = {"id": job["id"], "status": job["status"]}
    if result := job["output"]:
        answer |= result if "error" in result else {"output": result}
    elif job["status"] == RUNNING and job["progress"]:
        answer["progress"] = job["progress"]
    if job["started"]:
        answer["delayTime"] = round((job["started"] - job["created"]) * 1000)
        if job["finished"]:
            answer["executionTime"] = round((job["finished"] - job["started"]) * 1000)
    return answer
