"""Renders a workflow once on each ComfyUI that has started, so that its models are loaded before the first job."""

from __future__ import annotations

import base64
import copy
import logging
import secrets
import socket
import threading
from contextlib import ExitStack
from urllib.parse import urlsplit

from .comfyui_client import ComfyUIClient, ComfyUIError, NoAnswerError
from .comfyuis import ComfyUI
from .failure import JobError, LostError
from .job import FOLDER, Worker
from .limit import Limit
from .render import Listener, render
from .workflows import Task

_LOOK_S, _CONNECT_S, _FRAMES = 2.0, 5.0, 5
_IMAGE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAE0lEQVR4nGP8v5QBK2DCLjxYJQBM7gG0qfKk0wAAAABJRU5ErkJggg=="
)
_log = logging.getLogger("handler")


class Warmup:
    """Watches the ComfyUIs. Jobs are taken on all the while, and are done where it fails."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._workflow = worker, worker.workflows[worker.settings.warmup]
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._watch, args=(one,), daemon=True) for one in worker.comfyuis.all]
        self._limits: set[Limit] = set()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End what is being rendered."""
        self._closing.set()
        for limit in list(self._limits):
            limit.cancel()
        for thread in self._threads:
            thread.join(_CONNECT_S)

    def _watch(self, comfyui: ComfyUI) -> None:
        parts = urlsplit(comfyui.client.url)
        address, down, broken = (parts.hostname or "", parts.port or 80), True, False
        while not self._closing.is_set():
            try:
                socket.create_connection(address, _CONNECT_S).close()
            except ConnectionRefusedError:  # it has ended; one that is busy answers late, and keeps its models
                down = True
            except OSError:
                pass
            else:
                # One that ended during its warm-up might do so each time.
                if down:
                    broken = not broken and not self._warm(comfyui)
                down = False
            self._closing.wait(_LOOK_S)

    def _warm(self, comfyui: ComfyUI) -> bool:
        """Render; say whether the ComfyUI has outlived it."""
        limit, comfyui.warming = Limit(self._worker.settings.job_timeout), True
        self._limits.add(limit)
        try:
            with ExitStack() as after, ExitStack() as held:
                self._render(comfyui, limit, after, held)
        except (JobError, ComfyUIError) as error:
            if not limit.cancelled:
                _log.warning("%s is not warmed up, and does jobs all the same: %s", comfyui.client.url, error)
            return not isinstance(error, LostError | NoAnswerError)
        finally:
            limit.close()
            self._limits.discard(limit)
            comfyui.warming = False
        _log.info("%s is warm", comfyui.client.url)
        return True

    def _render(self, comfyui: ComfyUI, limit: Limit, after: ExitStack, held: ExitStack) -> None:
        name = f"warm-up-{secrets.token_hex(4)}"
        after.callback(self._worker.clean, name)
        client = ComfyUIClient(comfyui.client.url, 60)
        held.enter_context(limit.ending(client.abort))
        listener = Listener(client.url, limit, held)
        graph, places = copy.deepcopy(self._workflow.graph), {}
        files: dict[str, str] = {}
        for field, one in self._workflow.inputs.items():
            place = self._workflow.fields[field]
            if place and one.kind in {"image", "mask"}:
                places[field] = [place]
                files[field] = client.upload(f"{name}-{len(files)}.png", _IMAGE, FOLDER)
            elif place and field == "num_frames":  # as many steps as ever: a model may have its own steps
                graph[place[0]]["inputs"][place[1]] = _FRAMES
        filled = Task(graph, {}, places, self._workflow).filled(files, f"{FOLDER}/{name}")
        render(client, listener, self._workflow, filled, lambda _told: None, limit, after, {})
