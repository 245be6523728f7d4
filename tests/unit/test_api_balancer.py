"""What is in front of several APIs, the real HAProxy with the role's configuration, and workers that are killed."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jinja2
import pytest
from ansible_collections.wanmetal.comfyui.tests.contract import house

HAPROXY = shutil.which("haproxy") or "/usr/sbin/haproxy"
pytestmark = pytest.mark.skipif(not Path(HAPROXY).is_file(), reason="HAProxy is not here: the balancer was NOT run")
WORKERS, QUEUE = 4, 20
# As comfyui-api: it holds the request until the job is done, and knows the one that it renders.
WORKER = """
import json, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
running = {}
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def answer(self, status):
        data = json.dumps({"worker": sys.argv[1]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        self.answer(200)
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/interrupt":
            job = running.get(asked["id"])
            if job:
                job.set()
            return self.answer(200 if job else 404)
        job = running[asked["id"]] = threading.Event()
        print(asked["id"], len(running), flush=True)
        job.wait(asked["seconds"])
        del running[asked["id"]]
        self.answer(200)
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


class Host:
    """HAProxy, and its workers."""

    def __init__(self, folder: Path) -> None:
        held = [socket.create_server(("127.0.0.1", 0)) for _ in range(WORKERS + 1)]
        self.port, *ports = (one.getsockname()[1] for one in held)
        for one in held:
            one.close()
        self.seen = [folder / f"worker{number}" for number in range(WORKERS)]
        self.ports = ports
        self.workers = [self.start(number) for number in range(WORKERS)]
        template = (house.ROOT / "roles/comfyui_api/templates/comfyui-api-balancer.cfg.j2").read_text(encoding="utf-8")
        config = folder / "haproxy.cfg"
        instances = [{"name": str(number), "port": port} for number, port in enumerate(ports)]
        config.write_text(
            jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701
            .from_string(template)
            .render(
                ansible_managed="",
                comfyui_api_queue=QUEUE,
                comfyui_api_port=self.port,
                comfyui_workers=instances,
                __comfyui_api_instances=instances,
            )
        )
        self.proxy = subprocess.Popen([HAPROXY, "-db", "-f", str(config)], stderr=subprocess.DEVNULL)
        self.pool = ThreadPoolExecutor(QUEUE + 3 * WORKERS)
        for _ in range(300):
            if self.post("/ready", {"id": "", "seconds": 0})[0] == 200:
                break
            time.sleep(0.1)

    def start(self, number: int) -> subprocess.Popen[bytes]:
        with self.seen[number].open("ab") as seen:
            command = [sys.executable, "-c", WORKER, str(number), str(self.ports[number])]
            process = subprocess.Popen(command, stdout=seen)
        for _ in range(300):
            with socket.socket() as asked:
                if not asked.connect_ex(("127.0.0.1", self.ports[number])):
                    break
            time.sleep(0.1)
        return process

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any, Any]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return answer.status, json.load(answer), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, json.load(error), error.headers
        except OSError as error:
            return 0, str(error), {}

    def jobs(self, name: str, count: int, seconds: float) -> list[Future[tuple[int, Any, Any]]]:
        return [
            self.pool.submit(self.post, "/prompt", {"id": f"{name}{number}", "seconds": seconds})
            for number in range(count)
        ]

    def taken(self, name: str) -> list[list[tuple[str, int]]]:
        """By worker: the jobs that it was given, and how many it had then."""
        found = []
        for file in self.seen:
            whole = file.read_text(encoding="utf-8").rpartition("\n")[0]  # the last line may be half written
            lines = (line.split() for line in whole.splitlines())
            found.append([(words[0], int(words[1])) for words in lines if words[0].startswith(name)])
        return found

    def interrupt(self, name: str) -> list[int]:
        """Interrupt the jobs that were given out last, all at once."""
        asked = [self.pool.submit(self.post, "/interrupt", {"id": one[-1][0]}) for one in self.taken(name)]
        return [one.result()[0] for one in asked]

    def kill(self, number: int) -> None:
        self.workers[number].kill()
        self.workers[number].wait()

    def wait_until_it_takes_jobs(self, number: int) -> None:
        for _ in range(1000):
            name = f"back{time.monotonic_ns()}"
            assert self.post("/prompt", {"id": name, "seconds": 0})[0] == 200
            if self.taken(name)[number]:
                return
            time.sleep(0.1)
        raise AssertionError(f"worker {number} is given no jobs")

    def end(self) -> None:
        for process in [self.proxy, *self.workers]:
            process.kill()
            process.wait()
        self.pool.shutdown()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = Host(tmp_path_factory.mktemp("balancer"))
    try:
        yield host
    finally:
        host.end()


def wait_for_running(host: Host, name: str) -> None:
    for _ in range(600):
        if all(host.taken(name)):
            return
        time.sleep(0.05)
    raise AssertionError(f"not every worker has a job of {name}: {host.taken(name)}")


def test_jobs_spread_and_no_worker_has_two(host: Host) -> None:
    with ThreadPoolExecutor(QUEUE) as callers:
        answers = list(
            callers.map(lambda n: host.post("/prompt", {"id": f"spread{n}", "seconds": 0.1}), range(10 * WORKERS))
        )
    assert Counter(answer[0] for answer in answers) == {200: 10 * WORKERS}
    taken = host.taken("spread")
    assert min(map(len, taken)) >= 2 * WORKERS, taken  # 20 % of them
    assert {at_once for one in taken for _, at_once in one} == {1}


def test_a_full_queue_says_when_to_come_again(host: Host) -> None:
    jobs = host.jobs("full", WORKERS + QUEUE + 6, 600)
    while len(refused := [job.result() for job in jobs if job.done()]) < 6:
        time.sleep(0.05)
    assert [status for status, _, _ in refused] == [503] * 6
    assert all("comfyui_api_queue" in body["error"] and headers["Retry-After"] for _, body, headers in refused)
    while not all(job.done() for job in jobs):
        host.interrupt("full")
    assert Counter(job.result()[0] for job in jobs) == {200: WORKERS + QUEUE, 503: 6}


def test_each_running_job_is_interrupted_where_it_runs(host: Host) -> None:
    jobs = host.jobs("interrupt", WORKERS, 600)
    wait_for_running(host, "interrupt")
    assert host.interrupt("interrupt") == [200] * WORKERS
    assert host.post("/interrupt", {"id": "unknown"})[0] == 404
    assert [job.result()[0] for job in jobs] == [200] * WORKERS


def test_the_job_of_a_killed_worker_is_begun_again_on_another(host: Host) -> None:
    jobs = host.jobs("killed", 4 * WORKERS, 0.5)
    wait_for_running(host, "killed")
    host.kill(1)
    assert Counter(job.result()[0] for job in jobs) == {200: 4 * WORKERS}
    names = Counter(name for one in host.taken("killed") for name, _ in one)
    lost = host.taken("killed")[1][-1][0]
    assert names == {name: 1 + (name == lost) for name in names}
    assert len(names) == 4 * WORKERS
    host.workers[1] = host.start(1)
    host.wait_until_it_takes_jobs(1)


def test_a_job_that_kills_its_workers_ends(host: Host) -> None:
    killer = host.pool.submit(host.post, "/prompt", {"id": "killer", "seconds": 60})
    killed = []
    while not killer.done():
        for number in range(WORKERS):
            if number not in killed and any(name == "killer" for name, _ in host.taken("killer")[number]):
                host.kill(number)
                killed.append(number)
        time.sleep(0.05)
    status, body, _ = killer.result()
    assert status in (502, 503), body
    assert killed
    for number in killed:
        host.workers[number] = host.start(number)
        host.wait_until_it_takes_jobs(number)


def test_what_is_too_large_to_be_begun_again_is_said_to_have_failed(host: Host) -> None:
    large = host.pool.submit(host.post, "/prompt", {"id": "large", "seconds": 60, "image": "x" * 200_000})
    while not any(host.taken("large")):
        time.sleep(0.05)
    [number] = [number for number, taken in enumerate(host.taken("large")) if taken]
    host.kill(number)
    assert large.result()[0] == 502
    host.workers[number] = host.start(number)
    host.wait_until_it_takes_jobs(number)


def test_no_worker_is_there(host: Host) -> None:
    for number in range(WORKERS):
        host.kill(number)
    for _ in range(WORKERS):
        status, body, headers = host.post("/prompt", {"id": "none", "seconds": 0})
    assert (status, body, headers["Retry-After"]) == (503, {"error": "no worker takes it now"}, "5")
