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
from .failure import JobError
from .workflows import Graph, Workflow

Progress = Callable[[dict[str, Any]], None]

_LOOK_EVERY_S = 0.5
_LOST_AFTER_S = 2.0
_GONE_AFTER_S = 30.0
_MOST_MESSAGE = 64 * 1024 * 1024  # previews come the same way


class Cancelled(JobError):  # noqa: N818 (nothing went wrong)
    """Somebody asked for the end of a job."""

    def __init__(self) -> None:
        super().__init__("cancelled", "the job was cancelled")


class Run:
    """One graph on its way through ComfyUI."""

    def __init__(self, client: ComfyUIClient, workflow: Workflow, graph: Graph, progress: Progress) -> None:
        self._client, self._workflow, self._graph, self._progress = client, workflow, graph, progress
        self._client_id = uuid.uuid4().hex
        self._socket: ClientConnection | None = None
        self._id = ""
        self._begun = 0

    def outputs(self, deadline: float, cancelled: threading.Event) -> dict[str, Any]:
        """Run it and return its outputs by node id. It leaves neither a job nor an entry in the history."""
        with ExitStack() as at_the_end:
            self._socket = self._opened(at_the_end)
            return self._ended(deadline, cancelled)

    def _ended(self, deadline: float, cancelled: threading.Event) -> dict[str, Any]:
        try:
            self._id = self._client.submit(self._graph, client_id=self._client_id)
            return self._follow(deadline, cancelled)
        except PromptRejectedError as error:
            raise JobError(
                "rejected", f"ComfyUI did not accept the graph: {error}", nodes=self._named(error)
            ) from error
        except PromptFailedError as error:
            raise self._failed(error) from error
        except ComfyUIError as error:
            self._quietly(self._client.cancel)
            raise JobError("comfyui", str(error)) from error
        except JobError:
            self._quietly(self._client.cancel)
            raise
        finally:
            if self._id:
                self._quietly(self._client.forget)

    def _opened(self, at_the_end: ExitStack) -> ClientConnection | None:
        address = f"ws{self._client.url.removeprefix('http')}/ws?clientId={self._client_id}"
        settings: dict[str, Any] = {"compression": None, "proxy": None, "max_size": _MOST_MESSAGE}
        opened: ClientConnection | None = None
        # Without it the history tells the end, too.
        with suppress(OSError, WebSocketException):
            opened = at_the_end.enter_context(connect(address, open_timeout=10, close_timeout=0.1, **settings))
        return opened

    def _follow(self, deadline: float, cancelled: threading.Event) -> dict[str, Any]:
        answered = known = time.monotonic()
        while True:
            ended = self._listen(min(_LOOK_EVERY_S, max(0.0, deadline - time.monotonic())), cancelled)
            if cancelled.is_set():
                raise Cancelled
            try:
                entry = self._client.history(self._id)
                if entry is None and time.monotonic() - known > _LOST_AFTER_S:
                    self._client.assert_known(self._id)
                    known = time.monotonic()
                answered = time.monotonic()
            except NoAnswerError:
                if time.monotonic() - answered > _GONE_AFTER_S:
                    raise
                entry = None
            if entry is not None:
                return outputs_of(entry)
            if time.monotonic() >= deadline:
                raise JobError("timeout", "the job took longer than it may, and was stopped")
            if ended:
                time.sleep(0.002)  # the history is written a moment after the last message

    def _listen(self, seconds: float, cancelled: threading.Event) -> bool:
        """Pass progress on until the graph ends, or the time is over."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._socket is None:
                cancelled.wait(left)
                break
            if cancelled.is_set():
                break
            try:
                message = self._socket.recv(timeout=left)
            except TimeoutError:
                break
            except (OSError, WebSocketException):
                self._socket = None
                continue
            if isinstance(message, str) and self._ends(message):
                return True
        return False

    def _ends(self, message: str) -> bool:
        try:
            told = json.loads(message)
            kind, data = told["type"], told["data"]
            if data.get("prompt_id") != self._id:
                return False
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        node = data.get("node")
        if kind == "executing" and node:
            self._begun += 1
            self._tell(node)
        elif kind == "progress" and node:
            self._tell(node, step=data.get("value"), of=data.get("max"))
        return kind in {"execution_success", "execution_error", "execution_interrupted"} or (
            kind == "executing" and not node
        )

    def _tell(self, node: object, **further: Any) -> None:
        nodes = {"nodes_begun": self._begun, "nodes": len(self._graph)}
        self._progress({"stage": "render", "node": self._workflow.title(str(node)), **nodes, **further})

    def _failed(self, error: PromptFailedError) -> JobError:
        node = error.node
        if not node:
            return JobError("comfyui", f"the graph did not come to its end: {error}")
        title = self._workflow.title(str(node.get("node_id")))
        cause, said = str(node.get("exception_type")), str(node.get("exception_message"))
        return JobError(
            "node", f"node {title!r} failed with {cause}: {said.strip()}",
            type=cause, node=title, node_type=str(node.get("node_type")), said=said,
        )  # fmt: skip

    def _named(self, error: PromptRejectedError) -> list[str]:
        return [self._workflow.title(node) for node in error.node_errors]

    def _quietly(self, call: Callable[[str], None]) -> None:
        try:
            call(self._id)
        except ComfyUIError:
            return  # what matters is told by the caller
