"""The handler as a worker of RunPod's own SDK, in the environment that hosts get, with a queue that plays RunPod's."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.tests.unit.scripted_comfyui import WORKFLOW, scripted
from ansible_collections.wanmetal.comfyui.tests.unit.test_handler_service import GOOD, until
from ansible_collections.wanmetal.comfyui.tests.web import Request, body, hosting, reply

PROJECT = Path(__file__).resolve().parents[2]


class RunPod:
    """What the SDK asks, and what it tells."""

    def __init__(self) -> None:
        self.jobs: queue.Queue[dict[str, Any]] = queue.Queue()
        self.stops: queue.Queue[str] = queue.Queue()
        self.told: list[tuple[str, dict[str, Any]]] = []

    def results(self, id_: str, ended: bool = True) -> list[dict[str, Any]]:
        return [data for told, data in self.told if told == id_ and (data.get("status") != "IN_PROGRESS") is ended]

    def answer(self, request: Request) -> None:
        given = body(request)
        path, answer = request.path.partition("?")[0], b""
        if path.startswith("/job-take/"):
            with suppress(queue.Empty):
                answer = json.dumps(self.jobs.get(timeout=0.2)).encode()
        elif path.startswith("/job-stop/"):
            with suppress(queue.Empty):
                answer = json.dumps({"jobsToStop": [self.stops.get(timeout=0.2)]}).encode()
        elif path.startswith("/job-done/"):
            self.told.append((path.rpartition("/")[2], json.loads(given)))
        reply(request, answer, 200 if answer or request.command == "POST" or path == "/ping" else 204)


@contextmanager
def runpod() -> Iterator[tuple[RunPod, str]]:
    played = RunPod()

    with hosting(played.answer) as url:
        yield played, url


@pytest.fixture(scope="module")
def python() -> Path:
    subprocess.run([PROJECT / "tools/venv", "handler"], check=True)
    return PROJECT / ".venv/handler/bin/python"


@contextmanager
def worker(python: Path, folder: Path, comfyui: str, api: str) -> Iterator[subprocess.Popen[str]]:
    (folder / "workflows.json").write_text(json.dumps([WORKFLOW]))
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": str(PROJECT / "services/handler"),
        "COMFYUI_URL": comfyui,
        "HANDLER_WORKFLOWS": str(folder / "workflows.json"),
        "HANDLER_RECORD": str(folder / "jobs.db"),
        "RUNPOD_ENDPOINT_ID": "endpoint",
        "RUNPOD_AI_API_KEY": "s3cret-key",
        "RUNPOD_POD_ID": "pod",
        "RUNPOD_WEBHOOK_GET_JOB": f"{api}/job-take/$ID?gpu=none",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{api}/job-done/$ID?gpu=none",
        "RUNPOD_WEBHOOK_PING": f"{api}/ping",
        "RUNPOD_SKIP_GPU_CHECK": "true",
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
    }
    log = (folder / "log").open("w")
    command = [str(python), "-m", "wanmetal_handler"]
    with (
        log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True, start_new_session=True) as p,
    ):
        try:
            yield p
        finally:
            os.killpg(p.pid, signal.SIGKILL)  # the SDK has processes of its own
            p.wait()
            print((folder / "log").read_text())


def test_jobs_from_runpod_s_queue(python: Path, tmp_path: Path) -> None:
    with runpod() as (pod, api), scripted(takes_s=0.3) as (fake, comfyui), worker(python, tmp_path, comfyui, api):
        pod.jobs.put({"id": "good", "input": GOOD})
        pod.jobs.put({"id": "bad", "input": {**GOOD, "width": 3}})
        pod.jobs.put({"id": "good", "input": GOOD})
        until(lambda: len(pod.results("good")) == 2, 300)
        first, second = pod.results("good")
        assert first == second
        assert first["output"]["metadata"]["num_frames"] == 5
        assert pod.results("bad")[0]["error"].startswith("width: found 3, allowed is a whole number")
        until(lambda: [told["output"]["stage"] for told in pod.results("good", ended=False)][:1] == ["image"])
        assert len(fake.graphs) == 1

        fake.takes_s = 60
        pod.jobs.put({"id": "stopped", "input": {**GOOD, "seed": 2}})
        until(lambda: fake.queue["queue_running"], 120)
        pod.stops.put("stopped")
        until(lambda: not fake.queue["queue_running"], 120)
        time.sleep(0.2)
    assert "s3cret-key" not in (tmp_path / "log").read_text()
