"""Runs a graph and follows it through ComfyUI's websocket. The history has the last word; the socket may break."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from .comfyui_client import (
    ComfyUIClient,
    ComfyUIError,
    NoAnswerError,
    PromptFailedError,
    PromptRejectedError,
    outputs_of,
)
from .failure import JobError, cancelled
from .workflows import Graph, Workflow

Tell = Callable[[dict[str, Any]], None]

_LOOK_EVERY_S = 0.5
_POLL_S = 10.0
_LOST_AFTER_S = 2.0
_GONE_AFTER_S = 30.0
_STOPS_WITHIN_S = 5.0
_ENDS = {"execution_success", "execution_error", "execution_interrupted"}


def render(
    client: ComfyUIClient, workflow: Workflow, graph: Graph, tell: Tell, deadline: float, stop: threading.Event
) -> dict[str, Any]:
    """Run a graph and return its outputs by node id. It leaves neither a job nor an entry in the history."""
    me = uuid.uuid4().hex
    address = f"ws{client.url.removeprefix('http')}/ws?clientId={me}"
    # Previews come the same way, and may be large.
    settings: dict[str, Any] = {"compression": None, "proxy": None, "max_size": 2**26, "close_timeout": 0.001}
    with ExitStack() as at_the_end:
        socket: ClientConnection | None = None
        with suppress(OSError, WebSocketException):  # without it the history tells the end, too
            socket = at_the_end.enter_context(connect(address, open_timeout=10, **settings))
        try:
            id_ = client.submit(graph, client_id=me)
            try:
                return _followed(client, id_, socket, workflow, tell, deadline, stop)
            except (ComfyUIError, JobError):
                with suppress(ComfyUIError):
                    _stopped(client, id_)
                raise
            finally:
                with suppress(ComfyUIError):
                    client.forget(id_)
        except PromptRejectedError as error:
            nodes = [workflow.title(node) for node in error.node_errors]
            raise JobError("rejected", f"ComfyUI did not accept the graph: {error}", nodes=nodes) from error
        except PromptFailedError as error:
            raise _failed(error, workflow) from error
        except ComfyUIError as error:
            raise JobError("comfyui", str(error)) from error


def _stopped(client: ComfyUIClient, id_: str) -> None:
    """Stop a graph, and give its node the time to see that: until then it may still write a file."""
    client.cancel(id_)
    client = ComfyUIClient(client.url, 3.0)  # who cancels waits for this, and not for ever
    until = time.monotonic() + _STOPS_WITHIN_S
    while any(isinstance(job, list) and id_ in job[1:2] for job in client.queue()["queue_running"]):
        if time.monotonic() >= until:
            return
        time.sleep(0.1)


def _followed(
    client: ComfyUIClient,
    id_: str,
    socket: ClientConnection | None,
    workflow: Workflow,
    tell: Tell,
    deadline: float,
    stop: threading.Event,
) -> dict[str, Any]:
    begun: set[str] = set()
    client = ComfyUIClient(client.url, _POLL_S)  # a question that is not answered is not yet the end
    answered = known = time.monotonic()
    while True:
        told = _next(socket, id_, min(time.monotonic() + _LOOK_EVERY_S, deadline), stop)
        if stop.is_set():
            raise cancelled()
        if time.monotonic() >= deadline:
            raise JobError("timeout", "the job took longer than it may, and was stopped")
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


def _next(socket: ClientConnection | None, id_: str, until: float, stop: threading.Event) -> dict[str, Any]:
    """The next that ComfyUI tells of a graph; nothing, where the time is over."""
    with suppress(OSError, WebSocketException):
        while socket and (left := until - time.monotonic()) > 0:
            text = socket.recv(timeout=left)
            with suppress(ValueError, LookupError, TypeError):
                told = json.loads(text) if isinstance(text, str) else {}
                if told["data"]["prompt_id"] == id_:
                    return dict(told)
    stop.wait(max(0.0, until - time.monotonic()))
    return {}


def _failed(error: PromptFailedError, workflow: Workflow) -> JobError:
    if not error.node:
        return JobError("comfyui", f"the graph did not come to its end: {error}")
    kind, node_type, said = (str(error.node.get(key)) for key in ("exception_type", "node_type", "exception_message"))
    title = workflow.title(str(error.node.get("node_id")))
    message = f"node {title!r} failed with {kind}: {said.strip()}"
    return JobError("node", message, type=kind, node=title, node_type=node_type, said=said)
