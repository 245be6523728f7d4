"""How long a job may go on, and what is ended with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from .failure import JobError, cancelled


class Limit:
    """A job ends at its deadline or when it is cancelled, and with it whatever it waits for at that moment."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self.over, self.cancelled = threading.Event(), False
        self._lock = threading.Lock()
        self._ends: list[Callable[[], object]] = []
        self._timer = threading.Timer(seconds, self.end)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        """End the job now."""
        self.cancelled = True
        self.end()

    def close(self) -> None:
        """Forget the deadline of a job that has ended."""
        self._timer.cancel()

    def left(self) -> float:
        """Return the seconds until the deadline."""
        return max(0.0, self._deadline - time.monotonic())

    def check(self) -> None:
        """Raise JobError when the job may not go on."""
        if self.cancelled:
            raise cancelled()
        if self.over.is_set():
            raise JobError("timeout", "the job took longer than it may, and was stopped")

    @contextmanager
    def ending(self, end: Callable[[], object]) -> Iterator[None]:
        """Call ``end`` from another thread when the job ends while this goes on."""
        with self._lock:
            self._ends.append(end)
        try:
            self.check()  # the end may have come before
            yield
        finally:
            with self._lock:
                self._ends.remove(end)

    def end(self) -> None:
        """End it as its deadline does."""
        with self._lock:
            self.over.set()
            for end in self._ends:
                with suppress(OSError):
                    end()
