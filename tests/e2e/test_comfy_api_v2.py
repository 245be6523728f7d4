"""Comfy's own SDK runs jobs through the Comfy API v2, as its role serves it, in front of two ComfyUIs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from ansible_collections.wanmetal.comfyui.tests.unit.scripted_comfyui import GRAPH, Script, scripted
from ansible_collections.wanmetal.comfyui.tests.unit.test_handler_service import until
from ansible_collections.wanmetal.comfyui.tests.web import Request, reply

PROJECT = Path(__file__).resolve().parents[2]
IMAGE = PROJECT / "molecule/services/start.png"
TOKEN = "0123456789abcdef"  # noqa: S105
JOB = """
import json, sys
from comfy_sdk import Comfy
graph, image, made = sys.argv[1:]
client = Comfy()
workflow = client.workflows.from_json(json.loads(graph))
workflow.set_input("1", "image", client.assets.from_file(image))
job = client.run(workflow)
[output] = job.get_outputs("6")
output.to_file(made)
print(job.id)
"""


@pytest.fixture(scope="module", autouse=True)
def environments() -> None:
    for name in ("comfyui_api_v2", "comfy_sdk"):
        subprocess.run([PROJECT / "tools/venv", name], check=True)


def python(name: str) -> str:
    return str(PROJECT / f".venv/{name}/bin/python")


@contextmanager
def served(folder: Path, *urls: str) -> Iterator[list[str]]:
    with ExitStack() as held:
        ports = [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]]
    environment = {
        "PATH": os.environ["PATH"],
        "COMFYUI_URL": " ".join(urls),
        "COMFYUI_API_V2_PORT": str(ports[0]),
        "COMFYUI_API_V2_UPLOAD_MB": "1",
        "COMFYUI_API_V2_TOKEN": TOKEN,
        "STATE_DIRECTORY": str(folder),
    }
    program = PROJECT / "roles/comfyui_api_v2/files/comfyui_api_v2.py"
    with subprocess.Popen([python("comfyui_api_v2"), str(program)], env=environment) as process:
        try:
            found = [f"http://127.0.0.1:{ports[0] + number}" for number in range(len(urls))]
            until(lambda: status(f"{found[-1]}/api/v2/health") == 200)
            yield found
        finally:
            process.terminate()
            assert process.wait(60) == 0


def status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def taking(fake: Script) -> None:
    """Have it take files as ComfyUI does; what else uses it puts all into the handler's folder."""

    def take(handler: Request) -> None:
        fake.uploads["start.png"] = fake.requests[-1][1]
        reply(handler, json.dumps({"name": "start.png", "subfolder": "", "type": "input"}).encode())

    fake.special["/upload/image"] = take


def run(url: str, made: Path) -> None:
    done = subprocess.run(
        [python("comfy_sdk"), "-c", JOB, json.dumps(GRAPH), str(IMAGE), str(made)],
        env={"PATH": os.environ["PATH"], "COMFY_API_KEY": TOKEN, "COMFY_BASE_URL": url, "HOME": str(made.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_sdk_runs_a_job_on_each_worker(tmp_path: Path) -> None:
    with scripted() as (one, first), scripted() as (two, second), served(tmp_path, first, second) as urls:
        for number, (url, fake) in enumerate(zip(urls, (one, two), strict=True)):
            taking(fake)
            made = tmp_path / f"{number}.mp4"
            run(url, made)
            assert made.read_bytes() == fake.video
            assert len(fake.graphs) == 1
            assert IMAGE.read_bytes() in fake.uploads["start.png"]
            assert fake.graphs[0]["1"]["inputs"]["image"] == "start.png"


def test_a_job_that_ends_while_it_is_looked_for_is_found(tmp_path: Path) -> None:
    with scripted(takes_s=600) as (fake, comfyui), served(tmp_path, comfyui) as [url]:
        taking(fake)

        def end(handler: Request) -> None:
            """Be asked for the history before it has the job, and for the queue when that has it no more."""
            fake.takes_s = 0
            until(lambda: fake.history)
            reply(handler, json.dumps({"queue_running": [], "queue_pending": []}).encode())

        fake.special["/queue"] = end
        run(url, tmp_path / "made.mp4")
        assert (tmp_path / "made.mp4").read_bytes() == fake.video


def test_only_the_token_opens_it_and_no_web_page_does(tmp_path: Path) -> None:
    with scripted() as (fake, comfyui), served(tmp_path, comfyui) as [url]:
        jobs = f"{url}/api/v2/jobs"
        assert status(jobs) == 401
        assert status(jobs, Authorization="Bearer wrong") == 401
        assert status(jobs, Authorization=f"Bearer {TOKEN}") == 200
        assert status(jobs, Authorization=f"Bearer {TOKEN}", Origin="http://attacker.example") == 403
        assert status(jobs, Host="attacker.example", Origin="http://attacker.example") in {401, 403}
        assert fake.graphs == []
