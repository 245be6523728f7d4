"""Jobs against a ComfyUI that follows a script, through the faults that happen."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release import client as modules_client
from ansible_collections.wanmetal.comfyui.tests.unit.scripted_comfyui import WORKFLOW, Script, mp4, scripted
from ansible_collections.wanmetal.comfyui.tests.unit.test_handler_images import many_scans
from ansible_collections.wanmetal.comfyui.tests.web import reply
from PIL import Image
from wanmetal_handler import __main__ as program
from wanmetal_handler import comfyui_client, comfyuis, isolated, media, render
from wanmetal_handler import jobs as jobs_module
from wanmetal_handler.addresses import Networks
from wanmetal_handler.comfyui_client import NoAnswerError
from wanmetal_handler.failure import JobError
from wanmetal_handler.job import Worker
from wanmetal_handler.jobs import Jobs
from wanmetal_handler.limit import Limit
from wanmetal_handler.settings import Settings


def image(size: tuple[int, int] = (8, 8)) -> str:
    data = io.BytesIO()
    Image.new("RGB", size, "red").save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


GOOD = {"image": image(), "positive_prompt": "a fox", "seed": 7}


@contextmanager
def serving(tmp_path: Path, url: str, told: Any = None, resume: bool = True, **settings: Any) -> Iterator[Jobs]:
    if not (tmp_path / "workflows.json").exists():
        (tmp_path / "workflows.json").write_text(json.dumps([WORKFLOW]))
    (tmp_path / "release.json").write_text('{"id": "0.3.75-abc"}')
    homes = [tmp_path / name for name in ("input", "output")]
    for home in homes:
        home.mkdir(exist_ok=True)
    given = {"comfyui_url": url, "folders": ":".join(map(str, homes)), "job_timeout": 10.0, "inline_mb": 0.1}
    given |= {"workflows": str(tmp_path / "workflows.json"), "record": str(tmp_path / "jobs.db")}
    given |= {"release": str(tmp_path / "release.json"), "models": str(tmp_path / "verified.json")}
    jobs = Jobs(Worker(Settings(**{**given, **settings})), told or (lambda *_: None), resume)
    try:
        yield jobs
    finally:
        jobs.close(5.0)


def done(service: Jobs, id_: str = "one", given: Any = None, seconds: float = 60.0) -> dict[str, Any]:
    service.accept(id_, GOOD if given is None else given)
    job = service.wait(id_, seconds)
    assert job is not None
    return job


def until(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.005)


def record(tmp_path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as base:
        return base.execute(query).fetchall()


def test_a_job_gives_a_video_what_it_is_like_and_a_receipt(tmp_path: Path) -> None:
    (tmp_path / "verified.json").write_text('{"files": {"/m/loras/a.safetensors": {"sha256": "123"}}}')
    with scripted(video=mp4(64, 48, 9, 18)) as (fake, url), serving(tmp_path, url) as service:
        job = done(service, given={**GOOD, "width": 128, "num_frames": 9})
    assert job["status"] == "COMPLETED"
    result = job["output"]
    assert base64.b64decode(result["video_url"].removeprefix("data:video/mp4;base64,")) == mp4(64, 48, 9, 18)
    assert result["metadata"] == {"width": 64, "height": 48, "num_frames": 9, "frame_rate": 18.0, "duration": 0.5}
    receipt = result["receipt"]
    assert set(receipt["seconds"]) == {"queue", "image", "upload", "render", "fetch", "deliver"}
    assert (receipt["workflow"], receipt["release"], receipt["seed"], receipt["comfyui"]) == (
        "still",
        "0.3.75-abc",
        7,
        "0.3.75",
    )
    assert receipt["parameters"]["width"] == 128
    assert receipt["parameters"]["final_frame_rate"] == 16.0
    assert "image" not in receipt["parameters"]
    assert len(receipt["images_sha256"]["image"]) == len(receipt["video_sha256"]) == 64
    (graph,) = fake.graphs
    assert (graph["2"]["inputs"]["value"], graph["3"]["inputs"]["width"]) == ("a fox", 128)
    (uploaded,) = fake.uploads
    assert graph["1"]["inputs"]["image"] == f"handler/{uploaded}"
    assert Image.open(io.BytesIO(fake.uploads[uploaded])).size == (8, 8)
    assert fake.history == {}, "the history keeps nothing of it"
    assert record(tmp_path, "SELECT input FROM jobs") == [(None,)], "the record keeps no image"


def test_a_job_whose_traces_cannot_be_removed_keeps_no_other_from_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(render, "_forget", fails)
    with scripted(video=mp4(64, 48, 9, 18)) as (_, url), serving(tmp_path, url) as service:
        assert [done(service, id_)["status"] for id_ in ("one", "two")] == ["COMPLETED", "COMPLETED"]


def test_models_are_named_with_their_hashes(tmp_path: Path) -> None:
    (tmp_path / "verified.json").write_text('{"files": {"/m/loras/Wan/a.safetensors": {"sha256": "123"}}}')
    with serving(tmp_path, "http://127.0.0.1:1") as service:
        found = service.worker.hashes(["Wan/a.safetensors", "b.pth"])
    assert found == {"Wan/a.safetensors": "123", "b.pth": None}


def test_progress_comes_from_the_websocket(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    with (
        scripted(takes_s=0.3) as (_, url),
        serving(tmp_path, url, told=lambda _, progress: told.append(progress)) as service,
    ):
        service.accept("one", GOOD)
        until(lambda: ((service.get("one") or {}).get("progress") or {}).get("stage") == "render")
        service.wait("one", 5)
    assert [progress["stage"] for progress in told] == [
        "image",
        "upload",
        "render",
        "render",
        "render",
        "fetch",
        "deliver",
    ]
    assert told[3] == {"stage": "render", "node": "Frames", "nodes_begun": 1, "nodes": 7}
    assert told[4] == {"stage": "render", "node": "Frames", "nodes_begun": 1, "nodes": 7, "step": 1, "of": 2}


def test_a_refused_request_is_no_job(tmp_path: Path) -> None:
    with scripted() as (fake, url), serving(tmp_path, url) as service:
        with pytest.raises(JobError, match="width: found 3, allowed is a whole number"):
            service.accept("one", {**GOOD, "width": 3})
        with pytest.raises(JobError, match="workflow: found 'other', allowed is one of still"):
            service.accept("one", {**GOOD, "workflow": "other"})
        assert service.get("one") is None
        assert done(service, given={**GOOD, "workflow": "still"})["status"] == "COMPLETED"
    assert len(fake.graphs) == 1


def test_a_repeated_id_is_answered_from_the_record(tmp_path: Path) -> None:
    with scripted() as (fake, url):
        with serving(tmp_path, url) as service:
            first = done(service)
            assert done(service)["output"] == first["output"]
        with serving(tmp_path, url) as service:
            assert done(service, given={"anything": 1})["output"] == first["output"]
    assert len(fake.graphs) == 1


NODE_ERROR = {
    "node_id": "4",
    "node_type": "RepeatImageBatch",
    "exception_type": "RuntimeError",
    "exception_message": "no space in /var/lib/wanmetal/models/x.bin\nat line 3\n",
    "traceback": ["File /opt/wanmetal/current/ComfyUI/nodes.py"],
    "current_inputs": {"secret": "s3cret"},
}


def test_a_node_s_error_comes_back_as_such(tmp_path: Path) -> None:
    with scripted(end="error", error=NODE_ERROR) as (_, url), serving(tmp_path, url) as service:
        job = done(service)
    assert job["status"] == "FAILED"
    assert job["output"]["error"] == "node 'Frames' failed with RuntimeError: no space in x.bin"
    assert job["output"]["failure"] == {
        "kind": "node",
        "message": "node 'Frames' failed with RuntimeError: no space in x.bin",
        "type": "RuntimeError",
        "node": "Frames",
        "node_type": "RepeatImageBatch",
        "said": "no space in x.bin",
    }
    assert "/opt" not in json.dumps(job)
    assert "s3cret" not in json.dumps(job)


@pytest.mark.parametrize(
    ("script", "kind", "error"),
    [
        ({"reject": {"error": {"message": "bad"}, "node_errors": {"3": {"errors": []}}}}, "rejected", "did not accept"),
        ({"end": "lost"}, "comfyui", "knows nothing of the graph any longer"),
        ({"end": "interrupted"}, "comfyui", "interrupted from elsewhere"),
        ({"video": b"no video"}, "output", "the video is damaged"),
        ({"saves": ".png"}, "output", "the graph came to its end, and node 'Save' gave no video"),
        ({"saves": None}, "output", "the graph came to its end, and node 'Save' gave no video"),
        ({"video": mp4() + bytes(100_000)}, "output", "an answer holds at most"),
        ({"special": {"/upload/image": lambda handler: reply(handler, b"full", 500)}}, "comfyui", "500"),
        ({"special": {"/view": lambda handler: reply(handler, b"", 404)}}, "comfyui", "404"),
    ],
)
def test_what_goes_wrong_is_told(script: dict[str, Any], kind: str, error: str, tmp_path: Path) -> None:
    special = script.pop("special", {})
    with scripted(**script) as (fake, url), serving(tmp_path, url) as service:
        fake.special |= special
        job = done(service)
    assert (job["status"], job["output"]["failure"]["kind"]) == ("FAILED", kind)
    assert error in job["output"]["error"]


def test_a_graph_that_never_arrived_interrupts_nobody_s(tmp_path: Path) -> None:
    """ComfyUI takes an interrupt without an id for one of whatever runs."""
    with scripted() as (fake, url), serving(tmp_path, url) as service:
        fake.special["/prompt"] = lambda handler: reply(handler, b"no JSON", 500)
        assert done(service)["output"]["failure"]["kind"] == "comfyui"
    assert [path for path, _ in fake.requests if "interrupt" in path or "history" in path] == []


@pytest.mark.parametrize("script", [{"cut_socket": True}, {"no_socket": True}])
def test_without_a_websocket_the_job_is_done_all_the_same(script: dict[str, Any], tmp_path: Path) -> None:
    with scripted(takes_s=0.3, **script) as (_, url), serving(tmp_path, url) as service:
        assert done(service)["status"] == "COMPLETED"


def test_comfyui_dies_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "_GONE_AFTER_S", 0.5)
    with scripted(takes_s=60) as (fake, url), serving(tmp_path, url) as service:
        service.accept("one", GOOD)
        until(lambda: fake.queue["queue_running"])
        for path in ("/history", "/queue", "/interrupt"):
            fake.special[path] = lambda handler: handler.connection.shutdown(2)
        for open_socket in list(fake.sockets.values()):
            open_socket.shutdown(2)
        job = service.wait("one", 60)
        assert job is not None
        assert job["status"] == "FAILED"
        assert "does not answer" in job["output"]["error"]
        assert service.health()[0] is False


def test_a_poll_that_is_not_answered_ends_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "_POLL_S", 0.2)
    with scripted(takes_s=1.2, no_socket=True) as (fake, url), serving(tmp_path, url) as service:

        def hang(_: Any) -> None:
            fake.special.clear()
            time.sleep(2)

        service.accept("one", GOOD)
        until(lambda: fake.queue["queue_running"])
        fake.special["/history/"] = hang
        assert (service.wait("one", 60) or {})["status"] == "COMPLETED"
        assert not fake.special, "the poll was not answered"


def test_what_comfyui_tells_shows_that_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it tells something nobody asks it, and only silence after that counts as its absence."""
    now, asked = 0.0, []

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    def history(_: str) -> None:
        asked.append(now)
        raise NoAnswerError("no answer")

    def recv(timeout: float) -> str:
        passes(render._GONE_AFTER_S if now < 10 * render._GONE_AFTER_S else timeout)
        if now > 10 * render._GONE_AFTER_S:
            raise TimeoutError
        return json.dumps({"type": "progress", "data": {"node": "4", "value": 1, "max": 2, "prompt_id": "one"}})

    told: list[Any] = []
    limit = SimpleNamespace(check=lambda: None, ending=lambda _: nullcontext(), over=SimpleNamespace(wait=passes))
    monkeypatch.setattr(render, "time", SimpleNamespace(monotonic=lambda: now, sleep=passes))
    monkeypatch.setattr(render, "ComfyUIClient", lambda *_: SimpleNamespace(history=history, abort=None))
    workflow = SimpleNamespace(graph={"4": {}}, title=str)
    with pytest.raises(NoAnswerError):
        render._followed("", "one", SimpleNamespace(recv=recv), workflow, told.append, limit)  # type: ignore[arg-type]
    assert len(told) == 10
    assert asked[0] > 10 * render._GONE_AFTER_S
    assert asked[-1] - asked[0] > render._GONE_AFTER_S - 1


def test_health_does_not_wait_for_comfyui(tmp_path: Path) -> None:
    with scripted() as (fake, url), serving(tmp_path, url) as service:
        fake.special["/queue"] = lambda _: time.sleep(60)
        started = time.monotonic()
        assert service.health()[0] is False
        assert time.monotonic() - started < 20


def test_a_job_waits_for_comfyui(tmp_path: Path) -> None:
    with scripted() as (fake, url), serving(tmp_path, url) as service:
        fake.special["/queue"] = lambda handler: handler.connection.shutdown(2)
        service.accept("one", GOOD)
        until(lambda: ((service.get("one") or {}).get("progress") or {}).get("stage") == "comfyui")
        del fake.special["/queue"]
        assert (service.wait("one", 5) or {})["status"] == "COMPLETED"


def test_a_job_waits_for_comfyui_as_long_as_it_may_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    with scripted() as (fake, url), serving(tmp_path, url, job_timeout=500.0) as service:
        fake.special["/queue"] = lambda handler: handler.connection.shutdown(2)
        look = comfyuis.ComfyUI.look

        def noted(one: comfyuis.ComfyUI, limit: Limit) -> int:
            asked.append(limit.left())
            return look(one, limit)

        monkeypatch.setattr(comfyuis.ComfyUI, "look", noted)
        service.accept("one", GOOD)
        until(lambda: asked)
    assert asked[0] == pytest.approx(500, abs=5)


def test_a_job_does_not_wait_for_comfyui_for_ever(tmp_path: Path) -> None:
    with scripted() as (fake, url), serving(tmp_path, url, job_timeout=3.0) as service:
        fake.special["/queue"] = lambda handler: handler.connection.shutdown(2)
        assert "does not answer" in done(service)["output"]["error"]


def test_a_job_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    with scripted(takes_s=600) as (fake, url), serving(tmp_path, url, job_timeout=600.0) as service:
        service.accept("one", GOOD)
        until(lambda: fake.queue["queue_running"])
        service._limits["one"].end()  # as its timer does
        assert (service.wait("one", 60) or {})["status"] == "TIMED_OUT"
        until(lambda: not fake.queue["queue_running"])
    assert [path for path, _ in fake.requests].count("POST /interrupt") == 1


def test_cancelling(tmp_path: Path) -> None:
    with scripted(takes_s=60) as (fake, url), serving(tmp_path, url) as service:
        for id_ in ("runs", "waits"):
            service.accept(id_, GOOD)
        until(lambda: fake.queue["queue_running"])
        assert (service.cancel("waits") or {})["status"] == "CANCELLED"
        assert (service.cancel("runs") or {})["status"] == "CANCELLED"
        assert (service.cancel("runs") or {})["status"] == "CANCELLED"
        assert service.cancel("unknown") is None
        until(lambda: not fake.queue["queue_running"])
    assert len(fake.graphs) == 1


def drip(handler: Any) -> None:
    """Never come to the end of the headers."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    with suppress(OSError):
        for _ in range(1200):
            handler.wfile.write(b"x")
            time.sleep(0.05)


@pytest.mark.parametrize("how", ["cancel", "timeout"])
@pytest.mark.parametrize(
    "stage", ["comfyui", "image", "scans", "upload", "listen", "submit", "fetch", "drip", "deliver"]
)
def test_each_stage_ends_with_its_job(stage: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {"comfyui": "/queue", "upload": "/upload/image", "listen": "/ws", "submit": "/prompt"}
    paths |= {"fetch": "/view", "drip": "/view"}
    reached, go_on = threading.Event(), threading.Event()

    def hang(handler: Any) -> None:
        reached.set()
        if stage == "drip":
            drip(handler)
        go_on.wait(60)

    def isolated_run(*given: Any) -> bytes:
        reached.set()
        return run(*given)

    run = isolated.run
    with socket.create_server(("127.0.0.1", 0)) as silent, scripted() as (fake, url):
        nobody = f"http://127.0.0.1:{silent.getsockname()[1]}"
        given: dict[str, Any] = {"image_allow": Networks("127.0.0.0/8"), "image_timeout": 60.0}
        if stage in paths:
            fake.special[paths[stage]] = hang
        else:
            monkeypatch.setattr(isolated, "run", isolated_run)
        if stage == "deliver":
            given |= dict.fromkeys(("bucket_access_key_id", "bucket_secret_access_key", "bucket_name"), "x")
            given["bucket_endpoint_url"] = nobody
        pictures = {"image": f"{nobody}/a.png", "scans": base64.b64encode(many_scans(20_000)).decode()}
        with serving(tmp_path, url, job_timeout=60.0 if how == "cancel" else 8.0, **given) as service:
            service.accept("one", {**GOOD, "image": pictures.get(stage, GOOD["image"])})
            assert reached.wait(30)
            begun = time.monotonic()
            if how == "cancel":
                service.cancel("one")
            job = service.wait("one", 40) or {}
            go_on.set()
        late = "FAILED" if stage == "comfyui" else "TIMED_OUT"
        assert job["status"] == ("CANCELLED" if how == "cancel" else late)
        assert not any(fake.queue.values())
        assert time.monotonic() - begun < 30


def test_jobs_outlive_a_restart(tmp_path: Path) -> None:
    with scripted(takes_s=60) as (fake, url):
        with serving(tmp_path, url) as service:
            for id_ in ("runs", "waits"):
                service.accept(id_, GOOD)
            until(lambda: fake.queue["queue_running"])
        assert [job[1] for job in fake.queue["queue_running"]] == [], "what ran was stopped"
        fake.takes_s, fake.end = 0.01, "success"
        with serving(tmp_path, url) as service:
            assert (service.wait("waits", 5) or {})["status"] == "COMPLETED"
            assert (service.get("runs") or {})["status"] == "COMPLETED"


def test_what_a_restart_cuts_off_is_left_to_runpod(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It may have given the job to another worker; where it gives it here again, it is done, and not answered."""
    caplog.set_level(logging.INFO)
    with scripted(takes_s=60) as (fake, url):
        with serving(tmp_path, url, resume=False) as service:
            for id_ in ("runs", "waits"):
                service.accept(id_, GOOD)
            until(lambda: fake.queue["queue_running"])
        fake.takes_s, fake.end = 0.01, "success"
        with serving(tmp_path, url, resume=False) as service:
            assert [service.get(id_) for id_ in ("runs", "waits")] == [None, None]
            assert done(service, "runs")["status"] == "COMPLETED"
        with serving(tmp_path, url, resume=False) as service:
            assert (service.get("runs") or {})["status"] == "COMPLETED"
    assert len(fake.graphs) == 2
    assert "job waits: cut off by a restart" in caplog.text


def test_a_job_that_kills_the_service_is_given_up(tmp_path: Path) -> None:
    with scripted(takes_s=0.01) as (fake, url):
        with serving(tmp_path, url) as service:
            done(service, "good")
        for attempts, status in ((1, "COMPLETED"), (2, "FAILED")):
            cut_off = f"status = 'IN_PROGRESS', attempts = {attempts}, input = '{json.dumps(GOOD)}', output = NULL"
            record(tmp_path, f"UPDATE jobs SET {cut_off}")  # noqa: S608 (the test's own)
            with serving(tmp_path, url) as service:
                job = service.wait("good", 5) or {}
            assert job["status"] == status
    assert job["output"]["failure"]["kind"] == "restart"
    assert len(fake.graphs) == 2


def test_fifty_at_once(tmp_path: Path) -> None:
    with scripted(takes_s=0.005) as (fake, url), serving(tmp_path, url, concurrency=4) as service:
        with ThreadPoolExecutor(50) as pool:
            jobs = list(pool.map(lambda n: done(service, f"job-{n}", seconds=120), range(50)))
        assert {job["status"] for job in jobs} == {"COMPLETED"}
        assert len(fake.uploads) == len(fake.graphs) == 50, "no two jobs share a name"
        assert len({graph["6"]["inputs"]["filename_prefix"] for graph in fake.graphs}) == 50
        until(lambda: not fake.sockets)


def test_the_record_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest answers go first, by their number and by their bytes; what waits is never forgotten."""
    monkeypatch.setattr(jobs_module, "_MOST_JOBS", 5)
    with scripted() as (fake, url):
        with serving(tmp_path, url) as service:
            for n in range(8):
                done(service, str(n))
            assert record(tmp_path, "SELECT id FROM jobs ORDER BY number") == [(str(n),) for n in range(3, 8)]
        with serving(tmp_path, url, keep_mb=0.01) as service:
            done(service, "8")
            assert record(tmp_path, "SELECT SUM(bytes) <= 10000, MAX(id) FROM jobs") == [(1, "8")]
            assert service.get("3") is None
        fake.takes_s = 60
        with serving(tmp_path, url, keep_mb=0.01) as service:
            service.accept("runs", GOOD)
            until(lambda: fake.queue["queue_running"])
            for n in range(3):
                service.accept(f"waits-{n}", {**GOOD, "positive_prompt": "x" * 2000})
            with pytest.raises(JobError, match="too many jobs wait"):
                service.accept("one more", {**GOOD, "positive_prompt": "x" * 5000})
            assert len(record(tmp_path, "SELECT id FROM jobs WHERE finished IS NULL")) == 4


def test_a_later_attempt_of_a_job_without_a_video_is_done_again(tmp_path: Path) -> None:
    with scripted(end="error", error=NODE_ERROR) as (fake, url), serving(tmp_path, url) as service:
        failed = done(service)
        assert (failed["status"], done(service) == failed, len(fake.graphs)) == ("FAILED", True, 1)
        service.accept("one", GOOD, attempt=2)
        assert (service.wait("one", 10) or {})["status"] == "FAILED"
        service.accept("one", GOOD, attempt=2)
        service.accept("one", GOOD, attempt=1)
        assert len(fake.graphs) == 2, "an attempt that came before is answered from the record"
        fake.end = "success"
        service.accept("one", GOOD, attempt=3)
        good = service.wait("one", 10) or {}
        assert (good["status"], len(fake.graphs)) == ("COMPLETED", 3)
        service.accept("one", GOOD, attempt=4)
        assert service.get("one") == good, "a video is there: it is given once more"
        assert record(tmp_path, "SELECT COUNT(*) FROM jobs") == [(1,)]


@pytest.mark.parametrize("status", ["CANCELLED", "TIMED_OUT", "FAILED"])
def test_what_the_sdk_gives_again_is_done_again(status: str, tmp_path: Path) -> None:
    """RunPod counts no attempts; a queue that does gives the number beside the input."""
    with scripted() as (fake, url), serving(tmp_path, url) as service:
        done(service)
        record(tmp_path, f"UPDATE jobs SET status = '{status}', output = '{{}}'")  # noqa: S608 (the test's own)
        handle = service.run_job
        assert asyncio.run(handle({"id": "one", "input": GOOD, "attempt": 0})) == {}
        assert "video_url" in asyncio.run(handle({"id": "one", "input": GOOD, "attempt": 1}))
        record(tmp_path, f"UPDATE jobs SET status = '{status}', output = '{{}}'")  # noqa: S608 (the test's own)
        assert "video_url" in asyncio.run(handle({"id": "one", "input": GOOD}))
        assert len(fake.graphs) == 3


def test_a_job_that_comes_again_while_it_is_stopped_is_done_again(tmp_path: Path) -> None:
    with scripted(takes_s=60) as (fake, url), serving(tmp_path, url) as service:
        service.accept("one", GOOD)
        until(lambda: fake.queue["queue_running"])
        service._limits["one"].cancel()
        fake.takes_s = 0.01
        service.accept("one", GOOD, attempt=1)
        fake.end = "success"
        assert (service.wait("one", 10) or {})["status"] == "COMPLETED"
        assert len(fake.graphs) == 2


def test_more_than_may_wait(tmp_path: Path) -> None:
    with scripted(takes_s=60) as (fake, url), serving(tmp_path, url, queue=2) as service:
        service.accept("0", GOOD)
        until(lambda: fake.queue["queue_running"])
        for n in (1, 2):
            service.accept(str(n), GOOD)
        with pytest.raises(JobError, match="too many jobs wait"):
            service.accept("3", GOOD)


def test_a_full_disk_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with scripted(video=mp4() + b"\0\0\xc3\x50free" + bytes(49_992)) as (_, url), serving(tmp_path, url) as service:
        base = service._base
        base.execute(f"PRAGMA max_page_count = {base.execute('PRAGMA page_count').fetchone()[0] + 3}")
        job = done(service)
        assert job["status"] == "FAILED"
        assert job["output"]["error"] == "the job's end could not be written down, since the disk is full"
        with pytest.raises(sqlite3.OperationalError, match="full"):
            service.accept("two", {**GOOD, "image": image((400, 400)) + "A" * 40_000})
    assert "database or disk is full" in caplog.text


def test_an_unforeseen_error_shows_nothing_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> bytes:
        raise KeyError("s3cret")

    monkeypatch.setattr(media, "load", broken)
    caplog.set_level(logging.INFO)
    with scripted() as (_, url), serving(tmp_path, url) as service:
        job = done(service)
    assert job["output"]["error"] == "an error inside the handler: KeyError"
    assert "broken" in caplog.text
    assert "s3cret" not in caplog.text + json.dumps(job)


def test_secrets_of_the_bucket_are_not_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    error = NODE_ERROR | {"exception_message": "the key s3cret of key-id is wrong"}
    keys: dict[str, Any] = {"bucket_access_key_id": "key-id", "bucket_secret_access_key": "s3cret"}
    with scripted(end="error", error=error) as (_, url), serving(tmp_path, url, **keys) as service:
        job = done(service)
    assert "the key *** of *** is wrong" in job["output"]["error"]
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("script", [{}, {"end": "error", "error": NODE_ERROR}, {"video": b""}])
def test_nothing_is_left_in_comfyui_s_folders(script: dict[str, Any], tmp_path: Path) -> None:
    class Writes(Script):
        def outputs(self, graph: dict[str, Any]) -> dict[str, Any]:
            name = graph["6"]["inputs"]["filename_prefix"].removeprefix("handler/")
            for suffix in ("_00001_.mp4", "_00001_.png"):
                (tmp_path / "output" / f"{name}{suffix}").write_bytes(b"x")
            return super().outputs(graph)

    with scripted(**script) as (fake, url), serving(tmp_path, url) as service:
        fake.__class__ = Writes
        (tmp_path / "output/of somebody else.mp4").write_bytes(b"x")
        done(service)
    assert [path.name for path in tmp_path.glob("*put/*")] == ["of somebody else.mp4"]


@pytest.mark.parametrize("how", ["cancel", "timeout", "close"])
def test_a_node_that_does_not_stop_at_once_leaves_nothing(how: str, tmp_path: Path) -> None:
    class Slow(Script):
        def post(self, path: str, body: Any) -> tuple[int, Any]:
            if path != "/interrupt":
                return super().post(path, body)
            threading.Timer(0.5, self.stopped, [body]).start()
            return 200, None

        def stopped(self, body: Any) -> None:
            name = self.graphs[0]["6"]["inputs"]["filename_prefix"].removeprefix("handler/")
            (tmp_path / "output" / f"{name}_00001_.mp4").write_bytes(b"x")
            super().post("/interrupt", body)

    with scripted(takes_s=60) as (fake, url):
        fake.__class__ = Slow
        with serving(tmp_path, url, job_timeout=2.0 if how == "timeout" else 120.0) as service:
            service.accept("one", GOOD)
            until(lambda: fake.queue["queue_running"])
            if how == "cancel":
                service.cancel("one")
            elif how == "timeout":
                service.wait("one", 60)
        until(lambda: not fake.queue["queue_running"])
        time.sleep(0.1)
    assert list(tmp_path.glob("*put/*")) == []


@pytest.mark.parametrize("place", ["output/handler", "output"])
def test_no_link_of_a_node_pack_is_followed(place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """ComfyUI's user can put a link in the place of any folder below its own."""
    (tmp_path / "record/handler").mkdir(parents=True)
    (tmp_path / "record/jobs.db").write_text("precious")
    (tmp_path / "record/handler/jobs.db").write_text("precious")
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).symlink_to(tmp_path / "record")
    with scripted() as (_, url), serving(tmp_path, url, data=str(tmp_path), folders="output/handler") as service:
        assert done(service)["status"] == "COMPLETED"
    assert (tmp_path / "record/jobs.db").read_text() == "precious"
    assert (tmp_path / "record/handler/jobs.db").read_text() == "precious"
    assert "nothing is removed from output/handler" in caplog.text


def test_what_cannot_be_removed_keeps_nobody_from_working(tmp_path: Path) -> None:
    (tmp_path / "input/folder").mkdir(parents=True)
    (tmp_path / "input/link").symlink_to(tmp_path)
    with scripted() as (_, url), serving(tmp_path, url, data=str(tmp_path), folders="input:gone/away") as service:
        assert done(service)["status"] == "COMPLETED"
    assert [path.name for path in (tmp_path / "input").iterdir()] == ["folder"]


def test_what_a_crash_left_is_removed_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    (tmp_path / "input/job-1-abcd.png").write_bytes(b"x")
    with scripted() as (_, url), serving(tmp_path, url):
        assert list((tmp_path / "input").iterdir()) == []


def test_old_jobs_are_forgotten(tmp_path: Path) -> None:
    with scripted() as (_, url):
        for hours, expected in ((1.0, ["old"]), (-1.0, [])):
            with serving(tmp_path, url, keep_hours=hours) as service:
                if expected:
                    done(service, "old")
                until(lambda expected=expected: record(tmp_path, "SELECT id FROM jobs") == [(id_,) for id_ in expected])


def test_the_sdk_s_worker_does_the_same_jobs(tmp_path: Path) -> None:
    with scripted() as (_, url), serving(tmp_path, url) as service:
        handle = service.run_job
        result = asyncio.run(handle({"id": "one", "input": GOOD}))
        assert result["metadata"]["num_frames"] == 5
        assert asyncio.run(handle({"id": "one", "input": GOOD})) == result
        refused = asyncio.run(handle({"id": "two", "input": {"image": 3}}))
        assert refused["error"].startswith("image: found 3, allowed is an http(s) address")


def test_a_job_that_the_record_has_lost_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted() as (_, url), serving(tmp_path, url) as service:
        monkeypatch.setattr(service, "ended", lambda *_: asyncio.sleep(0))
        limited = asyncio.wait_for(service.run_job({"id": "one", "input": GOOD}), 2.0)
        assert "the record has lost the job" in asyncio.run(limited)["error"]


def test_the_sdk_can_stop_a_job(tmp_path: Path) -> None:
    with scripted(takes_s=60) as (fake, url), serving(tmp_path, url) as service:

        async def stopped() -> None:
            task = asyncio.create_task(service.run_job({"id": "one", "input": GOOD}))
            while not fake.queue["queue_running"]:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(stopped())
        assert (service.get("one") or {})["status"] == "CANCELLED"


def test_progress_goes_to_the_sdk_now_and_then() -> None:
    sent: list[Any] = []
    tell = program.teller(lambda job, progress: sent.append((job["id"], progress["stage"], progress.get("step"))))
    for step in range(100):
        tell("one", {"stage": "render", "step": step})
    tell("one", {"stage": "fetch"})
    tell("two", {"stage": "fetch"})
    assert sent == [("one", "render", 0), ("one", "fetch", None), ("two", "fetch", None)]


def test_the_client_is_the_one_that_modules_use() -> None:
    assert Path(comfyui_client.__file__).resolve() == Path(modules_client.__file__).resolve()


def test_threads_end(tmp_path: Path) -> None:
    before = threading.active_count()
    with scripted() as (_, url), serving(tmp_path, url, concurrency=3) as service:
        done(service)
    until(lambda: threading.active_count() <= before)
