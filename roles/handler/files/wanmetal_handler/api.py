"""The local API: /run, /runsync, /status, /cancel and /health, as RunPod's, for programs on this machine."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .failure import JobError
from .service import Service
from .store import OPEN, QUEUED, FullError, Job

_log = logging.getLogger("handler")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WAIT_MS, _MOST_WAIT_MS = 90_000, 300_000
_OWN_HOSTS = {"127.0.0.1", "localhost", "::1"}


class Refused(Exception):  # noqa: N818 (it is an answer)
    """An answer that ends a request."""

    def __init__(self, status: int, error: str, **further: Any) -> None:
        super().__init__(error)
        self.status, self.answer = status, {"error": error, **further}


class Server(ThreadingHTTPServer):
    """Serves a Service."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], service: Service, most_body: int) -> None:
        self.service, self.most_body = service, most_body
        super().__init__(address, Endpoint)

    def handle_error(self, *_: object) -> None:
        """Say nothing: a caller that went away is no news."""


class Endpoint(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "wanmetal-handler", ""
    timeout = 60
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        """Answer what changes nothing."""
        self._answer("GET")

    def do_POST(self) -> None:
        """Answer the rest."""
        self._answer("POST")

    def log_message(self, *_: object) -> None:
        """Say nothing: requests hold what is nobody else's business."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no HTTP in JSON, too."""
        self.close_connection = True
        self._send(code, {"error": message or explain or "this is no request"})

    def _answer(self, method: str) -> None:
        try:
            body = self._body() if method == "POST" else b""
            self._assert_local()
            status, answer = self._route(method, body)
        except Refused as refused:
            status, answer = refused.status, refused.answer
        except FullError:
            status, answer = 429, {"error": "too many jobs wait; try again later"}
        except JobError as error:
            status, answer = 400, {**error.output(), "status": "REFUSED"}
        except sqlite3.Error as error:
            _log.error("the record cannot be used: %s", error)
            status, answer = 503, {"error": "the record of the jobs cannot be written; is the disk full?"}
        self._send(status, answer)

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isascii() or not length.isdigit():
            self.close_connection = True
            raise Refused(411, "the request needs a Content-Length, as a number")
        if int(length) > self.server.most_body:
            self.close_connection = True
            raise Refused(413, f"the request has {length} bytes; at most {self.server.most_body} are taken")
        data = self.rfile.read(int(length))
        if len(data) < int(length):
            self.close_connection = True
            raise Refused(400, "the request was cut off")
        return data

    def _assert_local(self) -> None:
        """Refuse what a web page makes a browser send here."""
        try:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            host = None
        if host not in _OWN_HOSTS or "Origin" in self.headers or self.headers.get("Sec-Fetch-Site", "none") != "none":
            raise Refused(403, "only programs on this machine are answered, by the name 127.0.0.1 or localhost")

    def _route(self, method: str, body: bytes) -> tuple[int, dict[str, Any]]:
        parts = urlsplit(self.path)
        service = self.server.service
        action, _, id_ = parts.path.removeprefix("/").partition("/")
        if action in {"run", "runsync"} and not id_:
            if method != "POST":
                raise Refused(405, f"/{action} takes POST")
            given = _request(body)
            seconds = _wait_s(parts.query) if action == "runsync" else 0.0
            job = service.accept(given.get("id") or f"{'sync-' * (action == 'runsync')}{uuid.uuid4()}", given["input"])
            if action == "runsync":
                job = service.wait(job["id"], seconds) or job
            return 200, told(job) if action == "runsync" else {"id": job["id"], "status": job["status"]}
        if action in {"status", "cancel"} and id_:
            if action == "cancel" and method != "POST":
                raise Refused(405, "/cancel takes POST")
            found = service.get(id_) if action == "status" else service.cancel(id_)
            if found is None:
                raise Refused(404, "there is no job of this id", id=id_[:64])
            return 200, told(found)
        if action == "health" and not id_:
            good, health = service.health()
            return 200 if good else 503, health
        raise Refused(404, "there are: POST /run, POST /runsync, GET /status/ID, POST /cancel/ID, GET /health")


def _request(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(400, 'the request is no JSON of the form {"input": {…}}') from error
    if not isinstance(given, dict) or "input" not in given:
        raise Refused(400, 'the request has to be of the form {"input": {…}}')
    strange = sorted(given.keys() - {"id", "input"})
    if strange:
        names = ", ".join(ascii(name)[:40] for name in strange[:5])
        raise Refused(400, f"beside input there may be id, found: {names}")
    if "id" in given and not (isinstance(given["id"], str) and _ID.fullmatch(given["id"])):
        raise Refused(400, "id has to be of 1 to 64 letters, digits, . _ and -, and begin with a letter or a digit")
    return given


def _no_number(name: str) -> float:
    raise ValueError(name)


def _wait_s(query: str) -> float:
    text = parse_qs(query).get("wait", [str(_WAIT_MS)])[0]
    if not (text.isascii() and text.isdigit() and len(text) < 8 and int(text) <= _MOST_WAIT_MS):
        raise Refused(400, f"wait has to be milliseconds, at most {_MOST_WAIT_MS}")
    return int(text) / 1000


def told(job: Job) -> dict[str, Any]:
    """A job as RunPod tells it."""
    answer: dict[str, Any] = {"id": job["id"], "status": job["status"]}
    result = job["output"]
    if result is not None:
        answer |= result if "error" in result else {"output": result}
    elif job["status"] in OPEN and job["status"] != QUEUED and job.get("progress"):
        answer["progress"] = job["progress"]
    if job["started"]:
        answer["delayTime"] = round((job["started"] - job["created"]) * 1000)
    if job["finished"] and job["started"]:
        answer["executionTime"] = round((job["finished"] - job["started"]) * 1000)
    return answer
