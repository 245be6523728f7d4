"""Graphs of a caller's own, several ComfyUIs, and what is told to webhooks."""

from __future__ import annotations

import base64
import copy
import io
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import av
import pytest
from ansible_collections.wanmetal.comfyui.tests.unit.scripted_comfyui import GRAPH, scripted
from ansible_collections.wanmetal.comfyui.tests.unit.test_handler_output import REFUSAL, storage
from ansible_collections.wanmetal.comfyui.tests.unit.test_handler_service import (
    GOOD,
    done,
    image,
    record,
    serving,
    until,
)
from ansible_collections.wanmetal.comfyui.tests.web import Request, body, hosting, reply
from PIL import Image
from wanmetal_handler import jobs
from wanmetal_handler.addresses import Networks
from wanmetal_handler.failure import JobError
from wanmetal_handler.media import remade

NESTED: list[Any] = []
for _ in range(900):
    NESTED = [NESTED]


def own(**values: Any) -> dict[str, Any]:
    graph = copy.deepcopy(GRAPH)
    graph["1"]["inputs"]["image"] = "start.png"
    return {"workflow": graph, "images": [{"name": "start.png", "image": image()}], **values}


def film(kind: str = "mp4", codec: str = "mpeg4", frames: int = 8, size: int = 32) -> bytes:
    result = io.BytesIO()
    with av.open(result, "w", format=kind) as file:
        stream = file.add_stream(codec, rate=8)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for _ in range(frames):
            file.mux(stream.encode(av.VideoFrame(size, size, "yuv420p")))
        file.mux(stream.encode())
    return result.getvalue()


def test_a_graph_of_the_caller_s_own_gives_all_that_it_saves(tmp_path: Path) -> None:
    with scripted() as (fake, url), serving(tmp_path, url, raw_workflows=1) as service:
        job = done(service, given=own())
        (name,) = fake.uploads
        assert fake.graphs[0]["1"]["inputs"]["image"] == f"handler/{name}"
    assert job["status"] == "COMPLETED", job
    (video,) = job["output"]["videos"]
    assert (video["type"], base64.b64decode(video["data"])) == ("base64", fake.video)
    assert video["filename"].endswith("_00001_.mp4")
    assert job["output"]["receipt"]["outputs"][0]["bytes"] == len(fake.video)


INT = {"input": {"required": {"value": ["INT", {}]}}, "output": ["INT"], "output_name": ["INT"]}


def test_what_the_browser_fills_in_as_it_queues_is_filled_in_for_a_job(tmp_path: Path) -> None:
    texts = {"input": {"required": {"text": ["STRING", {"dynamicPrompts": True}]}}, "output": ["VIDEO"]}
    save = {"input": {"required": {"video": ["VIDEO", {}], "filename_prefix": ["STRING", {}]}}, "output": []}
    given = {
        "nodes": [
            {"id": 1, "type": "Fox", "widgets_values": ["a {red|red} fox // runs"], "outputs": [{"name": "V"}]},
            {
                "id": 6,
                "type": "SaveVideo",
                "widgets_values": ["mine/%Fox.text%"],
                "inputs": [{"name": "video", "type": "VIDEO", "link": 1}],
            },
        ],
        "links": [[1, 1, 0, 6, 0, "VIDEO"]],
    }
    with scripted() as (fake, url), serving(tmp_path, url, raw_workflows=1) as service:
        known = json.dumps({"Fox": texts, "SaveVideo": {**save, "output_node": True}}).encode()
        fake.special["/object_info"] = lambda handler: reply(handler, known)
        job = done(service, given={"workflow": given})
    assert job["status"] == "COMPLETED", job
    assert fake.graphs[0]["1"]["inputs"] == {"text": "a red fox "}
    assert job["output"]["videos"][0]["filename"].startswith("a {red_red} fox __ runs_")


def test_node_types_that_comfyui_lacks_are_replaced_and_named(tmp_path: Path) -> None:
    with (
        scripted() as (fake, url),
        serving(tmp_path, url, raw_workflows=1, raw_nodes="Pr* Lo* Im* Re* Cr* Sa*") as service,
    ):
        known = json.dumps({"PrimitiveInt": INT}).encode()
        fake.special["/object_info"] = lambda handler: reply(handler, known)
        given = own()
        given["workflow"] |= {"8": {"class_type": "easy int", "inputs": {"value": 5}}}
        given["workflow"]["4"]["inputs"]["amount"] = ["8", 0]
        job = done(service, given=given)
        known = json.dumps({"easy int": INT}).encode()
        refused = done(service, "again", given)
    assert job["status"] == "COMPLETED", job
    assert (fake.graphs[0]["8"]["class_type"], fake.graphs[0]["8"]["inputs"]) == ("PrimitiveInt", {"value": 5})
    assert job["output"]["receipt"]["replaced"] == ["node 8 (easy int): easy int → PrimitiveInt"]
    assert refused["status"] == "FAILED"
    assert "out of handler_raw_nodes" in json.dumps(refused)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"workflow": {"1": {"class_type": "LoadImage", "inputs": {"image": "/etc/passwd"}}}}, "inside of ComfyUI"),
        ({"workflow": {"1": {"class_type": "LoadImage", "inputs": {"image": "a/../../b.png"}}}}, "inside of ComfyUI"),
        ({"workflow": {"1": {"class_type": "LoadImage", "inputs": {"image": "x.png [output]"}}}}, "inside of ComfyUI"),
        ({"workflow": {"1": {"class_type": "LoadImage", "inputs": {"x": [{"y": "handler/z"}]}}}}, "inside of ComfyUI"),
        ({"workflow": {"1": {"class_type": "PythonExec", "inputs": {}}}}, "out of handler_raw_nodes"),
        ({"workflow": {"1": {"inputs": {}}}}, "a node with class_type and inputs"),
        ({"workflow": {"1": {"class_type": "LoadImage", "inputs": {}, "_meta": {"title": NESTED}}}}, "too deeply"),
        ({"workflow": {"1": {"class_type": "LoadImage", "inputs": {"image": NESTED}}}}, "too deeply"),
        ({"workflow": {}}, "a graph in API format"),
        ({"images": [{"name": "../x.png", "image": "AAAA"}]}, "a name of its own"),
        ({"images": [{"name": "x.png"}]}, "an object with the texts name and image"),
        ({"files": [{"name": "x.exe", "file": "AAAA"}]}, "one that ends in .png"),
        ({"other": 1}, "beside a graph"),
    ],
)
def test_a_graph_that_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    nodes = " ".join({node["class_type"] for node in GRAPH.values()})
    with serving(tmp_path, "http://127.0.0.1:1", raw_workflows=1, raw_nodes=nodes) as service:
        service.worker.check(own())
        with pytest.raises(JobError, match=said):
            service.worker.check(own(**change))


def linked(kind: str, key: str, *, through: str = "", said: str = "/imagine/a.fox") -> dict[str, Any]:
    """A text that reaches an input of a node, on its way through another node."""
    graph: dict[str, Any] = {"1": {"class_type": "PrimitiveString", "inputs": {"value": said}}}
    graph["2"] = {"class_type": through, "inputs": {"string_a": ["1", 0]}} if through else graph["1"]
    graph["3"] = {"class_type": kind, "inputs": {key: ["2", 0]}}
    return {"workflow": graph}


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ("CLIPTextEncode", "text"),
        ("CLIPTextEncodeFlux", "t5xxl"),
        ("WanVideoTextEncode", "positive_prompt"),
        ("TextEncodeAceStepAudio", "lyrics"),
        ("PrimitiveStringMultiline", "value"),
    ],
)
@pytest.mark.parametrize(
    "said", ["/imagine a fox", "/imagine", "~ ~ a fox", "C:\\ is a drive", "handler/one", "a/../b", "x [temp]"]
)
def test_a_prompt_may_look_like_a_path(node: str, name: str, said: str, tmp_path: Path) -> None:
    encoded = {"class_type": node, "inputs": {name: said}}
    # Pictures that were made by it are saved, and their node names a file.
    saved = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "a"}}
    with serving(tmp_path, "http://127.0.0.1:1", raw_workflows=1) as service:
        service.worker.check(
            {"workflow": {"1": encoded, "2": saved}} if "Encode" in node else {"workflow": {"1": encoded}}
        )
        service.worker.check(linked("CLIPTextEncode", "text", through="StringConcatenate", said=said))


@pytest.mark.parametrize(
    "given",
    [
        linked("VHS_LoadVideoPath", "video"),
        linked("VHS_LoadVideoPath", "video", through="StringConcatenate", said="../../x"),
        linked("SaveImage", "filename_prefix", said="a/../../b"),
        linked("LoadImage", "image", said="x.png [output]"),
        linked("Mine", "text_file"),
        {"workflow": {"1": {"class_type": "Mine", "inputs": {"prompt_path": "/etc/passwd"}}}},
        {"workflow": {"1": {"class_type": "Mine", "inputs": {"source": "/etc/passwd"}}}},
        {"workflow": {"1": {"class_type": "VHS_LoadVideoPath", "inputs": {"video": "/etc/a b.mp4"}}}},
    ],
)
def test_the_name_of_a_file_may_not(given: dict[str, Any], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"raw_workflows": 1}
    with (
        serving(tmp_path, "http://127.0.0.1:1", **settings) as service,
        pytest.raises(JobError, match="inside of ComfyUI"),
    ):
        service.worker.check(given)


def test_what_the_queue_has_given_is_done_although_the_handler_is_drained(tmp_path: Path) -> None:
    with scripted() as (_, url), serving(tmp_path, url) as service:
        service.draining = True
        with pytest.raises(JobError, match="takes no new jobs"):
            service.accept("one", GOOD)
        service.accept("two", GOOD, 0, {"queue": True})
        assert (service.wait("two", 60) or {})["status"] == "COMPLETED"


def test_without_the_setting_no_graph_is_taken(tmp_path: Path) -> None:
    with serving(tmp_path, "http://127.0.0.1:1") as service, pytest.raises(JobError, match="handler_raw_workflows"):
        service.worker.check(own())


def test_jobs_are_spread_over_all_and_one_that_ends_costs_no_job(tmp_path: Path) -> None:
    with ExitStack() as stack:
        found = [stack.enter_context(scripted(takes_s=0.2)) for _ in range(3)]
        urls = " ".join(url for _, url in found)
        service = stack.enter_context(serving(tmp_path, urls, concurrency=3, job_timeout=60.0))
        for number in range(12):
            service.accept(str(number), GOOD)
        assert {(service.wait(str(n), 60) or {})["status"] for n in range(12)} == {"COMPLETED"}
        assert min(len(fake.graphs) for fake, _ in found) >= 2
        found[0][0].end = "lost"
        for number in range(12, 20):
            service.accept(str(number), GOOD)
        assert {(service.wait(str(n), 60) or {})["status"] for n in range(12, 20)} == {"COMPLETED"}
        assert [one["state"] for one in service.health()[1]["comfyui"]] == ["idle"] * 3


@contextmanager
def hooked(**statuses: int) -> Iterator[tuple[str, list[tuple[str, dict[str, str], bytes]]]]:
    """A server that takes webhooks, by the last parts of their addresses, and what it was told."""
    told: list[tuple[str, dict[str, str], bytes]] = []

    def take(request: Request) -> None:
        told.append((request.path, dict(request.headers), body(request)))
        reply(request, b"", statuses.get(request.path[1:], 200))

    with hosting(take) as url:
        yield url, told


def test_webhooks_that_fail_hold_up_no_others_and_are_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread for all: a try that waits for its turn must not hold it."""
    monkeypatch.setattr(jobs, "_WEBHOOKS", 1)
    monkeypatch.setattr(jobs.Jobs._report, "__defaults__", ((0.5, 3600.0),))
    with hooked(bad=500) as (hook, told), scripted() as (_, url):

        def asked(name: str) -> int:
            return [path for path, *_ in told].count(f"/{name}")

        with serving(tmp_path, url, image_allow=Networks("127.0.0.0/8")) as service:
            for number, name in enumerate(["bad", "bad", "good"]):
                service.accept(str(number), GOOD, 0, {"webhook": f"{hook}/{name}"})
            until(lambda: asked("bad") == 4 and asked("good") == 1)
            # What answered is done with; the others are tried again, by the next service if need be.
            until(lambda: record(tmp_path, "SELECT id FROM jobs WHERE options IS NOT NULL") == [("0",), ("1",)])
        with serving(tmp_path, url, image_allow=Networks("127.0.0.0/8")):
            until(lambda: asked("bad") >= 6)
        assert asked("good") == 1
        # A job that has ended the service twice is at its end when the next one starts.
        options = json.dumps({"webhook": f"{hook}/good"})
        cut_off = f"status = 'IN_PROGRESS', attempts = 2, finished = NULL, output = NULL, options = '{options}'"
        record(tmp_path, f"UPDATE jobs SET {cut_off} WHERE id = '2'")  # noqa: S608 (the test's own)
        with serving(tmp_path, url, image_allow=Networks("127.0.0.0/8")) as service:
            until(lambda: asked("good") == 2)
            assert (service.get("2") or {})["status"] == "FAILED"


@pytest.mark.parametrize("options", [{"webhook": "{}"}, {"webhook": "{}", "policy": {"lowPriority": True}}])
def test_a_webhook_is_told_the_end(options: dict[str, Any], tmp_path: Path) -> None:
    with hooked() as (hook, told), scripted() as (_, url):
        given = {**options, "webhook": f"{hook}/x"}
        settings: dict[str, Any] = {"image_allow": Networks("127.0.0.0/8"), "webhook_secret": "s3cret"}
        with serving(tmp_path, url, **settings) as service:
            service.accept("one", GOOD, 0, given)
            until(lambda: told)
    ((_, headers, body),) = told
    assert json.loads(body)["status"] == "COMPLETED"
    assert headers["webhook-id"] == "one"
    assert headers["webhook-signature"].startswith("v1,")


@pytest.mark.parametrize(("allowed", "refusals"), [("127.0.0.0/8", 0), ("127.0.0.0/8", 9), ("", 0)])
def test_a_job_may_name_a_bucket_of_its_own(allowed: str, refusals: int, tmp_path: Path) -> None:
    with (
        storage(*[(403, REFUSAL % b"AccessDenied")] * refusals) as (bucket, put),
        scripted() as (fake, url),
        serving(tmp_path, url, image_allow=Networks(allowed)) as service,
    ):
        keys = {"accessId": "key-id", "accessSecret": "s3cret", "bucketName": "mine"}
        service.accept("one", GOOD, 0, {"s3Config": {**keys, "endpointUrl": bucket.bucket_endpoint_url}})
        job = service.wait("one", 60) or {}
    if allowed and not refusals:
        assert job["output"]["video_url"].startswith(f"{bucket.bucket_endpoint_url}/mine/one-")
        assert list(put["parts"].values()) == [fake.video]
    else:
        assert (job["status"], job["output"]["failure"]["kind"]) == ("FAILED", "bucket")
        assert put["parts"] == {}
        assert bool(put["requests"]) is bool(allowed), "nothing may be sent to an address that is not allowed"
    assert "s3cret" not in json.dumps(job)
    assert record(tmp_path, "SELECT options FROM jobs") == [(None,)], "the record keeps no secret"


def test_the_files_of_a_request_have_a_limit_together(tmp_path: Path) -> None:
    noise = io.BytesIO()
    Image.effect_noise((100, 100), 200).save(noise, "PNG")
    files = [{"name": f"{n}.png", "image": base64.b64encode(noise.getvalue()).decode()} for n in range(9)]
    settings: dict[str, Any] = {"raw_workflows": 1, "image_megapixels": 0.01, "video_mb": 0.0}
    with scripted() as (fake, url), serving(tmp_path, url, **settings) as service:
        job = done(service, given=own(images=[{"name": "start.png", "image": image()}, *files]))
        assert job["output"]["failure"]["message"] == "the files of the request have more than 0.06 MB together"
        assert fake.graphs == []


def test_a_video_is_copied_into_a_new_file() -> None:
    kind, data = remade("video", film(), 10_000, 10)
    with av.open(io.BytesIO(data)) as file:
        assert (kind, sum(1 for _ in file.decode(video=0))) == (b"mp4", 8)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"#EXTM3U\nfile:///etc/passwd", "it has to be an MP4"),
        (film()[:200], "damaged"),
        (film(frames=100), "lasts longer than 10 s"),
        (film(size=128), "frames of 128x128 pixels"),
        (film("matroska", "mpeg2video"), "coded as mpeg2video"),
        (b"", "it has to be an MP4"),
    ],
)
def test_a_video_that_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(JobError, match=said):
        remade("video", data, 10_000, 10)
