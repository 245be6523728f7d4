"""The handler on a host with a real ComfyUI."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from typing import Any

from testinfra.host import Host
from wanmetal_handler.output import measured

SECRET = "handler-s3cret"  # noqa: S105 (converge.yml sets it)
PIXELS = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
UNIT = "comfyui-handler"


def call(host: Host, path: str, body: Any = None, method: str = "GET") -> dict[str, Any]:
    data = f"-H 'Content-Type: application/json' -d '{json.dumps(body)}'" if body is not None else f"-X {method}"
    answer: dict[str, Any] = json.loads(host.check_output(f"curl -s -m 120 {data} http://127.0.0.1:8388{path}"))
    return answer


def request(**fields: Any) -> dict[str, Any]:
    return {"input": {"image": PIXELS, "num_frames": 5, "final_frame_rate": 16, **fields}}


def ended(host: Host, id_: str) -> dict[str, Any]:
    deadline = time.monotonic() + 600
    while (job := call(host, f"/status/{id_}"))["status"] in {"IN_QUEUE", "IN_PROGRESS"}:
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
    return job


def left_behind(host: Host) -> str:
    """What is removed right after the answer is given a moment."""
    deadline = time.monotonic() + 30
    while found := host.check_output("find /var/lib/wanmetal/input/handler /var/lib/wanmetal/output/handler -type f"):
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return str(found)


def test_a_real_video(host: Host) -> None:
    job = call(host, "/runsync", request(width=128, height=64, num_frames=9, seed=3))
    assert job["status"] == "COMPLETED", job
    output = job["output"]
    assert output["metadata"] == {"width": 128, "height": 64, "num_frames": 9, "frame_rate": 16.0, "duration": 0.562}
    video = base64.b64decode(host.check_output(f"curl -sf '{output['video_url']}' | base64 -w0"))
    assert measured(video, "x.mp4") == output["metadata"]
    assert hashlib.sha256(video).hexdigest() == output["receipt"]["video_sha256"]
    assert "handler-s3cret-key" not in json.dumps(job), "the link holds the key's id alone"
    receipt = output["receipt"]
    release = re.findall(r"HANDLER_RELEASE=(\S+)", host.check_output(f"systemctl cat {UNIT}"))[0]
    assert receipt["release"] == json.loads(host.check_output(f"cat {release}"))["id"]
    assert (receipt["comfyui"], receipt["seed"], receipt["workflow"]) == ("0.3.75", 3, "still")
    assert receipt["gpu"]
    assert left_behind(host) == ""


def test_a_node_that_fails_is_named(host: Host) -> None:
    """A picture of one pixel is none that the codec takes: ComfyUI accepts the graph, and the node that saves fails."""
    job = call(host, "/runsync", {"input": {"workflow": "breaks", "image": PIXELS}})
    assert (job["status"], job["failure"]["kind"], job["failure"]["node"]) == ("FAILED", "node", "Save"), job
    assert "Traceback" not in json.dumps(job)
    assert "/var" not in json.dumps(job)
    assert left_behind(host) == ""


def test_a_refused_request_says_what_is_allowed(host: Host) -> None:
    told = call(host, "/run", request(width=100))
    assert told["error"] == "width: found 100, allowed is a whole number from 64 to 2048, a multiple of 16"


def test_jobs_outlive_a_restart_of_the_service(host: Host) -> None:
    ids = [f"job-{time.monotonic_ns()}-{n}" for n in range(3)]
    for number, id_ in enumerate(ids):
        accepted = call(host, "/run", {"id": id_, **request(width=256, height=256, num_frames=81, seed=number)})
        assert accepted["id"] == id_
    host.check_output(f"systemctl restart {UNIT}")
    assert [ended(host, id_)["status"] for id_ in ids] == ["COMPLETED"] * 3
    assert call(host, "/run", {"id": ids[0], **request()})["status"] == "COMPLETED"
    assert left_behind(host) == ""


def test_comfyui_dies_in_the_middle_of_a_job(host: Host) -> None:
    """That job is rendered once more when ComfyUI is back, and the next one after it."""
    hit, next_ = (f"{name}-{time.monotonic_ns()}" for name in ("hit", "next"))
    call(host, "/run", {"id": hit, **request(width=512, height=512, num_frames=401)})
    call(host, "/run", {"id": next_, **request(seed=9)})
    deadline = time.monotonic() + 300
    while "nodes_begun" not in call(host, f"/status/{hit}").get("progress", {}):
        assert time.monotonic() < deadline
    host.check_output("systemctl kill --signal=KILL comfyui")
    job = ended(host, hit)
    assert job["status"] == "COMPLETED", job
    assert ended(host, next_)["status"] == "COMPLETED"
    assert left_behind(host) == ""


def test_cancel(host: Host) -> None:
    ids = [f"cancel-{time.monotonic_ns()}-{n}" for n in range(2)]
    for id_ in ids:
        call(host, "/run", {"id": id_, **request(width=512, height=512, num_frames=601)})
    assert [call(host, f"/cancel/{id_}", method="POST")["status"] for id_ in reversed(ids)] == ["CANCELLED"] * 2
    assert call(host, "/runsync", request(seed=10))["status"] == "COMPLETED"


def test_the_service_is_kept_small(host: Host) -> None:
    shown = host.check_output(f"systemctl show {UNIT}")
    for line in ("User=wanmetal-handler", "NoNewPrivileges=yes", "ProtectSystem=strict"):
        assert line in shown.splitlines()
    assert host.service(UNIT).is_enabled
    pid = re.findall(r"^MainPID=(\d+)$", shown, re.MULTILINE)[0]
    assert "CapBnd:\t0000000000000000" in host.check_output(f"cat /proc/{pid}/status")
    sockets = re.findall(rf"LISTEN +\S+ +\S+ +(\S+) .*pid={pid},", host.check_output("ss -Hltnp"))
    assert sockets == ["127.0.0.1:8388"]


def test_secrets_are_there(host: Host) -> None:
    file = host.file("/etc/wanmetal/handler.env")
    assert (file.user, file.mode) == ("root", 0o600)
    pid = host.check_output(f"systemctl show {UNIT} --property=MainPID --value")
    environment = host.file(f"/proc/{pid}/environ").content_string.split("\0")
    expected = {f"TEST_TOKEN={SECRET}", f'BUCKET_SECRET_ACCESS_KEY={SECRET}-key $HOME "and" \\more'}
    assert expected <= {*environment}
