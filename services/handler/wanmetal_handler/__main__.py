"""Runs as a local API, or where RunPod's environment is found, as a worker of its SDK."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from . import api, isolated
from .fleet import Fleet
from .job import Worker
from .jobs import Jobs
from .settings import Settings
from .warmup import Warmup
from .workflows import WorkflowError


def main() -> int:
    """Serve until a signal says otherwise."""
    parser = argparse.ArgumentParser(prog="wanmetal_handler", description=__doc__)
    parser.add_argument("--rp_serve_api", action="store_true", help="the local API, whatever the environment says")
    parser.add_argument("--rp_api_port", type=int, default=8388, help="its port")
    arguments, _unused = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    local = arguments.rp_serve_api or not {"RUNPOD_ENDPOINT_ID", "RUNPOD_AI_API_KEY"} & {
        k for k, v in os.environ.items() if v
    }
    try:
        settings = Settings.of(os.environ)
        worker = Worker(settings)
        isolated.start()
    except (OSError, ValueError, KeyError, WorkflowError) as error:
        sys.exit(f"the handler cannot start: {error}")
    if local:
        mb = 2 * settings.image_mb + 2 * settings.video_mb
        serve(Jobs(worker), arguments.rp_api_port, int(mb * 4e6 / 3) + 1_000_000)
    else:
        work_for_runpod(worker)
    return 0


def serve(jobs: Jobs, port: int, most_body: int) -> None:
    """Serve the local API. SIGUSR1 lets in no new jobs, as before an upgrade, and SIGUSR2 lets them in again."""

    def drain(number: int, _frame: object) -> None:
        jobs.draining = number == signal.SIGUSR1

    signal.signal(signal.SIGUSR1, drain)
    signal.signal(signal.SIGUSR2, drain)
    signal.signal(signal.SIGTERM, lambda *_unused: None)  # what is left of it when the server has ended by it
    with socket.create_server(("127.0.0.1", port), backlog=256) as listening:
        warmup = Warmup(jobs.worker) if jobs.worker.settings.warmup else None
        fleet = Fleet(jobs) if jobs.worker.settings.queue_url else None
        print(f"listening on http://127.0.0.1:{listening.getsockname()[1]}", file=sys.stderr, flush=True)
        api.Server(jobs, most_body).run([listening])
    if fleet:
        fleet.close()
    if warmup:
        warmup.close()
    jobs.close()


def work_for_runpod(worker: Worker) -> None:
    """Do the same jobs, taken from RunPod's queue by its SDK, until the process ends."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # it is for the queue to give no more jobs
    import runpod.serverless  # it takes a second, and 70 MB of memory, which the local API spares

    # A job that a restart cuts off is RunPod's to give again, here or elsewhere.
    jobs = Jobs(worker, teller(runpod.serverless.progress_update), resume=False)
    if worker.settings.warmup:
        Warmup(worker)
    runpod.serverless.start(
        {"handler": jobs.run_job, "concurrency_modifier": lambda _unused: worker.settings.concurrency}
    )
    jobs.close()


def teller(send: Callable[[dict[str, Any], Any], Any], every_s: float = 2.0) -> Callable[[str, dict[str, Any]], None]:
    """What passes progress on to the SDK, not more often than it is of use."""
    last: dict[str, tuple[float, object]] = {}

    def tell(id_: str, progress: dict[str, Any]) -> None:
        at, stage = last.get(id_, (0.0, None))
        if progress.get("stage") != stage or time.monotonic() - at >= every_s:
            last.clear()
            last[id_] = (time.monotonic(), progress.get("stage"))
            send({"id": id_}, progress)

    return tell


if __name__ == "__main__":
    sys.exit(main())
