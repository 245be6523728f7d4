"""A client for ComfyUI's HTTP interface. Each call has a time limit and says clearly what went wrong."""

from __future__ import annotations

import http.client
import io
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode, urlsplit

Graph = Mapping[str, Mapping[str, Any]]

_MAX_ANSWER = 512 * 1024 * 1024
_POLL_FIRST_S, _POLL_LONGEST_S, _LOST_AFTER_S = 0.02, 0.5, 2.0


class ComfyUIError(Exception):
    """Anything that keeps ComfyUI from doing what was asked."""


class NoAnswerError(ComfyUIError):
    """Nothing answers, or not in time."""


class LateAnswerError(NoAnswerError):
    """Something listens, and is too slow to answer in time."""


class BadAnswerError(ComfyUIError):
    """Something answers, and not as ComfyUI would."""


class PromptRejectedError(ComfyUIError):
    """ComfyUI does not accept a graph. ``node_errors`` is what it says about each node."""

    def __init__(self, message: str, node_errors: dict[str, Any]) -> None:
        super().__init__(message)
        self.node_errors = node_errors


class PromptFailedError(ComfyUIError):
    """A graph was accepted and did not come to an end. ``node`` is ComfyUI's own account of the node that failed."""

    def __init__(self, message: str, node: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.node = node or {}


class PromptLostError(PromptFailedError):
    """ComfyUI has forgotten a graph, as it does when it is restarted."""


class PromptTimeoutError(ComfyUIError):
    """A graph was not finished in time."""


class ComfyUIClient:
    """One ComfyUI, at ``url``. ``timeout_s`` is the limit of a request, from its start to its last byte."""

    def __init__(self, url: str, timeout_s: float = 10.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"the address must look like http://127.0.0.1:8188, found: {url!r}")
        if parts.username or parts.password:
            raise ValueError("the address must not hold a user name or a password")
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._tls = parts.scheme == "https"
        self._host, self._port, self._base = parts.hostname, parts.port, parts.path.rstrip("/")
        self._open: set[socket.socket] = set()
        self.aborted = False

    def abort(self) -> None:
        """End, from another thread, what is asked at the moment and what would be asked later."""
        self.aborted = True
        for open_socket in list(self._open):
            _end(open_socket)

    def system_stats(self) -> dict[str, Any]:
        """Return versions, memory and devices."""
        return self._get_json("/system_stats")

    def object_info(self, node_type: str | None = None) -> dict[str, Any]:
        """Return the schemas of all node types, or of one; empty when it is not known."""
        return self._get_json(f"/object_info/{quote(node_type, safe='')}" if node_type else "/object_info")

    def queue(self) -> dict[str, list[Any]]:
        """Return the jobs under ``queue_running`` and ``queue_pending``."""
        found = self._get_json("/queue")
        for key in ("queue_running", "queue_pending"):
            if not isinstance(found.get(key), list):
                raise BadAnswerError(f"{self.url}/queue answered without {key}. Is this ComfyUI?")
        return found

    def submit(self, graph: Graph, front: bool = False, **further: Any) -> str:
        """Queue a graph in API format, before all others with ``front``, and return its id.

        Further are ``prompt_id``, the id that it is to have, ``client_id``, that of the websocket which is told how it
        goes, and ``extra_data``.
        """
        # A job of nobody makes the previews of ComfyUI-WanVideoWrapper fail, and the job with them.
        whole = {"prompt": graph, "front": front, "client_id": secrets.token_hex(16), **further}
        status, answer = self._json("POST", "/prompt", whole)
        errors = answer.get("node_errors")
        errors = errors if isinstance(errors, dict) else {}
        if status != 200 or errors:
            if status == 200:  # some of its outputs are good, and would be rendered
                self.cancel(str(answer.get("prompt_id")))
            raise PromptRejectedError(_rejection(status, answer.get("error"), errors), errors)
        if not isinstance(answer.get("prompt_id"), str):
            raise BadAnswerError(f"{self.url}/prompt answered without a prompt_id. Is this ComfyUI?")
        return str(answer["prompt_id"])

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """Return what became of a graph, or None while it is not finished."""
        entry = self._get_json(f"/history/{quote(prompt_id, safe='')}").get(prompt_id)
        if entry is not None and not (isinstance(entry, dict) and isinstance(entry.get("outputs"), dict)):
            raise BadAnswerError(f"{self.url}/history answered without outputs. Is this ComfyUI?")
        return entry

    def last(self) -> dict[str, Any]:
        """Return what became of the last graph that is finished, by its id; empty where there was none."""
        return self._get_json("/history?max_items=1")

    def saved_workflows(self) -> list[str]:
        """Return the files that its page lists as workflows; empty where there are none."""
        status, _unused, body = self._request("GET", "/userdata?dir=workflows&recurse=true")
        with suppress(ValueError):
            if status == 200 and isinstance(found := json.loads(body), list):
                return [name for name in found if isinstance(name, str) and name.endswith(".json")]
        return []

    def wait(self, prompt_id: str, timeout_s: float) -> dict[str, Any]:
        """Wait for the end of a graph and return its outputs by node id."""
        deadline = time.monotonic() + timeout_s
        pause, check_queue_at = _POLL_FIRST_S, time.monotonic() + _LOST_AFTER_S
        while True:
            try:
                entry = self.history(prompt_id)
                if entry is not None:
                    return outputs_of(entry)
                if time.monotonic() >= check_queue_at:
                    self.assert_known(prompt_id)
                    check_queue_at = time.monotonic() + _LOST_AFTER_S
            except LateAnswerError:  # a host with much to do
                if self.aborted or time.monotonic() >= deadline:
                    raise
            left = deadline - time.monotonic()
            if left <= 0:
                raise PromptTimeoutError(f"not finished after {timeout_s:.3g} s: {self._place(prompt_id)}")
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, _POLL_LONGEST_S)

    def render(self, graph: Graph, timeout_s: float, front: bool = False) -> dict[str, Any]:
        """Queue a graph, wait for its end and return its outputs. It leaves neither a job nor a history entry."""
        prompt_id = self.submit(graph, front)
        try:
            outputs = self.wait(prompt_id, timeout_s)
        except PromptTimeoutError:
            self._quietly(self.cancel, prompt_id)
            raise
        self._quietly(self.forget, prompt_id)
        return outputs

    def view(self, filename: str, subfolder: str = "", folder: str = "output", into: BinaryIO | None = None) -> bytes:
        """Return a file of the folder output, temp or input, or write it ``into`` another and return nothing."""
        query = urlencode({"filename": filename, "subfolder": subfolder, "type": folder})
        status, _unused, body = self._request("GET", f"/view?{query}", into=into)
        if status != 200:
            raise BadAnswerError(f"{self.url}/view answered {status} for {filename} in folder {folder}")
        return body

    def upload(self, filename: str, data: bytes, subfolder: str = "") -> str:
        """Put a file into the folder input, and return what a node that loads it is to be given."""
        boundary = secrets.token_hex(16)
        fields = {"subfolder": subfolder, "type": "input", "overwrite": "true"}
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()
        ]
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{filename}"\r\n\r\n'
        body = ["".join([*parts, head]).encode(), data, f"\r\n--{boundary}--\r\n".encode()]
        kind = f"multipart/form-data; boundary={boundary}"
        status, answer = self._json("POST", "/upload/image", body, kind)
        if status != 200 or not isinstance(answer.get("name"), str):
            raise BadAnswerError(f"{self.url}/upload/image answered {status}")
        return f"{answer['subfolder']}/{answer['name']}" if answer.get("subfolder") else str(answer["name"])

    def cancel(self, prompt_id: str) -> None:
        """Take a graph out of the queue, or stop it while it runs."""
        self._post("/queue", {"delete": [prompt_id]})
        self._post("/interrupt", {"prompt_id": prompt_id})

    def forget(self, prompt_id: str) -> None:
        """Take a graph that is finished out of the history."""
        self._post("/history", {"delete": [prompt_id]})

    def assert_known(self, prompt_id: str) -> None:
        """Fail where a graph is neither waiting nor running nor finished."""
        if self._state(prompt_id) is None and self.history(prompt_id) is None:
            raise PromptLostError("ComfyUI knows nothing of the graph any longer. Was it restarted?")

    def _state(self, prompt_id: str) -> str | None:
        queue = self.queue()
        for key, state in (("queue_running", "running"), ("queue_pending", "waiting")):
            if any(isinstance(job, list) and prompt_id in job[1:2] for job in queue[key]):
                return state
        return None

    def _place(self, prompt_id: str) -> str:
        try:
            state = self._state(prompt_id)
            running = len(self.queue()["queue_running"])
        except ComfyUIError as error:
            return str(error)
        if state == "waiting" and running:
            return "another job is running, so it had to wait; try again when the worker is idle"
        return "it is running" if state == "running" else "it is still in the queue"

    def _quietly(self, call: Any, *arguments: Any) -> None:
        try:
            call(*arguments)
        except ComfyUIError:
            return  # tidying up; what matters is told by the caller

    def _get_json(self, path: str) -> dict[str, Any]:
        status, answer = self._json("GET", path)
        if status != 200:
            raise BadAnswerError(f"{self.url}{path} answered {status}")
        return answer

    def _json(
        self, method: str, path: str, body: object = None, sent: str = "application/json"
    ) -> tuple[int, dict[str, Any]]:
        status, kind, data = self._request(method, path, body, sent)
        try:
            answer = json.loads(data)
        except ValueError as error:
            raise BadAnswerError(
                f"{self.url}{path} answered {status} with {kind or 'no content type'} instead of JSON. "
                "Does something else listen on that port?"
            ) from error
        if not isinstance(answer, dict):
            raise BadAnswerError(
                f"{self.url}{path} answered a {type(answer).__name__}, not an object. Is this ComfyUI?"
            )
        return status, answer

    def _post(self, path: str, body: object) -> None:
        status = self._request("POST", path, body)[0]
        if status != 200:
            raise BadAnswerError(f"{self.url}{path} answered {status}")

    def _request(
        self,
        method: str,
        path: str,
        body: object = None,
        sent: str = "application/json",
        into: BinaryIO | None = None,
    ) -> tuple[int, str, bytes]:
        deadline = time.monotonic() + self.timeout_s
        connect = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        connection = connect(self._host, self._port, timeout=self.timeout_s)
        headers = {"Content-Type": sent}
        if isinstance(body, list):
            headers["Content-Length"] = str(sum(map(len, body)))
        elif body is not None:
            body = json.dumps(body)
        try:
            connection.connect()
            with self._ended_at(deadline, connection.sock):
                connection.request(method, self._base + path, body, headers)
                response = connection.getresponse()
                data = _read(response, into)
        except TimeoutError as error:
            raise LateAnswerError(f"{self.url}{path} gave no complete answer in {self.timeout_s:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", "") or error or type(error).__name__
            raise NoAnswerError(f"{self.url} does not answer: {reason}") from error
        finally:
            connection.close()
        return response.status, response.headers.get("Content-Type", ""), data

    @contextmanager
    def _ended_at(self, deadline: float, open_socket: socket.socket) -> Iterator[None]:
        """End a request at its deadline; the limit of a socket begins anew with each byte that it receives."""
        late = threading.Event()

        def end() -> None:
            late.set()
            _end(open_socket)

        timer = threading.Timer(max(0.0, deadline - time.monotonic()), end)
        timer.daemon = True
        timer.start()
        self._open.add(open_socket)
        try:
            if self.aborted:
                _end(open_socket)
            yield
        except (OSError, http.client.HTTPException):
            if late.is_set():
                raise TimeoutError from None
            raise
        finally:
            self._open.discard(open_socket)
            timer.cancel()
        if late.is_set():  # what was cut off may look like a whole answer
            raise TimeoutError
        if self.aborted:
            raise ConnectionAbortedError("the request was ended")


def _end(open_socket: socket.socket) -> None:
    with suppress(OSError):
        socket.socket.shutdown(open_socket, socket.SHUT_RDWR)  # that of TLS takes away what another thread reads from


def _read(response: http.client.HTTPResponse, into: BinaryIO | None) -> bytes:
    data, size = io.BytesIO(), 0
    while part := response.read1(1 << 20):
        (into or data).write(part)
        size += len(part)
        if size > _MAX_ANSWER:
            raise http.client.HTTPException(f"more than {_MAX_ANSWER} bytes came")
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return data.getvalue()


def outputs_of(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the outputs by node id of a graph that is finished, from its entry in the history."""
    status = entry.get("status")
    if not isinstance(status, dict):
        status = {}
    for message in status.get("messages") or []:
        name, detail = message if isinstance(message, list) and len(message) == 2 else (None, None)
        if name == "execution_error" and isinstance(detail, dict):
            node = f"node {detail.get('node_id')} ({detail.get('node_type')})"
            text = str(detail.get("exception_message")).strip()
            raise PromptFailedError(f"{node} failed with {detail.get('exception_type')}: {text}", detail)
        if name == "execution_interrupted":
            raise PromptFailedError("it was interrupted from elsewhere")
    if status.get("status_str", "success") != "success":
        raise PromptFailedError(f"it ended with status {status['status_str']!r} and no message")
    return dict(entry["outputs"])


def _rejection(status: int, error: object, node_errors: dict[str, Any]) -> str:
    lines = [f"{error.get('message')} ({error.get('details')})" if isinstance(error, dict) else str(error or "")]
    for node, found in node_errors.items():
        for one in found.get("errors", []) if isinstance(found, dict) else []:
            lines.append(f"node {node} ({found.get('class_type')}): {one.get('message')}: {one.get('details')}")
    return f"the graph was not accepted ({status}): " + "; ".join(line for line in lines if line)
