"""The same jobs, taken from RunPod's queue by its SDK."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from .failure import JobError
from .service import Service
from .store import OPEN, Job

_TELL_EVERY_S = 2.0


class Teller:
    """Passes progress on to the SDK, not more often than it is of use."""

    def __init__(self, send: Callable[[dict[str, Any], Any], None]) -> None:
        self._send = send
        self._last: dict[str, tuple[float, object]] = {}

    def __call__(self, id_: str, progress: dict[str, Any]) -> None:
        """Tell, unless that was done a moment ago."""
        at, stage = self._last.get(id_, (0.0, None))
        if progress.get("stage") == stage and time.monotonic() - at < _TELL_EVERY_S:
            return
        self._last = {id_: (time.monotonic(), progress.get("stage"))}
        self._send({"id": id_}, progress)


def handler(service: Service) -> Callable[[dict[str, Any]], Any]:
    """Return the function that the SDK calls with each job."""

    async def handle(job: dict[str, Any]) -> dict[str, Any]:
        id_ = str(job["id"])
        try:
            await asyncio.to_thread(service.accept, id_, job.get("input"))
            found: Job | None = None
            while found is None or found["status"] in OPEN:
                found = await asyncio.to_thread(service.wait, id_, 5.0)
        except asyncio.CancelledError:
            await asyncio.to_thread(service.cancel, id_)
            raise
        except JobError as error:
            return error.output()
        return dict(found["output"])

    return handle


def start(service: Service, threads: int) -> None:
    """Work for RunPod until the process ends."""
    import runpod.serverless  # it takes a second, and 70 MB of memory, which the local API spares

    runpod.serverless.start({"handler": handler(service), "concurrency_modifier": lambda _: threads})


def teller() -> Teller:
    """What passes progress on to RunPod."""
    from runpod.serverless import progress_update

    return Teller(progress_update)
