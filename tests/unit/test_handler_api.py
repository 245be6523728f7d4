from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.tests.unit.scripted_comfyui import WORKFLOW, scripted
from ansible_collections.wanmetal.comfyui.tests.unit.test_handler_service import GOOD, serving, until
from hypothesis import given, settings
from hypothesis import strategies as st
from wanmetal_handler import __main__ as program
from wanmetal_handler import api as handler_api
from wanmetal_handler.settings import Settings

JSON_TYPE = {"Content-Type": "application/json"}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from([*WORKFLOW["settings"], "cfg_img", "workflow", "other"])
BODIES = st.one_of(
    st.binary(max_size=200),
    ANYTHING.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(FIELDS, ANYTHING, max_size=6).map(lambda value: json.dumps({"input": value}).encode()),
    st.fixed_dictionaries(
        {"input": st.dictionaries(FIELDS, ANYTHING)}, optional={"id": st.text(), "webhook": ANYTHING}
    ).map(lambda value: json.dumps(value).encode()),
    st.dictionaries(FIELDS, ANYTHING, max_size=3).map(lambda value: json.dumps({"input": {**GOOD, **value}}).encode()),
)
PATHS = st.sampled_from(
    [
        "/run",
        "/runsync",
        "/runsync?wait=0",
        "/runsync?wait=x",
        "/status/one",
        "/cancel/one",
        "/health",
        "/",
        "/run/x",
        "//",
    ]
) | st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126), max_size=30).map(lambda text: f"/{text}")


@contextmanager
def api(tmp_path: Path, most_body: int = 1_000_000, **script: Any) -> Iterator[Any]:
    with scripted(**script) as (fake, url), serving(tmp_path, url) as service:
        server = handler_api.Server(service, most_body)
        listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield Caller(listening.getsockname()[1], fake, server)
        finally:
            service.release()
            server.should_exit = True
            thread.join(20)
            listening.close()


class Caller:
    def __init__(self, port: int, fake: Any, server: Any = None) -> None:
        self.port, self.fake, self.server = port, fake, server

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, {**JSON_TYPE, **headers})
            response = connection.getresponse()
            assert response.headers["Content-Type"] == "application/json"
            answer = json.loads(response.read())
        finally:
            connection.close()
        assert isinstance(answer, dict)
        return response.status, answer

    def run(self, **given: Any) -> tuple[int, dict[str, Any]]:
        return self.call("POST", "/run", {"input": GOOD, **given})


def test_a_job_from_run_to_its_end(tmp_path: Path) -> None:
    with api(tmp_path, takes_s=0.2) as caller:
        assert caller.run(id="one") == (200, {"id": "one", "status": "IN_QUEUE"})
        until(lambda: caller.call("GET", "/status/one")[1].get("progress", {}).get("node") == "Frames")
        until(lambda: caller.call("POST", "/status/one")[1]["status"] == "COMPLETED")
        status, job = caller.call("GET", "/status/one")
        assert (status, job["output"]["metadata"]["num_frames"]) == (200, 5)
        assert 0 <= job["delayTime"] < 20_000
        assert 200 <= job["executionTime"] < 20_000
        assert caller.run(id="one")[1]["status"] == "COMPLETED"


def test_runsync_gives_the_video(tmp_path: Path) -> None:
    with api(tmp_path) as caller:
        status, job = caller.call("POST", "/runsync", {"input": GOOD})
    assert (status, job["status"]) == (200, "COMPLETED")
    assert job["id"].startswith("sync-")
    assert job["output"]["video_url"].startswith("data:video/mp4;base64,")


def test_an_error_that_is_no_unicode_is_told(tmp_path: Path) -> None:
    said = {"node_id": "4", "node_type": "Mine", "exception_type": "ValueError", "exception_message": "half: \ud800"}
    with api(tmp_path, end="error", error=said) as caller:
        status, job = caller.call("POST", "/runsync", {"input": GOOD})
        assert caller.call("GET", f"/status/{job['id']}")[1] == job
    assert (status, job["status"]) == (200, "FAILED")
    assert "half: \ud800" in job["error"]


def test_runsync_does_not_wait_for_ever(tmp_path: Path) -> None:
    with api(tmp_path, takes_s=60) as caller:
        started = time.monotonic()
        status, job = caller.call("POST", "/runsync?wait=200", {"input": GOOD})
        assert (status, job["status"]) == (200, "IN_PROGRESS")
        assert time.monotonic() - started < 20


def test_cancel(tmp_path: Path) -> None:
    with api(tmp_path, takes_s=60) as caller:
        caller.run(id="one")
        until(lambda: caller.fake.queue["queue_running"])
        status, job = caller.call("POST", "/cancel/one")
        assert (status, job["status"], job["error"]) == (200, "CANCELLED", "the job was cancelled")
        assert caller.call("POST", "/cancel/two")[0] == 404


def test_a_post_without_a_body_needs_no_length(tmp_path: Path) -> None:
    with api(tmp_path) as caller, socket.create_connection(("127.0.0.1", caller.port), timeout=60) as connection:
        connection.sendall(b"POST /cancel/one HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")


def test_health(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler_api, "_HEALTH_S", 0.0)
    with api(tmp_path) as caller:
        caller.call("POST", "/runsync", {"input": GOOD})
        status, told = caller.call("GET", "/health")
        assert (status, told["jobs"]["completed"], told["jobs"]["inQueue"]) == (200, 1, 0)
        assert "frame_rate" in told["workflows"]["still"]
        (one,) = told["comfyui"]
        assert (one["state"], one["queue"], one["lastJob"]["status"]) == ("idle", 0, "COMPLETED")
        assert caller.call("GET", "/workflows")[1]["still"]["inputs"]["required"] == ["image"]
        assert {"/run", "/runsync", "/status/{id}", "/workflows"} <= caller.call("GET", "/openapi.json")[1][
            "paths"
        ].keys()
        caller.fake.special["/queue"] = lambda handler: handler.connection.shutdown(2)
        assert caller.call("GET", "/health")[0] == 503


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        ("POST", "/run", {"input": {**GOOD, "width": 3}}, 400, "width: found 3, allowed is a whole number"),
        ("POST", "/run", {"input": {}}, 400, "image: found nothing"),
        ("POST", "/run", {"inputs": {}}, 400, "has to be of the form"),
        (
            "POST",
            "/run",
            {"input": GOOD, "webhook": "ftp://x"},
            400,
            "webhook has to be an http(s) address",
        ),
        ("POST", "/run", {"input": GOOD, "id": "../x"}, 400, "id has to be"),
        ("POST", "/run", {"input": GOOD, "id": "x" * 65}, 400, "id has to be"),
        ("POST", "/run", {"input": GOOD, "id": "x", "attempt": "2"}, 400, "attempt has to be"),
        ("POST", "/run", {"input": GOOD, "id": "x", "attempt": True}, 400, "attempt has to be"),
        ("POST", "/run", {"input": GOOD, "id": "x", "attempt": -1}, 400, "attempt has to be"),
        ("POST", "/run", {"input": GOOD, "id": "x", "attempt": 2**63}, 400, "attempt has to be"),
        ("POST", "/run", b"{", 400, "is no JSON"),
        ("POST", "/run", b"[" * 100_000, 400, "is no JSON"),
        ("POST", "/run", b'{"input": {"width": NaN}}', 400, "is no JSON"),
        ("POST", "/run", b'{"input": {"cfg_scale": 1e999}}', 400, "is no JSON"),
        (
            "POST",
            "/run",
            b'{"input": {"workflow": {"1": {"class_type": "X", "inputs": {"a": [-1e400]}}}}}',
            400,
            "is no JSON",
        ),
        ("POST", "/runsync?wait=999999999", {"input": GOOD}, 400, "wait has to be milliseconds"),
        ("POST", "/run", bytes(20_000_000), 413, "at most 1000000 are taken"),
        ("GET", "/run", None, 405, "there are: POST /run"),
        ("GET", "/cancel/one", None, 405, "there are: POST /run"),
        ("GET", "/status/one", None, 404, "no job of this id"),
        ("GET", "/status/", None, 404, "there are: POST /run"),
        ("GET", "/", None, 404, "there are: POST /run"),
        ("DELETE", "/run", None, 405, "there are: POST /run"),
        ("POST", "/run", {"input": GOOD, "policy": {"executionTimeout": 1}}, 400, "policy.executionTimeout: "),
        ("POST", "/run", {"input": GOOD, "other": 1}, 400, "other: Extra inputs"),
    ],
)
def test_what_is_refused(method: str, path: str, body: Any, status: int, error: str, tmp_path: Path) -> None:
    with api(tmp_path) as caller:
        found, answer = caller.call(method, path, body)
    assert (found, error in answer["error"]) == (status, True), answer


def test_an_error_of_its_own_is_answered_as_others_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise LookupError("/root/s3cret")

    with api(tmp_path) as caller:
        monkeypatch.setattr(handler_api, "_accepted", fails)
        status, answer = caller.run()
        assert (status, answer["error"]) == (500, "an error inside the handler: LookupError")
        assert "s3cret" not in json.dumps(answer)
        assert caller.call("GET", "/health")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8388"},
        {"Origin": "http://127.0.0.1"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_web_pages_cannot_call_it(headers: dict[str, str], tmp_path: Path) -> None:
    with api(tmp_path) as caller:
        assert caller.call("POST", "/run", {"input": GOOD}, **headers)[0] == 403
        assert caller.call("POST", "/run", {"input": GOOD}, Host="localhost:8388")[0] == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"garbage\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /run HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Length: \xb2\r\n\r\n",
        b"POST /run HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: [::\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    ],
)
def test_what_is_hardly_http_is_refused(raw: bytes, tmp_path: Path) -> None:
    with api(tmp_path) as caller, socket.create_connection(("127.0.0.1", caller.port), timeout=60) as connection:
        connection.sendall(raw)
        response = http.client.HTTPResponse(connection)
        response.begin()
        body = response.read()
    assert 400 <= response.status < 500
    if response.headers["Content-Type"] == "application/json":  # else it was not even HTTP
        assert json.loads(body)["error"]


def test_the_page_has_the_browser_run_what_is_pinned_alone(tmp_path: Path) -> None:
    with api(tmp_path) as caller:
        page = urllib.request.urlopen(f"http://127.0.0.1:{caller.port}/docs", timeout=60).read().decode()
    fetched = re.findall(r"<(?:script src|link)[^>]*>", page)
    assert len(fetched) == 2
    assert all("@5.35.0/" in tag and 'integrity="sha384-' in tag for tag in fetched)
    assert "openapi.json</a>" in page


def test_fifty_callers_at_once(tmp_path: Path) -> None:
    with api(tmp_path, takes_s=0.002) as caller, ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: caller.call("POST", "/runsync", {"input": GOOD}), range(50)))
        assert {(status, job["status"]) for status, job in answers} == {(200, "COMPLETED")}
        assert caller.call("GET", "/health")[1]["jobs"]["completed"] == 50


def test_few_large_requests_are_read_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of all callers at once would fill the memory; whoever only asks does not wait for them."""
    monkeypatch.setattr(handler_api, "_LARGE", 10)
    head = b"POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"
    with api(tmp_path) as caller, ThreadPoolExecutor(1) as pool, ExitStack() as slow:
        two = [slow.enter_context(socket.create_connection(("127.0.0.1", caller.port), timeout=60)) for _ in range(2)]
        for connection in two:
            connection.sendall(head)
        until(lambda: caller.server.large._value == 0)
        third = pool.submit(caller.run, id="third")
        assert caller.call("GET", "/health")[0] == 200
        assert caller.call("GET", "/status/third")[0] == 404
        two[0].close()
        assert third.result(60)[0] == 200


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with api(tmp_path_factory.mktemp("fuzzed"), takes_s=0.0) as caller:
        yield caller


@pytest.mark.parametrize("number", [250, pytest.param(1000, marks=pytest.mark.slow)])
def test_requests_of_all_kinds(fuzzed: Any, number: int) -> None:
    @settings(max_examples=number, deadline=None)
    @given(method=st.sampled_from(["GET", "POST", "POST", "POST"]), path=PATHS, body=BODIES)
    def ask(method: str, path: str, body: bytes) -> None:
        status, answer = fuzzed.call(method, path, body if method == "POST" else None)
        assert status in {200, 400, 403, 404, 405, 411, 413, 429}
        assert "error" in answer or "status" in answer or "jobs" in answer
        assert "Traceback" not in json.dumps(answer)

    ask()


def test_after_them_it_works_as_before(fuzzed: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    until(lambda: fuzzed.call("GET", "/health")[1]["jobs"]["inQueue"] == 0, 30)
    assert fuzzed.call("POST", "/runsync", {"input": GOOD})[1]["status"] == "COMPLETED"
    left = [path for path in tmp_path_factory.getbasetemp().glob("fuzzed*/*put/*") if path.is_file()]
    assert left == []


def test_a_drained_program_refuses_new_jobs_and_ends_the_others(tmp_path: Path) -> None:
    with scripted(takes_s=60) as (fake, url), started(tmp_path, url) as (port, process):
        caller = Caller(port, fake)
        for id_ in ("runs", "waits"):
            caller.run(id=id_)
        until(lambda: fake.queue["queue_running"])
        process.send_signal(signal.SIGUSR1)
        until(lambda: caller.call("GET", "/health")[1]["draining"])
        for path in ("/run", "/runsync"):
            assert caller.call("POST", path, {"input": GOOD, "id": "new"})[0] == 503
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/run", json.dumps({"input": GOOD}), JSON_TYPE)
        response = connection.getresponse()
        assert (response.status, int(response.headers["Retry-After"]) > 0) == (503, True)
        assert json.loads(response.read())["failure"]["kind"] == "restart"
        assert caller.call("GET", "/status/new")[0] == 404
        assert caller.call("GET", "/status/waits")[1]["status"] == "IN_QUEUE"
        assert caller.call("POST", "/run", {"input": GOOD, "id": "runs"})[1]["status"] == "IN_PROGRESS"
        fake.takes_s = 0.01
        assert caller.call("POST", "/cancel/runs")[1]["status"] == "CANCELLED"
        fake.end = "success"
        until(lambda: caller.call("GET", "/status/waits")[1]["status"] == "COMPLETED")
        until(lambda: caller.call("GET", "/health")[1]["jobs"]["inProgress"] == 0)
        process.send_signal(signal.SIGUSR2)
        until(lambda: not caller.call("GET", "/health")[1]["draining"])
        assert caller.run(id="new")[0] == 200


def test_a_cut_off_job_is_told_after_a_restart_by_the_program(tmp_path: Path) -> None:
    """The program itself, killed while a job runs: the job is done by the next one."""
    with scripted(takes_s=60) as (fake, url):
        with started(tmp_path, url) as (port, process):
            caller = Caller(port, fake)
            caller.run(id="one")
            until(lambda: fake.queue["queue_running"])
            process.kill()
        fake.takes_s, fake.queue["queue_running"] = 0.01, []
        fake.turn = threading.Lock()
        with started(tmp_path, url) as (port, process):
            caller = Caller(port, fake)
            until(lambda: caller.call("GET", "/status/one")[1]["status"] == "COMPLETED", 10)
            process.terminate()
            assert process.wait(20) == 0


@contextmanager
def started(tmp_path: Path, url: str, **settings: str) -> Iterator[tuple[int, Any]]:
    (tmp_path / "workflows.json").write_text(json.dumps([WORKFLOW]))
    files = Path(program.__file__).parents[1]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join([str(files), *sys.path]),
        "COMFYUI_URL": url,
        "HANDLER_WORKFLOWS": str(tmp_path / "workflows.json"),
        "HANDLER_RECORD": str(tmp_path / "jobs.db"),
        "RUNPOD_ENDPOINT_ID": "set, and overruled by the flag",
        **settings,
    }
    with subprocess.Popen(
        [sys.executable, "-m", "wanmetal_handler", "--rp_serve_api", "--rp_api_port", "0"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line.startswith("listening on http://127.0.0.1:"), line
            threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop it
            yield int(line.rpartition(":")[2]), process
        finally:
            process.kill()


def test_the_program_says_why_it_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "workflows.json").write_text(
        json.dumps([WORKFLOW | {"settings": {"filename_prefix": ["Nothing", "x"]}}])
    )
    monkeypatch.setenv("HANDLER_WORKFLOWS", str(tmp_path / "workflows.json"))
    monkeypatch.setattr(sys, "argv", ["wanmetal_handler"])
    with pytest.raises(
        SystemExit, match="the handler cannot start: still: filename_prefix: 0 nodes are titled 'Nothing'"
    ):
        program.main()


def test_settings_come_from_the_environment() -> None:
    given = Settings.of(
        {"HANDLER_IMAGE_ALLOW": "10.0.0.0/8 fd00::/8", "HANDLER_JOB_TIMEOUT": "60", "HANDLER_QUEUE": ""}
    )
    assert (given.job_timeout, given.queue, given.bucket_endpoint_url) == (60.0, 200, "")
    assert [str(network) for network in given.image_allow] == ["10.0.0.0/8", "fd00::/8"]
    with pytest.raises(ValueError, match=r"10\.0"):
        Settings.of({"HANDLER_IMAGE_ALLOW": "10.0"})
    bucket = Settings.of({"BUCKET_ENDPOINT_URL": "https://s3", "BUCKET_NAME": "b", "COMFYUI_URL": "http://[::1]:1"})
    assert (bucket.bucket_endpoint_url, bucket.bucket_name, bucket.bucket_region) == ("https://s3", "b", "us-east-1")
    assert (bucket.comfyui_url, bucket.link_hours) == ("http://[::1]:1", 168.0)


def test_the_unit_s_settings_are_known() -> None:
    unit = (Path(__file__).resolve().parents[2] / "roles/handler/templates/comfyui-handler.service.j2").read_text()
    names = {name.lower() for name in re.findall(r"HANDLER_(\w+)=", unit)}
    assert names
    assert names <= {field.name for field in fields(Settings)}
