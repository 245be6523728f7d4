"""Requests that wait for something to happen, and who of them is woken by it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Need:
    """What a job asks of a worker; zero and empty ask nothing."""

    queue: str
    vram: int = 0
    workflow: str = ""
    release: str = ""


@dataclass(eq=False)
class Worker:
    """A worker as it tells of itself. Without ``workflows`` it does not say which it has, and gets all."""

    name: str
    host: str
    queues: tuple[str, ...]
    vram: int = 0
    workflows: tuple[str, ...] | None = None
    release: str = ""
    run: str = ""
    event: asyncio.Event = field(default_factory=asyncio.Event)
    woken_for: Need | None = None  # until it has looked for jobs

    def can(self, need: Need) -> bool:
        """Say whether a job is one for this worker."""
        return (
            need.queue in self.queues
            and need.vram <= self.vram
            and (not need.workflow or self.workflows is None or need.workflow in self.workflows)
            and need.release in {"", self.release}
        )


class Waiters:
    """All that waits in this process."""

    def __init__(self) -> None:
        self._workers: dict[Worker, None] = {}  # in the order of their coming
        self._others: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    @contextmanager
    def worker(self, worker: Worker) -> Iterator[None]:
        """Wait for a job. One who leaves without a look at the job that it was woken for wakes another."""
        self._workers[worker] = None
        try:
            yield
        finally:
            del self._workers[worker]
            if worker.woken_for:
                self.job(worker.woken_for)

    @contextmanager
    def of(self, key: str) -> Iterator[asyncio.Event]:
        """Wait for a job's end, or a worker's stops."""
        event = asyncio.Event()
        self._others[key].add(event)
        try:
            yield event
        finally:
            self._others[key].discard(event)
            if not self._others[key]:
                del self._others[key]

    def job(self, need: Need) -> None:
        """Wake one worker that can do a job. Waking all would have each of them ask the database."""
        for worker in self._workers:
            if not worker.event.is_set() and worker.can(need):
                worker.woken_for = need
                worker.event.set()
                return

    def other(self, key: str) -> None:
        """Wake whoever waits for this."""
        for event in self._others.get(key, ()):
            event.set()

    def those(self, which: Callable[[Worker], bool]) -> None:
        """Wake the workers of which something was changed."""
        for worker in self._workers:
            if which(worker):
                worker.event.set()

    def everybody(self) -> None:
        """Wake all, since nobody knows what was missed."""
        self.those(lambda _worker: True)
        for events in self._others.values():
            for event in events:
                event.set()
