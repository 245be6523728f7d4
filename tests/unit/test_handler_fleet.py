"""The handler as a worker of the fleet's queue: the real queue and PostgreSQL, and a ComfyUI that follows a script."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.tests.queue import fleet as queues
from ansible_collections.wanmetal.comfyui.tests.unit.scripted_comfyui import scripted
from ansible_collections.wanmetal.comfyui.tests.unit.test_handler_service import GOOD, serving
from wanmetal_handler.fleet import Fleet


@pytest.fixture(scope="module")
def queue() -> Iterator[queues.Fleet]:
    with queues.fleet(lost_after="6") as running:
        yield running


def joined(queue: queues.Fleet) -> dict[str, Any]:
    return {"queue_url": f"http://127.0.0.1:{queue.port}", "queue_token": queue.host}


def test_jobs_of_the_queue(queue: queues.Fleet, tmp_path: Path) -> None:
    with scripted() as (fake, url), serving(tmp_path, url, **joined(queue)) as jobs, closing(Fleet(jobs)):
        queue.run("first", GOOD)
        queues.until(lambda: queue.status("first") == "COMPLETED")
        assert queue.call("status/first")["output"]["receipt"]["release"] == "0.3.75-abc"
        assert (
            "the workflow Flux; there are: still"
            in queue.call("run", {"input": {"workflow": "Flux"}}, status=400)["error"]
        )
        queue.run("wrong", {**GOOD, "width": 1})
        queues.until(lambda: queue.status("wrong") == "FAILED")
        answer = queue.call("status/wrong")
        assert answer["error"].startswith("width: found 1")
        assert answer["output"]["failure"]["kind"] == "request"
        queue.run("soon", GOOD)
        queues.until(lambda: queue.status("soon") == "COMPLETED")
        assert len(fake.graphs) == 2


def test_a_result_waits_for_a_queue_that_is_away(queue: queues.Fleet, tmp_path: Path) -> None:
    """RunPod's SDK would throw it away."""
    with scripted(takes_s=4) as (fake, url), serving(tmp_path, url, **joined(queue)) as jobs, closing(Fleet(jobs)):
        queue.run("kept", GOOD)
        queues.until(lambda: fake.graphs)
        queue.stop(signal.SIGKILL)
        queues.until(lambda: (jobs.get("kept") or {}).get("status") == "COMPLETED")
        time.sleep(1)
        queue.start()
        queues.until(lambda: queue.status("kept") == "COMPLETED")
        assert len(fake.graphs) == 1


def test_a_job_that_is_cancelled_in_the_queue(queue: queues.Fleet, tmp_path: Path) -> None:
    with scripted(takes_s=60) as (fake, url), serving(tmp_path, url, **joined(queue)) as jobs, closing(Fleet(jobs)):
        queue.run("stop", GOOD)
        queues.until(lambda: fake.graphs)
        queue.call("cancel/stop", {})
        queues.until(lambda: (jobs.get("stop") or {}).get("status") == "CANCELLED")


def test_what_a_restart_of_the_handler_cuts_off_is_done_once_more(queue: queues.Fleet, tmp_path: Path) -> None:
    with scripted(takes_s=60) as (fake, url):
        with serving(tmp_path, url, **joined(queue)) as jobs, closing(Fleet(jobs)):
            queue.run("again", GOOD)
            queues.until(lambda: fake.graphs)
        fake.end, fake.takes_s = "success", 0.02
        with serving(tmp_path, url, **joined(queue)) as jobs, closing(Fleet(jobs)):
            queues.until(lambda: queue.status("again") == "COMPLETED")
        assert len(fake.graphs) == 2
        assert queue.call("status/again")["output"]["video_url"]


def test_a_handler_that_ends_takes_no_more_jobs(
    queue: queues.Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, end = threading.Event(), threading.Event()

    def vram(_fleet: Fleet) -> int:
        asked.set()
        end.wait()
        return 0

    monkeypatch.setattr(Fleet, "_vram", vram)
    with scripted() as (fake, url), serving(tmp_path, url, **joined(queue)) as jobs:
        fleet = Fleet(jobs)
        asked.wait()
        queue.run("later", GOOD)
        fleet.close()
        end.set()
        time.sleep(1)
        assert queue.status("later") == "IN_QUEUE"
        queue.call("cancel/later", {})
        assert not fake.graphs


def test_it_goes_on_after_errors_that_nobody_foresaw(
    queue: queues.Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = [RuntimeError("can't start new thread"), sqlite3.OperationalError("disk I/O error")]
    start = threading.Thread.start

    def start_or_not(thread: threading.Thread) -> None:
        if len(errors) == 2 and "Fleet._do" in str(getattr(thread, "_target", "")):
            raise errors.pop(0)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_not)
    with scripted(takes_s=600) as (fake, url), serving(tmp_path, url, **joined(queue)) as jobs, closing(Fleet(jobs)):
        queue.run("twice", GOOD)
        queues.until(lambda: fake.graphs)
        stop = jobs.stop

        def stop_or_not(id_: str) -> Any:
            if errors:
                raise errors.pop()
            return stop(id_)

        monkeypatch.setattr(jobs, "stop", stop_or_not)
        queue.call("cancel/twice", {})
        queues.until(lambda: (jobs.get("twice") or {}).get("status") == "CANCELLED")
        assert not errors
