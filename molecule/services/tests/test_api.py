"""The API on a host with a real ComfyUI. What is asked of comfyui-api itself, its stand-in is asked, too."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

UNIT = "comfyui-api"
URL = "http://127.0.0.1:8288"
COMFYUI = "http://127.0.0.1:8188"
SECRETS = ("c2VydmljZXMtczNjcmV0LXdlYmhvb2s=", "services-s3cret-bucket")
SCENARIO = Path(__file__).resolve().parents[1]
IMAGE = (SCENARIO / "start.png").read_bytes()
DOCUMENT = (SCENARIO.parents[1] / "docs/api.md").read_text(encoding="utf-8")
LONGEST_S = 300
"""What has not come back by then does not come back, however busy the machine is."""

Graph = dict[str, dict[str, Any]]
numbers = iter(range(1, 1000))


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def still(prefix: str = "x", image: str | None = None) -> Graph:
    """A picture. Each one differs, or ComfyUI would not render it."""
    source = node("EmptyImage", width=32, height=32, batch_size=1, color=time.time_ns() % 16_000_000 + next(numbers))
    return {
        "1": source if image is None else node("LoadImage", image=image),
        "2": node("SaveImage", images=["1", 0], filename_prefix=prefix),
    }


def video(prefix: str = "x", image: str | None = None) -> Graph:
    return {
        "1": still(image=image)["1"],
        "2": node("RepeatImageBatch", image=["1", 0], amount=5),
        "3": node("CreateVideo", images=["2", 0], fps=16.0),
        "4": node("SaveVideo", video=["3", 0], filename_prefix=prefix, format="mp4", codec="h264"),
    }


def slow() -> Graph:
    """Some seconds, of several nodes: ComfyUI is interrupted between two of them."""
    graph = still()
    for key in range(10, 15):
        source = "1" if key == 10 else str(key - 1)
        size = {"width": 5000 + key, "height": 5000}
        graph[str(key)] = node("ImageScale", image=[source, 0], upscale_method="lanczos", crop="disabled", **size)
    graph["2"]["inputs"]["images"] = ["14", 0]
    return graph


def call(host: Host, path: str, body: Any = None, within_s: int = 60) -> tuple[int, Any]:
    """Status and answer; 0 where there is none."""
    command = f"curl --silent --max-time {within_s} --write-out '\\n%{{http_code}}' {URL}{path}"
    if body is not None:
        data = json.dumps(body).replace("'", "'\\''")
        command += f" --header 'Content-Type: application/json' --data-binary @- <<'END'\n{data}\nEND"
    answer = host.run(command)
    assert answer.rc != 28, f"{path} gave no answer within {within_s} s"
    text, _, status = answer.stdout.rpartition("\n")
    try:
        return int(status), json.loads(text)
    except ValueError:
        return int(status), text


def rendered(host: Host, graph: Graph, **more: Any) -> list[bytes]:
    status, answer = call(host, "/prompt", {"prompt": graph, **more})
    assert status == 200, answer
    assert len(answer["filenames"]) == len(answer["images"])
    return [base64.b64decode(image) for image in answer["images"]]


def show(host: Host, name: str, unit: str = UNIT) -> str:
    return str(host.check_output(f"systemctl show {unit} --property={name} --value"))


# -- what docs/api.md says of its endpoints


def test_probes(host: Host) -> None:
    assert call(host, "/health")[0] == call(host, "/ready")[0] == 200
    assert {"/prompt", "/interrupt", "/download"} <= call(host, "/docs/json")[1]["paths"].keys()


def test_models(host: Host) -> None:
    status, answer = call(host, "/models")
    listed = json.loads(host.check_output(f"curl --silent --fail {COMFYUI}/models"))
    assert status == 200
    assert answer.keys() == set(listed)
    assert "v1-inference.yaml" in answer["configs"]


@pytest.mark.parametrize("prefix", ["x", "folder/x", "a/b/c"])
def test_files_come_back_wherever_they_are(host: Host, prefix: str) -> None:
    graph = {**still(prefix), "8": node("ImageInvert", image=["1", 0])}
    graph["9"] = node("SaveImage", images=["8", 0], filename_prefix=f"{prefix}-second")
    images = rendered(host, graph)
    assert [image[:4] for image in images] == [b"\x89PNG"] * 2
    assert rendered(host, video(prefix))[0][4:8] == b"ftyp"


def test_what_was_handed_out_is_gone(host: Host) -> None:
    _, answer = call(host, "/prompt", {"prompt": still(), "id": f"mine-{time.monotonic_ns()}"})
    assert answer["filenames"][0].startswith(answer["id"])
    assert host.check_output(f"find /var/lib/wanmetal/output -name '{answer['id']}*'") == ""


@pytest.mark.parametrize("image", [base64.b64encode(IMAGE).decode(), "http://127.0.0.1:9100/start.png"])
def test_inputs(host: Host, image: str) -> None:
    assert rendered(host, video(image=image))[0][4:8] == b"ftyp"


@pytest.mark.parametrize(
    ("graph", "status"),
    [
        ({"1": still()["1"]}, 400),
        (still(image="start.png"), 400),
        ({**still(), "3": node("NoSuchNode", x=1)}, 500),
        ("no graph", 400),
    ],
)
def test_errors(host: Host, graph: Any, status: int) -> None:
    assert call(host, "/prompt", {"prompt": graph})[0] == status


def test_a_body_that_is_too_large(host: Host) -> None:
    host.check_output("head -c 22000000 /dev/zero | tr '\\0' ' ' > /srv/services/large")
    command = (
        "curl --silent --max-time 60 -o /dev/null -w '%{http_code}' -H 'Content-Type: application/json' -H Expect:"
    )
    assert host.check_output(f"{command} --data-binary @/srv/services/large {URL}/prompt") == "413"


def test_nothing_is_downloaded_into_the_models(host: Host) -> None:
    body = {
        "url": "http://127.0.0.1:9100/x.safetensors",
        "model_type": "loras",
        "filename": "x.safetensors",
        "wait": True,
    }
    assert call(host, "/download", body)[0] == 400
    assert not host.file("/var/lib/wanmetal/models/loras/x.safetensors").exists


def posts(host: Host, id_: str) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = host.run("cat /srv/services/posts").stdout.splitlines()
        if found := [post for line in lines if json.loads((post := json.loads(line))["body"])["id"] == id_]:
            return found
        time.sleep(0.2)
    raise AssertionError(f"nothing was posted for {id_}")


@pytest.mark.parametrize("fails", [False, True])
def test_webhook(host: Host, fails: bool) -> None:
    id_ = f"hook-{time.monotonic_ns()}"
    graph = {**still(), "3": node("NoSuchNode", x=1)} if fails else still()
    status, answer = call(host, "/prompt", {"id": id_, "prompt": graph, "webhook_v2": "http://127.0.0.1:9100/hook"})
    assert (status, answer["status"]) == (202, "ok")
    [post] = posts(host, id_)
    headers, body = post["headers"], json.loads(post["body"])
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{post['body']}".encode()
    expected = base64.b64encode(hmac.new(base64.b64decode(SECRETS[0]), signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert body["type"] == ("prompt.failed" if fails else "prompt.complete")
    assert fails or base64.b64decode(body["images"][0])[:4] == b"\x89PNG"


def test_s3(host: Host) -> None:
    status, answer = call(host, "/prompt", {"prompt": video(), "s3": {"bucket": "videos", "prefix": "today/"}})
    assert status == 200, answer
    [address] = answer["images"]
    assert address == f"s3://videos/today/{answer['filenames'][0]}"
    program = host.check_output("systemctl show test-s3 --property=ExecStart | grep -o '/[^ ]*/moto_server' | head -1")
    python = program.replace("moto_server", "python")
    get = (
        "import boto3, sys; print(boto3.client('s3').get_object(Bucket='videos', Key=sys.argv[1])['Body'].read()[4:8])"
    )
    keys = "AWS_ENDPOINT_URL=http://127.0.0.1:9000 AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=a AWS_SECRET_ACCESS_KEY=b"
    key = f"today/{answer['filenames'][0]}"
    assert host.check_output(f'env {keys} AWS_DEFAULT_REGION=us-east-1 {python} -c "{get}" {key}') == "b'ftyp'"


def test_interrupt(host: Host) -> None:
    assert call(host, "/interrupt", {"id": "unknown"})[0] == 404
    id_ = f"slow-{time.monotonic_ns()}"
    body = json.dumps({"id": id_, "prompt": slow()})
    host.check_output(f"cat > /srv/services/slow.json <<'END'\n{body}\nEND")
    asked = "curl --silent --max-time 120 -o /dev/null -w '%{http_code}' -H 'Content-Type: application/json'"
    host.check_output(
        f"({asked} --data @/srv/services/slow.json {URL}/prompt > /srv/services/slow.status 2> /dev/null &) ; sleep 2"
    )
    assert call(host, "/interrupt", {"id": id_}) == (200, {"id": id_, "interrupted": "success"})
    host.check_output("for n in $(seq 300); do test -s /srv/services/slow.status && exit; sleep 0.2; done; exit 1")
    assert host.file("/srv/services/slow.status").content_string == "500"
    assert rendered(host, still())


# -- ComfyUI beneath it


def healthy(host: Host) -> bool:
    return bool(host.run(f"curl --silent --fail --max-time 2 -o /dev/null {COMFYUI}/system_stats").rc == 0)


def answers_again(host: Host) -> None:
    """Wait for an answered graph. While ComfyUI is away the API must not say that it is ready."""
    deadline = time.monotonic() + LONGEST_S
    while True:
        ready = call(host, "/ready")[0] == 200
        if healthy(host):
            break
        assert not ready, "the API says that it is ready, and ComfyUI is away"
        assert time.monotonic() < deadline, "ComfyUI does not come back"
        time.sleep(0.2)
    while call(host, "/prompt", {"prompt": still()}, within_s=LONGEST_S)[0] != 200:
        assert time.monotonic() < deadline + LONGEST_S, "the API does not come back"
        time.sleep(0.2)


@pytest.fixture
def comfyui(host: Host) -> Iterator[None]:
    yield
    host.check_output("systemctl reset-failed comfyui; systemctl start comfyui")


@pytest.mark.usefixtures("comfyui")
@pytest.mark.parametrize(
    "command",
    [
        "systemctl restart --no-block comfyui",
        "systemctl kill --signal=KILL comfyui",
        f"systemctl kill --signal=KILL {UNIT}",
    ],
)
def test_it_survives(host: Host, command: str) -> None:
    host.check_output(f"systemctl reset-failed comfyui; {command}; sleep 0.5")
    answers_again(host)


@pytest.mark.usefixtures("comfyui")
def test_comfyui_is_stopped_for_good_and_slow_to_start_again(host: Host) -> None:
    host.check_output(
        "curl --silent --max-time 60 -o /dev/null -H 'Content-Type: application/json' --data @/srv/services/slow.json "
        f"{URL}/prompt > /dev/null 2>&1 & sleep 1; systemctl stop comfyui; wait"
    )
    begin = time.monotonic()
    assert call(host, "/prompt", {"prompt": still()}, within_s=10)[0] == 0
    assert call(host, "/ready", within_s=10)[0] == 0
    assert time.monotonic() - begin < 10
    assert show(host, "ActiveState") == "inactive"
    try:
        host.check_output(
            "mkdir -p /run/systemd/system/comfyui.service.d && "
            "printf '[Service]\\nExecStartPre=/bin/sleep 25\\n' > /run/systemd/system/comfyui.service.d/slow.conf && "
            "systemctl daemon-reload && systemctl start --no-block comfyui && sleep 1"
        )
        answers_again(host)
    finally:
        host.check_output("rm -r /run/systemd/system/comfyui.service.d; systemctl daemon-reload")


# -- the unit


def test_the_unit(host: Host) -> None:
    shown = set(host.check_output(f"systemctl show {UNIT}").splitlines())
    assert {
        *(
            "User=wanmetal-api",
            "NoNewPrivileges=yes",
            "ProtectSystem=strict",
            "PrivateDevices=yes",
        ),
        *("UnitFileState=enabled", "KillSignal=2", f"MemoryMax={4 * 2**30}", "BindsTo=comfyui.service"),
    } <= shown
    assert "169.254.0.0/16" in show(host, "IPAddressDeny")
    environment = host.file(f"/proc/{show(host, 'MainPID')}/environ").content_string.split("\0")
    assert {"HOST=127.0.0.1", "SHELL=/bin/sh", "PREPEND_FILENAMES=false", "MAX_BODY_SIZE_MB=20"} <= {*environment}
    workflows = host.file("/etc/wanmetal/comfyui-api-workflows")
    assert (workflows.user, workflows.mode) == ("root", 0o755)


def test_it_listens_on_loopback_alone(host: Host) -> None:
    sockets = re.findall(r"LISTEN +\S+ +\S+ +(\S+):(\d+) ", host.check_output("ss -Hltn"))
    assert {address for address, port in sockets if port != "22"} <= {"127.0.0.1", "[::1]"}
    assert {"8188", "8288", "8888"} <= {port for _, port in sockets}


def test_secrets_are_there(host: Host) -> None:
    file = host.file("/etc/wanmetal/comfyui-api.env")
    assert (file.user, file.mode) == ("root", 0o600)
    environment = host.file(f"/proc/{show(host, 'MainPID')}/environ").content_string
    assert [secret for secret in SECRETS if secret not in environment] == []


# -- the examples of docs/api.md, one after the other in one folder


def test_the_examples(host: Host) -> None:
    for name, graph in {"graph": video("a/b"), "image-graph": video(image="start.png"), "long-graph": slow()}.items():
        file = f"/srv/services/examples/{name}.json"
        host.check_output(f"mkdir -p $(dirname {file}); cat > {file} <<'END'\n{json.dumps(graph)}\nEND")
    host.check_output("cp /srv/services/start.png /srv/services/examples/; rm -f /srv/services/examples/*.mp4")
    told, python = "", ""  # what they print; all Python so far
    for language, block in re.findall(r"(?ms)^```(bash|python)\n(.*?)^```", DOCUMENT):
        text = block.replace("https://example.com", "http://127.0.0.1:9100")
        if language == "python":  # each goes on from the ones before it
            python += text
            text = python
        program = "bash -eu" if language == "bash" else "python3"
        done = host.run(f"cd /srv/services/examples && timeout 120 {program} - <<'END'\n{text}\nEND")
        assert done.rc == 0, f"{block}\n{done.stderr}"
        told += done.stdout
    assert host.check_output("find /srv/services/examples -name '*.mp4' -size +100c")
    assert "s3://videos/today/" in told
    assert "'interrupted': 'success'" in told
    assert '"interrupted":"failed"' in told.replace(" ", "")
    post = posts(host, "my-job-1")[-1]
    [genuine] = re.findall(r"(?ms)^import base64, hashlib.*?^    return fresh.*?$", python)
    # The secret is read on the host, or sudo's log would have it.
    check = (
        f"{genuine}\nimport json, re\npost = json.loads(r'''{json.dumps(post)}''')\n"
        "file = open('/etc/wanmetal/comfyui-api.env').read()\n"
        "secret = re.search('WEBHOOK_SECRET=\"(.+)\"', file)[1]\n"
        "assert is_genuine(post['headers'], post['body'].encode(), secret)\n"
        "assert not is_genuine(post['headers'], post['body'].encode() + b' ', secret)\n"
    )
    assert host.run(f"python3 - <<'END'\n{check}\nEND").rc == 0
