"""Requests of each kind: those of docs/handler.md, and what clients of worker-comfyui and the RunPod image send."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import workflows
from ansible_collections.wanmetal.comfyui.tests.unit.scripted_comfyui import GRAPH, WORKFLOW, Script, mp4, scripted
from ansible_collections.wanmetal.comfyui.tests.unit.test_handler_graphs import film
from ansible_collections.wanmetal.comfyui.tests.unit.test_handler_images import LOOPBACK, picture, sends
from ansible_collections.wanmetal.comfyui.tests.unit.test_handler_service import done, image, serving
from ansible_collections.wanmetal.comfyui.tests.web import Request, hosting
from PIL import Image
from wanmetal_handler.failure import JobError

DOCS = Path(__file__).resolve().parents[2] / "docs/handler.md"
EXAMPLES = json.loads(
    re.findall(r"```json\n(\{\n  \"image\": \[.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)[0]
)
NODES = {
    "image": ("LoadImage", "image"),
    "end_image": ("LoadImage", "image"),
    "mask": ("LoadImageMask", "image"),
    "video": ("LoadVideo", "file"),
    "audio": ("LoadAudio", "audio"),
    "positive_prompt": ("PrimitiveString", "value"),
    "num_frames": ("RepeatImageBatch", "amount"),
    "cfg_scale": ("KSampler", "cfg"),
    "seed": ("KSampler", "seed"),
    "method": ("ImageScale", "upscale_method"),
}
NOW = {"num_frames": 1, "cfg_scale": 1.0, "seed": 1}
ALL: dict[str, Any] = {
    "name": "all",
    "graph": {
        **{
            name: {"class_type": kind, "inputs": {key: NOW.get(name, "x")}, "_meta": {"title": name}}
            for name, (kind, key) in NODES.items()
        },
        "6": GRAPH["6"],
    },
    "settings": {
        **{name: [name, key] for name, (_, key) in NODES.items()},
        "filename_prefix": WORKFLOW["settings"]["filename_prefix"],
    },
}


def sound(kind: str, codec: str) -> bytes:
    result = io.BytesIO()
    with av.open(result, "w", format=kind) as file:
        stream = file.add_stream(codec, rate=44100)
        frame = av.AudioFrame(format="s16", layout="mono", samples=4608)
        frame.planes[0].update(bytes(9216))
        frame.sample_rate = 44100
        for resampled in av.AudioResampler(stream.codec_context.format, stream.codec_context.layout, 44100).resample(
            frame
        ):
            file.mux(stream.encode(resampled))
        file.mux(stream.encode())
    return result.getvalue()


@pytest.fixture(scope="module")
def example_com() -> Iterator[str]:
    files = {
        "start.jpg": picture("JPEG"),
        "end.png": picture(),
        "mask.png": picture(),
        "mask.webp": picture("WEBP"),
        "dance.mp4": film(),
        "dance.webm": film("webm", "libvpx"),
        "voice.mp3": sound("mp3", "libmp3lame"),
        "voice.flac": sound("flac", "flac"),
    }

    def answer(request: Request) -> None:
        sends(files[request.path.rpartition("/")[2]])(request)

    with hosting(answer) as url:
        yield url


@pytest.mark.parametrize("number", range(3))
def test_three_of_each_kind_as_the_document_has_them(number: int, example_com: str, tmp_path: Path) -> None:
    assert EXAMPLES.keys() == NODES.keys()
    assert {len(examples) for examples in EXAMPLES.values()} == {3}
    given = {name: examples[number] for name, examples in EXAMPLES.items()}
    asked = json.loads(json.dumps(given).replace("https://example.com", example_com))
    (tmp_path / "workflows.json").write_text(json.dumps([ALL]))
    with (
        scripted() as (fake, url),
        serving(tmp_path, url, image_allow=LOOPBACK) as service,
    ):
        job = done(service, given=asked)
    assert job["status"] == "COMPLETED", job
    (graph,) = fake.graphs
    values = {name: graph[name]["inputs"][key] for name, (_, key) in NODES.items()}
    seed = values["seed"]
    assert seed == given["seed"] or (given["seed"] is None and 0 <= seed < 2**53)
    same = ("positive_prompt", "num_frames", "cfg_scale", "method")
    assert {name: values[name] for name in same} == {name: given[name] for name in same}
    assert isinstance(values["num_frames"], int)
    sent = {
        name: fake.uploads[values[name].removeprefix("handler/")]
        for name in ("image", "end_image", "mask", "video", "audio")
    }
    for name in ("image", "end_image", "mask"):
        with Image.open(io.BytesIO(sent[name])) as one:
            assert (one.format, one.width) == ("PNG", 8)
    for name in ("video", "audio"):
        with av.open(io.BytesIO(sent[name])) as file:
            assert [stream.type for stream in file.streams] == [name]
            assert any(file.decode(0))
    receipt = job["output"]["receipt"]
    assert (receipt["seed"], receipt["parameters"]["method"]) == (seed, given["method"])
    assert receipt["images_sha256"].keys() == sent.keys()


PICTURES = picture(), picture("WEBP")


def graph_of_theirs(**more: Any) -> dict[str, Any]:
    """Two nodes that save pictures, and one that shows one: what most of the graphs look like that are sent to it."""
    graph: dict[str, Any] = {
        "30": {"class_type": "LoadImage", "inputs": {"image": "first.png"}, "_meta": {"title": "Load Image"}},
        "6": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["30", 0]}},
        "38": {"class_type": "PreviewImage", "inputs": {"images": ["30", 0]}},
        "40": {"class_type": "SaveAnimatedWEBP", "inputs": {"filename_prefix": "moving/one", "images": ["30", 0]}},
    }
    return {"workflow": graph, "images": [{"name": "first.png", "image": f"data:image/png;base64,{image()}"}], **more}


def saves(fake: Script, *, anything: bool = True) -> Any:
    def outputs(graph: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"38": {"images": [{"filename": "a_temp_1.png", "subfolder": "", "type": "temp"}]}}
        for node, suffix, data in (("6", "png", PICTURES[0]), ("40", "webp", PICTURES[1])) if anything else ():
            folder, _, name = graph[node]["inputs"]["filename_prefix"].rpartition("/")
            fake.files[f"{name}_00001_.{suffix}"] = data
            found[node] = {"images": [{"filename": f"{name}_00001_.{suffix}", "subfolder": folder, "type": "output"}]}
        return found

    return outputs


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"images": [{"name": "first.png", "image": image()}]},
        {"images": [{"name": "unused.png", "image": image()}, {"name": "first.png", "image": image()}]},
        {"images": [{"name": "folder/my first.jpeg", "image": image()}]},
        {"images": []},
        {"images": None},
        {"comfy_org_api_key": "comfyui-key"},
        {"comfy_org_api_key": None},
        "text",
    ],
    ids=["data-uri", "base64", "unused", "folder", "empty", "null", "key", "no-key", "text"],
)
def test_what_clients_of_worker_comfyui_send(change: Any, tmp_path: Path) -> None:
    given = graph_of_theirs(**(change if isinstance(change, dict) else {}))
    name = (given["images"] or [{"name": "there.png"}])[-1]["name"]
    given["workflow"]["30"]["inputs"]["image"] = name
    with scripted() as (fake, url), serving(tmp_path, url, raw_workflows=1) as service:
        fake.outputs = saves(fake)  # type: ignore[method-assign]
        job = done(service, given=json.dumps(given) if change == "text" else given)
        prompts = [body for path, body in fake.requests if path == "POST /prompt"]
    assert job["status"] == "COMPLETED", job
    assert [(one["type"], one["filename"]) for one in job["output"]["images"]] == [
        ("base64", "ComfyUI_00001_.png"),
        ("base64", "one_00001_.webp"),
    ]
    assert [base64.b64decode(one["data"]) for one in job["output"]["images"]] == list(PICTURES)
    assert not {"videos", "audio", "files", "errors"} & job["output"].keys()
    (prompt,) = prompts
    loads = prompt["prompt"]["30"]["inputs"]["image"]
    assert len(fake.uploads) == len(given["images"] or [])
    assert loads == name if not given["images"] else loads.removeprefix("handler/") in fake.uploads
    key = given.get("comfy_org_api_key")
    assert prompt.get("extra_data", {}).get("api_key_comfy_org") == key
    assert "comfyui-key" not in json.dumps(job)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "input: found nothing"),
        ("{no json", "input: found "),
        ({"prompt": {}}, "prompt: found a dict"),
        (graph_of_theirs(workflow=None), "workflow: found nothing, allowed is one of"),
        (graph_of_theirs(workflow="[]"), "workflow: found "),
        (graph_of_theirs(workflow=[]), "workflow: found a list"),
        (graph_of_theirs(images="x.png"), "images: found 'x.png', allowed is a list"),
        (graph_of_theirs(images={"name": "x.png", "image": "A"}), "images: found a dict, allowed is a list"),
        (graph_of_theirs(images=[{"name": "x.png"}]), r"images\[0\]: found nothing"),
        (graph_of_theirs(images=[{"image": "A"}]), r"images\[0\]: found nothing"),
        (graph_of_theirs(images=["A"]), r"images\[0\]: found nothing"),
        (graph_of_theirs(images=[{"name": "x.png", "image": "A"}] * 2), r"images\[1\].name: found 'x.png'"),
        (graph_of_theirs(comfy_org_api_key=5), "comfy_org_api_key: found"),
    ],
)
def test_what_worker_comfyui_refuses_is_refused(given: Any, said: str, tmp_path: Path) -> None:
    with serving(tmp_path, "http://127.0.0.1:1", raw_workflows=1) as service, pytest.raises(JobError, match=said):
        service.accept("one", given)


def test_a_graph_that_saves_nothing_is_told_as_worker_comfyui_does(tmp_path: Path) -> None:
    with scripted() as (fake, url), serving(tmp_path, url, raw_workflows=1) as service:
        fake.outputs = saves(fake, anything=False)  # type: ignore[method-assign]
        job = done(service, given=graph_of_theirs())
    assert (job["status"], job["output"]["status"], job["output"]["images"]) == ("COMPLETED", "success_no_images", [])


def test_a_picture_that_is_none_ends_the_job_with_an_error(tmp_path: Path) -> None:
    with scripted() as (fake, url), serving(tmp_path, url, raw_workflows=1) as service:
        job = done(service, given=graph_of_theirs(images=[{"name": "first.png", "image": "not base64!"}]))
        assert (job["status"], fake.graphs) == ("FAILED", [])
    assert job["output"]["error"] == "the image is neither an http(s) address nor base64"


FLAGSHIP = "Wrapper-SelfForcing-ImageToVideo-60FPS"
ORIGINAL = {
    "image": "data:image/png;base64," + image(),
    "positive_prompt": "a woman walks along the beach",
    "negative_prompt": "blurry",
    "width": 480,
    "height": 832,
    "num_frames": 33,
    "steps": 8,
    "cfg_scale": 2.5,
    "cfg_img": 5.0,
    "seed": 42,
    "lora_strength": 0.5,
    "frame_rate": 16,
    "interpolation_multiplier": 4,
    "final_frame_rate": 30,
}
"""All fields of the RunPod image's request. Its cfg_img is the sampler's shift."""


@pytest.mark.parametrize("left_out", [[], *([name] for name in ORIGINAL if name != "image"), list(ORIGINAL)[1:]])
def test_each_field_of_the_original_s_request(left_out: list[str], tmp_path: Path) -> None:
    entry = workflows.index()[FLAGSHIP]
    graph = workflows.load_api(FLAGSHIP)
    (tmp_path / "workflows.json").write_text(
        json.dumps([{"name": FLAGSHIP, "graph": graph, "settings": entry["settings"]}])
    )
    given = {name: value for name, value in ORIGINAL.items() if name not in left_out}
    named = {"cfg_img": "shift"}
    with serving(tmp_path, "http://127.0.0.1:1") as service:
        task = service.worker.check(given)
        flagship = service.worker.workflows[FLAGSHIP]
    assert task is not None
    assert task.media["image"].text == ORIGINAL["image"]
    before, after = flagship.values(flagship.graph), flagship.values(task.graph)
    expected = {named.get(name, name): value for name, value in given.items() if name not in {"image", "frame_rate"}}
    if "lora_strength" in expected:
        expected["lora_1_strength"] = expected["lora_strength"]  # the same input by its other name
    seed: Any = expected.setdefault("seed", after["seed"])
    assert 0 <= seed < 2**53
    expected.setdefault("positive_prompt", "")
    assert after == {**before, **expected}
    defaults = {"width": 720, "height": 1280, "num_frames": 81, "steps": 5, "cfg_scale": 1.0, "shift": 8.0}
    defaults |= {"lora_strength": 0.7, "interpolation_multiplier": 5, "final_frame_rate": 60}
    assert all(after[name] == value for name, value in defaults.items() if name not in expected)


def test_the_original_s_answer(tmp_path: Path) -> None:
    with scripted(video=mp4(720, 1280, 401, 60)) as (_, url), serving(tmp_path, url) as service:
        output = done(service, given={"image": ORIGINAL["image"]})["output"]
    assert output["video_url"].startswith("data:video/mp4;base64,")
    assert output["metadata"] == {
        "width": 720,
        "height": 1280,
        "num_frames": 401,
        "frame_rate": 60.0,
        "duration": 6.683,
    }
