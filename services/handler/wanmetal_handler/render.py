"""Runs a graph and follows it through ComfyUI's websocket. The history has the last word; the socket may break."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from socket import SHUT_RDWR, create_connection
from typing import Any
from urllib.parse import urlsplit

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from .comfyui_client import (
    ComfyUIClient,
    ComfyUIError,
    NoAnswerError,
    PromptFailedError,
    PromptLostError,
    PromptRejectedError,
    outputs_of,
)
from .failure import JobError, LostError
from .limit import Limit
from .workflows import Graph, Workflow

Tell = Callable[[dict[str, Any]], None]

_LOOK_EVERY_S = 0.5
_POLL_S = 10.0
_LOST_AFTER_S = 2.0
_GONE_AFTER_S = 30.0
_STOPS_WITHIN_S, _CLOSING_S = 5.0, 10.0
_ENDS = {"execution_success", "execution_error", "execution_interrupted"}


class Listener:
    """What ComfyUI tells of the graphs of one client. Without it the history tells the end, too."""

    def __init__(self, url: str, limit: Limit, at_the_end: ExitStack) -> None:
        self.id, self.socket = uuid.uuid4().hex, None
        with suppress(OSError, WebSocketException):
            self.socket = self._connected(url, limit, at_the_end)

    def _connected(self, url: str, limit: Limit, at_the_end: ExitStack) -> ClientConnection:
        parts = urlsplit(url)
        plain = create_connection((parts.hostname or "", parts.port or 80), min(10.0, limit.left() + 0.1))
        plain.settimeout(None)
        at_the_end.callback(plain.close)
        at_the_end.enter_context(limit.ending(lambda: plain.shutdown(SHUT_RDWR)))
        # Previews come the same way, and may be large.
        settings: dict[str, Any] = {"compression": None, "proxy": None, "max_size": 2**26, "close_timeout": 0.001}
        # Its API says whether ComfyUI lives. A thread with pings would wait for another thread together with close(),
        # which in Python before 3.13 raises now and then.
        settings["ping_interval"] = None
        address = f"ws{url.removeprefix('http')}/ws?clientId={self.id}"
        opened: ClientConnection = at_the_end.enter_context(connect(address, sock=plain, open_timeout=10, **settings))
        return opened


def render(
    client: ComfyUIClient,
    listener: Listener,
    workflow: Workflow,
    graph: Graph,
    tell: Tell,
    limit: Limit,
    after: ExitStack,
    extra: dict[str, Any],
) -> dict[str, Any]:
    """Run a graph and return its outputs by node id. It leaves no job and, ``after`` the answer, no history entry."""
    # Who cancels waits for these, and not for ever.
    closing, id_ = ComfyUIClient(client.url, _CLOSING_S), str(uuid.uuid4())
    try:
        try:
            id_ = client.submit(graph, client_id=listener.id, prompt_id=id_, **extra)
        except NoAnswerError:  # it may have arrived
            _stop(closing, id_)
            raise
        after.callback(_forget, closing, id_)
        try:
            return _followed(client.url, id_, listener.socket, workflow, tell, limit)
        except (ComfyUIError, JobError):
            _stop(closing, id_)
            raise
    except ComfyUIError as error:
        limit.check()
        raise _failed(error, workflow) from error


def _forget(client: ComfyUIClient, id_: str) -> None:
    with suppress(ComfyUIError):
        client.forget(id_)


def _stop(client: ComfyUIClient, id_: str) -> None:
    """Stop a graph, and give its node the time to see that: until then it may still write a file."""
    until = time.monotonic() + _STOPS_WITHIN_S
    with suppress(ComfyUIError):
        client.cancel(id_)
        while any(isinstance(job, list) and id_ in job[1:2] for job in client.queue()["queue_running"]):
            if time.monotonic() >= until:
                return
            time.sleep(0.1)


def _followed(
    url: str, id_: str, socket: ClientConnection | None, workflow: Workflow, tell: Tell, limit: Limit
) -> dict[str, Any]:
    begun: set[str] = set()
    client = ComfyUIClient(url, _POLL_S)  # a question that is not answered is not yet the end
    answered = known = time.monotonic()
    while True:
        told = _next(socket, id_, time.monotonic() + _LOOK_EVERY_S, limit)
        limit.check()
        kind, node = told.get("type"), str(told.get("data", {}).get("node") or "")
        if node and kind in {"executing", "progress"}:
            begun.add(node)
            step = {"step": told["data"].get("value"), "of": told["data"].get("max")} if kind == "progress" else {}
            nodes = {"nodes_begun": len(begun), "nodes": len(workflow.graph)}
            tell({"stage": "render", "node": workflow.title(node), **nodes, **step})
        if told:
            answered = time.monotonic()
        if told and kind not in _ENDS and (node or kind != "executing"):
            continue
        try:
            with limit.ending(client.abort):
                entry = client.history(id_)
                if entry is not None:
                    return outputs_of(entry)
                answered = time.monotonic()
                if answered - known > _LOST_AFTER_S:
                    client.assert_known(id_)
                    known = answered
        except NoAnswerError:
            if time.monotonic() - answered > _GONE_AFTER_S:
                raise
        if told:
            time.sleep(0.002)  # the history is written a moment after the last message


def _next(socket: ClientConnection | None, id_: str, until: float, limit: Limit) -> dict[str, Any]:
    """The next that ComfyUI tells of a graph; nothing, where the time is over."""
    with suppress(OSError, WebSocketException):
        while socket and (left := until - time.monotonic()) > 0:
            text = socket.recv(timeout=left)
            with suppress(ValueError, LookupError, TypeError):
                told = json.loads(text) if isinstance(text, str) else {}
                if told["data"]["prompt_id"] == id_:
                    return dict(told)
    limit.over.wait(max(0.0, until - time.monotonic()))
    return {}


def _failed(error: ComfyUIError, workflow: Workflow) -> JobError:
    if isinstance(error, PromptRejectedError):
        nodes = [workflow.title(node) for node in error.node_errors]
        return JobError("rejected", f"ComfyUI did not accept the graph: {error}", nodes=nodes)
    if isinstance(error, NoAnswerError | PromptLostError):
        return LostError("comfyui", f"the graph did not come to its end: {error}")
    if not isinstance(error, PromptFailedError):
        return JobError("comfyui", str(error))
    if not error.node:
        return JobError("comfyui", f"the graph did not come to its end: {error}")
    kind, node_type, said = (str(error.node.get(key)) for key in ("exception_type", "node_type", "exception_message"))
    title = workflow.title(str(error.node.get("node_id")))
    message = f"node {title!r} failed with {kind}: {said.strip()}"
    return JobError("node", message, type=kind, node=title, node_type=node_type, said=said)
