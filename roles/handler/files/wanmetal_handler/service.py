"""Accepts jobs, does them in threads, and tells what became of them."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

from . import store
from .comfyui_client import ComfyUIError
from .failure import JobError
from .work import Worker

_log = logging.getLogger("handler")
_ATTEMPTS = 2
_TIDY_EVERY_S = 600.0
_CUT_OFF = JobError("restart", "the service was restarted while the job ran, twice; it was not tried again")
_FULL = JobError("storage", "the job's end could not be written down, since the disk is full")
_ENDS = {"cancelled": store.CANCELLED, "timeout": store.TIMED_OUT}


class Service:
    """The jobs of one worker."""

    def __init__(
        self,
        jobs: store.Store,
        worker: Worker,
        *,
        threads: int = 1,
        most_waiting: int = 200,
        keep_s: float = 86400.0,
        told: Callable[[str, dict[str, Any]], None] = lambda *_: None,
    ) -> None:
        self.worker = worker
        self._store, self._most_waiting, self._keep_s, self._told = jobs, most_waiting, keep_s, told
        self._news = threading.Condition()
        self._stops: dict[str, threading.Event] = {}
        self._progress: dict[str, dict[str, Any]] = {}
        self._unwritten: dict[str, store.Job] = {}
        self._closing = False
        self._tidied = 0.0
        jobs.recover(_ATTEMPTS, _CUT_OFF.output())
        worker.clean()
        self._threads = [threading.Thread(target=self._work, name=f"job-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def accept(self, id_: str, given: object) -> store.Job:
        """Check a request and take it on. A repeated id is answered from the record."""
        known = self._store.get(id_)
        if known is not None:
            return self._seen(known)
        self.worker.check(given)
        job, new = self._store.add(id_, dict(given), self._most_waiting)  # type: ignore[call-overload]
        if new:
            self._announce()
        return self._seen(job)

    def get(self, id_: str) -> store.Job | None:
        """Return a job as it stands."""
        job = self._store.get(id_)
        return None if job is None else self._seen(job)

    def wait(self, id_: str, seconds: float) -> store.Job | None:
        """Return a job when it has ended, or as it stands when the time is over."""
        deadline = time.monotonic() + seconds
        with self._news:
            while True:
                job = self.get(id_)
                left = deadline - time.monotonic()
                if job is None or job["status"] not in store.OPEN or left <= 0 or self._closing:
                    return job
                self._news.wait(min(left, 5.0))

    def cancel(self, id_: str) -> store.Job | None:
        """Take a job out of the queue, or stop it, and return it."""
        if self._store.finish(
            id_, store.CANCELLED, JobError("cancelled", "the job was cancelled").output(), store.QUEUED
        ):
            self._announce()
            return self.get(id_)
        with self._news:
            stop = self._stops.get(id_)
        if stop:
            stop.set()
            return self.wait(id_, 10.0)
        return self.get(id_)

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Say whether jobs can be done, and how many there are of each kind."""
        counts = self._store.counts()
        names = {"completed": store.COMPLETED, "failed": store.FAILED, "cancelled": store.CANCELLED}
        names |= {"timedOut": store.TIMED_OUT, "inProgress": store.RUNNING, "inQueue": store.QUEUED}
        told: dict[str, Any] = {"jobs": {name: counts.get(status, 0) for name, status in names.items()}}
        try:
            self.worker.client.queue()
        except ComfyUIError:
            return False, {**told, "comfyui": "does not answer"}
        return True, {
            **told,
            "comfyui": "answers",
            "workflows": {w.name: list(w.fields) for w in self.worker.workflows.values()},
        }

    def close(self, seconds: float = 15.0) -> None:
        """Stop the jobs that run. They wait in the record, and begin anew at the next start."""
        with self._news:
            self._closing = True
            for stop in self._stops.values():
                stop.set()
            self._news.notify_all()
        for thread in self._threads:
            thread.join(seconds)
        self._store.close()

    def _seen(self, job: store.Job) -> store.Job:
        job = self._unwritten.get(job["id"], job)
        return {**job, "progress": self._progress.get(job["id"])}

    def _announce(self) -> None:
        with self._news:
            self._news.notify_all()

    def _work(self) -> None:
        while begun := self._next():
            job, stop = begun
            try:
                self._do(job, stop)
            finally:
                with self._news:
                    self._stops.pop(job["id"], None)
                    self._progress.pop(job["id"], None)
                    self._news.notify_all()

    def _next(self) -> tuple[store.Job, threading.Event] | None:
        with self._news:
            while not self._closing:
                job = self._take()
                if job is not None:
                    stop = self._stops[job["id"]] = threading.Event()
                    return job, stop
                self._news.wait(_TIDY_EVERY_S)
        return None

    def _take(self) -> store.Job | None:
        try:
            if time.monotonic() - self._tidied > _TIDY_EVERY_S:
                self._tidied = time.monotonic()
                self._store.forget(self._keep_s)
            return self._store.take()
        except sqlite3.Error as error:
            _log.error("the record cannot be used: %s", error)
            self._news.wait(5.0)
            return None

    def _do(self, job: store.Job, stop: threading.Event) -> None:
        id_ = job["id"]

        def tell(progress: dict[str, Any]) -> None:
            self._progress[id_] = progress
            self._told(id_, progress)

        status = store.COMPLETED
        secrets = self.worker.bucket.secrets if self.worker.bucket else []
        try:
            result = self.worker.do(id_, job["input"], max(0.0, job["started"] - job["created"]), tell, stop)
        except JobError as error:
            if error.kind == "cancelled" and self._closing:
                self._store.put_back(id_)
                return
            status, result = _ENDS.get(error.kind, store.FAILED), error.output(secrets)
            _log.info("job %s: %s: %s", id_, status, result["error"])
        except Exception as error:
            # What an unforeseen exception says may hold anything, so where it happened is told instead.
            _log.error("job %s: %s at %s", id_, type(error).__name__, _place(error))
            status, result = (
                store.FAILED,
                JobError("internal", f"an error inside the handler: {type(error).__name__}").output(),
            )
        self._finish(job, status, result)

    def _finish(self, job: store.Job, status: str, result: dict[str, Any]) -> None:
        try:
            self._store.finish(job["id"], status, result)
        except sqlite3.Error as error:
            _log.error("job %s: its end cannot be written down: %s", job["id"], error)
            self._unwritten[job["id"]] = {**job, "input": None, "status": store.FAILED, "output": _FULL.output()}


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}" if trace else "an unknown place"
