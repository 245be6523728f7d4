"""The local API: /run, /runsync, /status, /cancel and /health, as RunPod's, for programs on this machine."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
import sqlite3
import threading
import time
import uuid
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .failure import JobError
from .jobs import RUNNING, Job, Jobs

_log = logging.getLogger("handler")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WAIT_MS, _MOST_WAIT_MS = 90_000, 300_000
_LINGER_S, _BODY_S = 5, 60
_LARGE = 1_000_000


class Server(ThreadingHTTPServer):
    """Serves the jobs."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], jobs: Jobs, most_body: int) -> None:
        self.jobs, self.most_body = jobs, most_body
        self.large = threading.BoundedSemaphore(2)  # more at a time could fill the memory
        super().__init__(address, Endpoint)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection after its caller: closed while a refused body is on its way, it would lose the answer."""
        until = time.monotonic() + _LINGER_S
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_WR)
            request.settimeout(1)
            while request.recv(65_536) and time.monotonic() < until:
                pass
        self.close_request(request)

    def handle_error(self, *_unused: object) -> None:
        """Say nothing: a caller that went away is no news."""


class Endpoint(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "wanmetal-handler", ""
    error_content_type, error_message_format = "application/json", '{"error": "this is no request that is understood"}'
    timeout = 60
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        """Answer everything."""
        try:
            status, answer = self._answer()
        except JobError as error:
            status, answer = error.details.get("status", 400), {**error.output(), "status": "REFUSED"}
        except sqlite3.Error as error:
            _log.error("the record cannot be used: %s", error)
            status, answer = 503, {"error": "the record of the jobs cannot be written; is the disk full?"}
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET  # noqa: N815 (the name is the library's)

    def log_message(self, *_unused: object) -> None:
        """Say nothing: requests hold what is nobody else's business."""

    def _answer(self) -> tuple[int, dict[str, Any]]:
        self.close_connection, self._keep = True, self.close_connection  # unless the body is read
        self._assert_local()
        parts, jobs = urlsplit(self.path), self.server.jobs
        job: Job | None
        match (self.command, *parts.path.split("/")[1:]):
            case ("POST", "run"):
                job = self._accepted("")
                return 200, {"id": job["id"], "status": job["status"]}
            case ("POST", "runsync"):
                seconds = _wait_s(parts.query)
                job = jobs.wait(self._accepted("sync-")["id"], seconds)
            case ("GET" | "POST", "status", id_):
                self._body()
                job = jobs.get(id_)
            case ("POST", "cancel", id_):
                self._body()
                job = jobs.cancel(id_)
            case ("GET" | "POST", "health"):
                self._body()
                good, health = jobs.health()
                return 200 if good else 503, health
            case _:
                raise _refused("there are: POST /run, POST /runsync, GET /status/ID, POST /cancel/ID, GET /health", 404)
        if job is None:
            raise _refused("there is no job of this id", 404)
        return 200, told(job)

    def _accepted(self, prefix: str) -> Job:
        """Read a request and take it on. Nothing of it is held while somebody waits for its end."""
        with self.server.large if self._length() > _LARGE else nullcontext():
            given = _request(self._body())
            id_ = given.get("id") or f"{prefix}{uuid.uuid4()}"
            return self.server.jobs.accept(id_, given["input"], given.get("attempt", 0))

    def _body(self) -> bytes:
        length = self._length()
        data, deadline = bytearray(), time.monotonic() + _BODY_S
        while len(data) < length:
            part = self.rfile.read1(min(length - len(data), 1 << 20))
            if not part or time.monotonic() > deadline:
                raise _refused("the request was cut off")
            data += part
        self.close_connection = self._keep
        return bytes(data)

    def _length(self) -> int:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            raise _refused("the request needs a Content-Length, as a number", 411)
        if int(length) > self.server.most_body:
            raise _refused(f"the request has {length} bytes; at most {self.server.most_body} are taken", 413)
        return int(length)

    def _assert_local(self) -> None:
        """Refuse what a web page makes a browser send here."""
        try:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            host = None
        site = self.headers.get("Sec-Fetch-Site", "none")
        if host not in {"127.0.0.1", "localhost", "::1"} or "Origin" in self.headers or site != "none":
            raise _refused("only programs on this machine are answered, by the name 127.0.0.1 or localhost", 403)


def _refused(why: str, status: int = 400) -> JobError:
    return JobError("request", why, status=status)


def _request(body: bytes) -> dict[str, Any]:
    def no_number(name: str) -> float:
        raise ValueError(name)

    try:
        given = json.loads(body, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise _refused('the request is no JSON of the form {"input": {…}}') from error
    if not isinstance(given, dict) or "input" not in given:
        raise _refused('the request has to be of the form {"input": {…}}')
    if strange := sorted(given.keys() - {"attempt", "id", "input"}):
        names = ", ".join(ascii(name)[:40] for name in strange[:5])
        raise _refused(f"beside input there may be id and attempt, found: {names}")
    attempt = given.get("attempt", 0)
    if not isinstance(attempt, int) or isinstance(attempt, bool) or not 0 <= attempt < 2**31:
        raise _refused("attempt has to be a whole number, 0 or more")
    if "id" in given and not (isinstance(given["id"], str) and _ID.fullmatch(given["id"])):
        raise _refused("id has to be of 1 to 64 letters, digits, . _ and -, and begin with a letter or a digit")
    return given


def _wait_s(query: str) -> float:
    text = parse_qs(query).get("wait", [str(_WAIT_MS)])[0]
    if not (text.isascii() and text.isdigit() and len(text) < 8 and int(text) <= _MOST_WAIT_MS):
        raise _refused(f"wait has to be milliseconds, at most {_MOST_WAIT_MS}")
    return int(text) / 1000


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
