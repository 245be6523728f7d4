"""The host's ComfyUIs. Each job has one to itself, an idle one where there is one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from .comfyui_client import ComfyUIClient, ComfyUIError, NoAnswerError
from .failure import JobError
from .limit import Limit

_ASK_S, _HEALTH_S = 5.0, 2.0


class ComfyUI:
    """One of them, and what is known of it."""

    def __init__(self, url: str) -> None:
        self.client = ComfyUIClient(url, 60)
        self.jobs, self.chosen = 0, 0.0
        self.machine: dict[str, Any] = {}
        self._release: str | None = None
        self.last: dict[str, Any] | None = None
        self.warming = False

    def look(self, limit: Limit) -> int:
        """Return how many graphs it has."""
        client = ComfyUIClient(self.client.url, _ASK_S)
        with limit.ending(client.abort):
            return sum(map(len, client.queue().values()))

    def known(self, release: str | None) -> dict[str, Any]:
        """What it runs on, which is asked once for each release."""
        if not self.machine or release != self._release:
            with suppress(ComfyUIError):
                stats = ComfyUIClient(self.client.url, _ASK_S).system_stats()
                gpus = ", ".join(str(device.get("name")) for device in stats.get("devices", []))
                self.machine = {"comfyui": stats.get("system", {}).get("comfyui_version"), "gpu": gpus}
                self._release = release
        return self.machine

    @contextmanager
    def doing(self, job: str) -> Iterator[None]:
        """Note which job it has, and how that ends."""
        self.last = {"id": job, "status": "IN_PROGRESS"}
        try:
            yield
        except JobError:
            self.last = {"id": job, "status": "FAILED", "finished": time.time()}
            raise
        self.last = {"id": job, "status": "COMPLETED", "finished": time.time()}

    def health(self) -> dict[str, Any]:
        """Its state, its queue, its GPU and its last job."""
        known = {"url": self.client.url, "gpu": self.machine.get("gpu"), "lastJob": self.last}
        try:
            queue = ComfyUIClient(self.client.url, _HEALTH_S).queue()
        except ComfyUIError:
            return {"state": "away", "queue": None, **known}
        state = "warming" if self.warming else "busy" if queue["queue_running"] else "idle"
        return {"state": state, "queue": sum(map(len, queue.values())), **known}


class ComfyUIs:
    """All of them."""

    def __init__(self, urls: str, jobs: int) -> None:
        self.all = [ComfyUI(url) for url in urls.split()]
        self._most = -(-jobs // len(self.all))  # jobs at a time on one of them
        self._lock = threading.Lock()

    def health(self) -> list[dict[str, Any]]:
        """What there is to say of each."""
        with ThreadPoolExecutor(len(self.all)) as pool:
            return list(pool.map(ComfyUI.health, self.all))

    @contextmanager
    def one(self, limit: Limit, waits: Callable[[], None], last: ComfyUI | None = None) -> Iterator[ComfyUI]:
        """Hold one for a job, which may wait for it until its end. The one named ``last`` is the last choice."""
        found = self._found(limit, waits, last)
        try:
            yield found
        finally:
            self._release(found)

    def _found(self, limit: Limit, waits: Callable[[], None], last: ComfyUI | None) -> ComfyUI:
        while True:
            best: ComfyUI | None = None
            fewest, said = 0, None
            for one in sorted(self.all, key=lambda one: (one is last, one.jobs, one.chosen)):
                if not self._hold(one):
                    continue
                try:
                    graphs = one.look(limit)
                except ComfyUIError as error:
                    self._release(one)
                    said = error
                    continue
                worse: ComfyUI | None = one
                if best is None or graphs < fewest:
                    worse, best, fewest = best, one, graphs
                if worse:
                    self._release(worse)
                if not fewest:
                    break
            if best:
                best.chosen = time.monotonic()
                return best
            if said:
                waits()
            if (said and not isinstance(said, NoAnswerError)) or limit.over.wait(0.5 if said else 0.02):
                if limit.cancelled or not said:
                    limit.check()
                raise JobError("comfyui", str(said)) from said

    def _hold(self, one: ComfyUI) -> bool:
        with self._lock:
            free = one.jobs < self._most
            one.jobs += free
            return free

    def _release(self, one: ComfyUI) -> None:
        with self._lock:
            one.jobs -= 1
