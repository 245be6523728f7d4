"""Takes jobs from the queue of a fleet, by the protocol of RunPod's workers. A result is sent until it is taken."""

from __future__ import annotations

import http.client
import json
import logging
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from .comfyui_client import ComfyUIError
from .failure import JobError
from .jobs import OPEN, Jobs

_log = logging.getLogger("handler")
_TAKE_S, _STOP_S, _SEND_S, _PING_EVERY_S, _PROGRESS_EVERY_S = 60.0, 20.0, 90.0, 10.0, 2.0
_PAUSES_S = (0.5, 1.0, 2.0, 5.0)
_AWAY = (OSError, ValueError, http.client.HTTPException)
_POD = "handler"
_TAKE = f"job-take/{_POD}"


class Fleet:
    """The queue, as this host sees it."""

    def __init__(self, jobs: Jobs) -> None:
        settings = jobs.worker.settings
        self._jobs, self._comfyuis, self._url = jobs, jobs.worker.comfyuis, settings.queue_url.rstrip("/")
        parts = urlsplit(self._url)
        self._address = parts.netloc
        self._context = (
            ssl.create_default_context(cafile=settings.queue_ca or None) if parts.scheme == "https" else None
        )
        self._taking: socket.socket | None = None
        self._headers = {"Authorization": f"Bearer {settings.queue_token}", "Content-Type": "application/json"}
        self._told = {"workflows": ",".join(jobs.worker.workflows), "run": secrets.token_hex(8)}
        if Path(settings.release).is_file():
            self._told["release"] = str(json.loads(Path(settings.release).read_text(encoding="utf-8")).get("id", ""))
        self._closing, self._lock = threading.Event(), threading.Lock()
        self._held: set[str] = set()
        self._free = threading.Semaphore(settings.concurrency)
        for work in (self._take, self._listen):
            threading.Thread(target=work, daemon=True).start()

    def close(self) -> None:
        """Take no more jobs, and send nothing more: what runs now begins anew, here or elsewhere."""
        self._closing.set()
        if self._taking:
            with suppress(OSError):
                self._taking.shutdown(socket.SHUT_RDWR)

    def _call(self, path: str, query: Mapping[str, str], seconds: float, body: Any = None) -> tuple[int, Any]:
        # No proxy of the environment stands between a host and its queue.
        connection = (
            http.client.HTTPSConnection(self._address, timeout=seconds, context=self._context)
            if self._context
            else http.client.HTTPConnection(self._address, timeout=seconds)
        )
        data = None if body is None else json.dumps(body).encode()
        with closing(connection):
            connection.connect()
            if path == _TAKE:
                self._taking = connection.sock
                if self._closing.is_set():  # a job that is given now would be lost
                    raise ConnectionAbortedError("no more jobs are taken")
            connection.request(
                "GET" if data is None else "POST", f"/v2/any/{path}?{urlencode(query)}", data, self._headers
            )
            answer = connection.getresponse()
            text = answer.read()
        return answer.status, json.loads(text) if text and answer.status == 200 else None

    def _vram(self) -> int | None:
        """GB of the smallest GPU, as soon as a ComfyUI answers. None takes jobs before."""
        smallest = None
        for one in self._comfyuis.all:
            try:
                devices = one.client.system_stats().get("devices", [])
            except ComfyUIError:
                continue
            size = max((device.get("vram_total", 0) for device in devices if device.get("type") != "cpu"), default=0)
            smallest = min(size, size if smallest is None else smallest)
        return None if smallest is None else round(smallest / 2**30)

    def _take(self) -> None:
        failures = 0
        while not self._closing.is_set():
            self._free.acquire()
            job, good, begun = None, False, False
            try:
                vram = None if self._jobs.draining else self._vram()
                if vram is not None:
                    self._told["vram"] = str(vram)
                    status, job = self._call(_TAKE, self._query(), _TAKE_S)
                    good = status in {200, 204}
                    if not good:
                        _log.warning("the queue at %s answers %d", self._url, status)
                if job and not self._closing.is_set():
                    with self._lock:
                        self._held.add(job["id"])
                    threading.Thread(target=self._do, args=(job,), daemon=True).start()
                    begun = True
            except _AWAY as error:
                if not self._closing.is_set():
                    _log.warning("the queue at %s cannot be reached: %s", self._url, error)
            except Exception:  # the next job needs this thread
                _log.exception("a job of the queue could not be begun")
            if not begun:
                with self._lock:
                    self._held.discard((job or {}).get("id", ""))
                self._free.release()
            failures = 0 if good else failures + 1
            if failures:
                self._closing.wait(_PAUSES_S[min(failures, len(_PAUSES_S)) - 1])

    def _query(self) -> dict[str, str]:
        with self._lock:
            return {**self._told, "job_in_progress": str(int(bool(self._held)))}

    def _listen(self) -> None:
        """Ask what is to be stopped, which is also the sign of life, and tell what is being done."""
        pinged = 0.0
        while not self._closing.is_set():
            try:
                status, answer = self._call(f"job-stop/{_POD}", self._told, _STOP_S)
                for id_ in (answer or {}).get("jobsToStop", []):
                    if not self._closing.is_set():
                        self._jobs.stop(id_)
                with self._lock:
                    held = ",".join(self._held)
                if held and time.monotonic() - pinged > _PING_EVERY_S:
                    pinged = time.monotonic()
                    self._call(f"ping/{_POD}", {**self._told, "job_id": held}, _STOP_S)
                if status not in {200, 204}:
                    self._closing.wait(2)
            except _AWAY:
                self._closing.wait(1)
            except Exception:  # without this thread the queue takes the host for lost
                _log.exception("the queue could not be asked what is to be stopped")
                self._closing.wait(1)

    def _do(self, job: Mapping[str, Any]) -> None:
        id_ = str(job["id"])
        try:
            options = {"queue": True, **({"s3Config": job["s3Config"]} if job.get("s3Config") else {})}
            try:
                self._jobs.accept(id_, job.get("input"), int(job.get("attempt", 0)), options)
                result = self._ended(id_)
            except JobError as error:
                result = error.output()
            if result is None:
                return
            if "error" in result:
                more = {name: value for name, value in result.items() if name != "error"}
                body = {"error": result["error"], **({"output": more} if more else {})}
            else:
                body = {"output": result}
            self._send(id_, body)
        finally:
            with self._lock:
                self._held.discard(id_)
            self._free.release()

    def _ended(self, id_: str) -> dict[str, Any] | None:
        """Wait for a job's end, and tell of its progress. Nothing is told of one that the service's end cuts off."""
        last = None
        while not self._closing.is_set():
            found = self._jobs.wait(id_, _PROGRESS_EVERY_S)
            if not found:
                return JobError("internal", "the record has lost the job").output()
            if found["status"] not in OPEN:
                return dict(found["output"])
            if found["progress"] not in (None, last):
                last = found["progress"]
                try:
                    self._call(f"job-done/{_POD}/{id_}", self._told, _STOP_S, {"status": "IN_PROGRESS", "output": last})
                except _AWAY:
                    continue
        return None

    def _send(self, id_: str, body: dict[str, Any]) -> None:
        tries = 0
        while not self._closing.is_set():
            try:
                status, _answer = self._call(f"job-done/{_POD}/{id_}", self._told, _SEND_S, body)
                if status == 200:
                    return
                why = f"answers {status}"
            except _AWAY as error:
                why = f"cannot be reached: {error}"
            _log.warning("job %s: its result waits, since the queue %s", id_, why)
            self._closing.wait(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)])
            tries += 1
