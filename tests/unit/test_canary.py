from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.canary import (
    LeftOutError,
    fit,
    run_canary,
    run_workflow,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.client import ComfyUIClient
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import locks
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.canary_workflows import canary_workflows
from ansible_collections.wanmetal.comfyui.tests.contract import house
from ansible_collections.wanmetal.comfyui.tests.unit.fake_comfyui import Fake, Frame, serve
from ansible_collections.wanmetal.comfyui.tests.unit.run_module import run_module
from ansible_collections.wanmetal.comfyui.tests.web import reply

Spoil = Callable[[list[Frame]], list[Frame]]


def each(change: Callable[[float], float]) -> Spoil:
    return lambda frames: [[[tuple(map(change, p)) for p in row] for row in f] for f in frames]  # type: ignore[misc]


def noisy(frames: list[Frame]) -> list[Frame]:
    numbers = random.Random(1)  # noqa: S311
    return each(lambda channel: min(1.0, max(0.0, channel + numbers.uniform(-0.05, 0.05))))(frames)


def swapped(frames: list[Frame]) -> list[Frame]:
    return [[[(b, g, r) for r, g, b in row] for row in frame] for frame in frames]


def cut(frames: list[Frame]) -> list[Frame]:
    return [frame[:-2] for frame in frames]


def shifted(frames: list[Frame]) -> list[Frame]:
    return [[row[9:] + row[:9] for row in frame] for frame in frames]


BLACK = each(lambda _: 0.0)

FAULTS: list[tuple[str, Fake, str]] = [
    ("image", Fake(spoil=BLACK), r"of one colour, rgb\(0, 0, 0\)"),
    ("image", Fake(spoil=each(lambda _: 1.0)), r"of one colour, rgb\(255, 255, 255\)"),
    ("image", Fake(spoil=swapped), "the image is wrong: at"),
    ("image", Fake(spoil=shifted), "the image is wrong: at"),
    ("image", Fake(spoil=each(lambda channel: channel * 0.97)), "the image is wrong: at"),
    ("image", Fake(spoil=cut), "size must be 64x64, found 64x62"),
    ("image", Fake(spoil=lambda frames: frames * 2), "one image was expected, 2 came"),
    ("image", Fake(spoil=lambda _: []), "one image was expected, 0 came"),
    ("image", Fake(png=lambda data: data[:90]), "the PNG is cut off"),
    ("image", Fake(png=lambda _: b"<html>"), "this is no PNG"),
    ("image", Fake(png=lambda _: b""), "this is no PNG"),
    (
        "image",
        Fake(special={"/prompt": lambda handler: reply(handler, b"<html>", kind="text/html")}),
        "instead of JSON",
    ),
    ("image", Fake(special={"/prompt": lambda handler: reply(handler, b"{}")}), "without a prompt_id"),
    ("image", Fake(special={"/view": lambda handler: reply(handler, b"", 404)}), "answered 404"),
    ("image", Fake(reject={"error": {"message": "no node ImageBlur", "details": "#4"}}), "no node ImageBlur"),
    ("image", Fake(status={"status_str": "error"}), "status 'error'"),
    ("image", Fake(stays="queue_running"), "not finished after"),
    ("video", Fake(spoil=BLACK), r"frame 0 is of one colour, rgb\(0, 0, 0\)"),
    ("video", Fake(spoil=lambda frames: frames[:8] + BLACK(frames[8:])), "frame 8 is of one colour"),
    ("video", Fake(spoil=lambda frames: frames[:1] * 9), "frozen: its 9 frames are all the same"),
    ("video", Fake(spoil=lambda frames: [*frames[:5], frames[4], *frames[6:]]), "frame 5 is wrong"),
    ("video", Fake(spoil=lambda frames: frames[::-1]), "frame 0 is wrong"),
    ("video", Fake(spoil=swapped), "frame 0 is wrong"),
    ("video", Fake(spoil=lambda frames: frames[:-1]), "must have 9 frames, found 8"),
    ("video", Fake(spoil=cut), "size must be 128x64, found 128x62"),
    ("video", Fake(fps=8.0), "16 frames a second, found 8"),
    ("video", Fake(fps="fast"), "no frame rate of the video, but 'fast'"),  # type: ignore[arg-type]
    ("video", Fake(mp4=b"not a video at all"), "is no mp4 file"),
    ("video", Fake(mp4=b""), "is no mp4 file"),
    ("video", Fake(png=lambda data: data[:200]), "the PNG is cut off"),
]


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("spoil", [lambda frames: frames, each(lambda channel: min(1.0, channel + 0.004))])
def test_a_healthy_worker(kind: str, spoil: Spoil) -> None:
    fake = Fake(spoil=spoil)
    with serve(fake) as url:
        result = run_canary(ComfyUIClient(url), kind, 20)
    assert (result.ok, result.reason) == (True, "")
    assert (result.video == fake.mp4) == (kind == "video")
    assert result.details["largest_deviation"] <= 2


def test_what_compression_does_to_a_video_is_borne() -> None:
    with serve(Fake(spoil=noisy)) as url:
        assert run_canary(ComfyUIClient(url), "video", 20).reason == ""
        assert not run_canary(ComfyUIClient(url), "image", 20).ok


@pytest.mark.parametrize(("kind", "fake", "reason"), FAULTS)
def test_faults(kind: str, fake: Fake, reason: str) -> None:
    timeout_s = 0.3 if fake.stays else 20
    with serve(fake) as url:
        result = run_canary(ComfyUIClient(url), kind, timeout_s)
    assert not result.ok
    assert result.video is None
    assert re.search(reason, result.reason), result.reason


def test_no_worker_at_all() -> None:
    result = run_canary(ComfyUIClient("http://127.0.0.1:9"), "image", 5)
    assert not result.ok
    assert "does not answer" in result.reason


def test_each_run_asks_for_something_else() -> None:
    fake = Fake()
    with serve(fake) as url:
        seeds = {run_canary(ComfyUIClient(url), "image", 20).seed for _ in range(3)}
    graphs: list[Any] = [body["prompt"] for path, body in fake.requests if path == "POST /prompt"]
    assert len(seeds) == len({str(graph) for graph in graphs}) == 3


@pytest.mark.parametrize("healthy", [True, False])
def test_what_was_saved_is_removed(tmp_path: Path, healthy: bool) -> None:
    fake = Fake() if healthy else Fake(spoil=BLACK)
    mine = tmp_path / "mine.mp4"
    mine.touch()

    def save(data: bytes) -> bytes:
        for name in fake.files:
            if name.endswith(".mp4"):
                (tmp_path / name).touch()
        return data

    fake.png = save
    with serve(fake) as url:
        assert run_canary(ComfyUIClient(url), "video", 20, output_dir=str(tmp_path)).ok is healthy
    assert list(tmp_path.iterdir()) == [mine]


def test_an_unknown_kind_is_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="there is no canary 'audio'; there are: image, video"):
        run_canary(ComfyUIClient("http://127.0.0.1:9"), "audio", 5)


def scene(name: str = "two-frames", **expected: Any) -> dict[str, Any]:
    """A workflow of nodes that the fake computes."""
    graph: dict[str, Any] = {
        "note": {"class_type": "PreviewAny", "inputs": {"source": "of no use", "noise_seed": 1}},
        "back": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 16, "batch_size": 1, "color": 255}},
        "square": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 65280}},
        "video": {"class_type": "CreateVideo", "inputs": {"images": ["batch", 0], "fps": 8}},
        "batch": {"class_type": "ImageBatch", "inputs": {"image1": ["frame0", 0], "image2": ["frame1", 0]}},
        "saved": {"class_type": "SaveVideo", "inputs": {"video": ["video", 0], "filename_prefix": "mine"}},
    }
    for number in (0, 1):
        inputs = {"destination": ["back", 0], "source": ["square", 0], "x": 8 * number, "y": 0, "resize_source": False}
        graph[f"frame{number}"] = {"class_type": "ImageCompositeMasked", "inputs": inputs}
    return {
        "name": name,
        "graph": graph,
        "stand_ins": {},
        "frames": 2,
        "width": 32,
        "height": 16,
        "fps": 8.0,
    } | expected


TYPES: dict[str, Any] = {node["class_type"]: {"input": {}} for node in scene()["graph"].values()}


def knows(types: dict[str, Any], **script: Any) -> Fake:
    answer = json.dumps(types).encode()
    return Fake(special={"/object_info": lambda handler: reply(handler, answer)}, **script)


def test_a_workflow_is_rendered_anew_each_time(tmp_path: Path) -> None:
    fake = knows(TYPES)
    with serve(fake) as url:
        made = [run_workflow(ComfyUIClient(url), [scene()], 20, output_dir=str(tmp_path)) for _ in range(2)]
    for one in made:
        assert one
        assert (one.reason, one.kind, one.video) == ("", "two-frames", fake.mp4)
        assert one.details == {"frames": 2, "fps": 8, "width": 32, "height": 16, "bytes": len(fake.mp4)}
    graphs = [body["prompt"] for path, body in fake.requests if path == "POST /prompt" and "saved" in body["prompt"]]
    assert len({graph["note"]["inputs"]["noise_seed"] for graph in graphs}) == 2
    assert all(graph["saved"]["inputs"]["filename_prefix"].startswith("wanmetal-canary-") for graph in graphs)


UNKNOWN = scene("other")
UNKNOWN["graph"]["note"]["class_type"] = "Unknown"


def test_the_first_workflow_is_taken_that_the_worker_can_render() -> None:
    with serve(knows(TYPES)) as url:
        found = run_workflow(ComfyUIClient(url), [UNKNOWN, scene("this")], 20)
        assert found
        assert found.kind == "this"
        with pytest.raises(LeftOutError, match=r"^other lacks node type Unknown; other lacks node type Unknown$"):
            run_workflow(ComfyUIClient(url), [UNKNOWN, UNKNOWN], 20)


@pytest.mark.parametrize("where", ["queue_running", "queue_pending"])
def test_no_workflow_is_rendered_where_somebody_waits(where: str) -> None:
    jobs = {"queue_running": [], "queue_pending": [], where: [[0, "somebody's", {}]]}
    fake = knows(TYPES)
    fake.special["/queue"] = lambda handler: reply(handler, json.dumps(jobs).encode())
    with serve(fake) as url, pytest.raises(LeftOutError, match="jobs to do"):
        run_workflow(ComfyUIClient(url), [scene()], 20)
    assert not [path for path, _ in fake.requests if path == "POST /prompt"]


@pytest.mark.parametrize(
    ("expected", "spoil", "reason"),
    [
        ({}, BLACK, r"frame 0 is of one colour, rgb\(0, 0, 0\)"),
        ({}, lambda frames: frames[:1] * 2, "frozen"),
        ({"frames": 5}, lambda frames: frames, "must have 5 frames, found 2"),
        ({"width": 64}, lambda frames: frames, "size must be 64x16, found 32x16"),
        ({"fps": 16.0}, lambda frames: frames, "16 frames a second, found 8"),
    ],
)
def test_a_workflow_whose_video_is_wrong(expected: dict[str, Any], spoil: Spoil, reason: str) -> None:
    with serve(knows(TYPES, spoil=spoil)) as url:
        made = run_workflow(ComfyUIClient(url), [scene(**expected)], 20)
    assert made
    assert not made.ok
    assert re.search(reason, made.reason), made.reason


def listed(*names: str) -> dict[str, Any]:
    return {"Load": {"input": {"required": {"name": [list(names)], "text": ["STRING", {}]}}}}


@pytest.mark.parametrize(
    ("types", "name"),
    [
        (listed("a"), "a"),
        (listed("a", "b"), "a"),
        (listed("c", "b"), "b"),
        (listed("c"), ""),
        (listed(), ""),
        ({"Load": {"input": {"optional": {"name": ["COMBO", {"options": ["b"]}]}}}}, "b"),
        ({"Load": {"input": {"required": {"name": ["STRING"]}}}}, "a"),
        ({}, ""),
    ],
)
def test_which_model_a_workflow_gets(types: dict[str, Any], name: str) -> None:
    graph = {"1": {"class_type": "Load", "inputs": {"name": "a", "text": "a"}}}
    if name:
        assert fit(graph, {"a": ["b"]}, types)["1"]["inputs"]["name"] == name
    else:
        with pytest.raises(LeftOutError, match="lacks a" if types else "lacks node type Load"):
            fit(graph, {"a": ["b"]}, types)


SPECS = house.role_file("verify", "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
SHIPPED = SPECS["verify_workflows"]["choices"]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_workflows_for_the_canary(name: str) -> None:
    (one,) = canary_workflows([name], locks.load("models"))
    assert (one["frames"], one["width"], one["height"]) == (9, 256, 256)
    assert one["fps"] in (16.0, 24.0)
    text = json.dumps(one["graph"])
    assert '"width": 256' in text
    assert '"length": 9' in text
    for model, others in one["stand_ins"].items():
        assert model in text
        assert model not in others


def test_a_workflow_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="there is no workflow 'Mine'"):
        canary_workflows(["Mine"], locks.load("models"))


def test_the_module_keeps_the_video_of_the_workflow(tmp_path: Path) -> None:
    arguments = {"kind": "video", "dest": str(tmp_path / "canary.mp4"), "workflows": [scene()]}
    with serve(knows(TYPES)) as url:
        made = run_module("canary", {"url": url, **arguments})
        failed = run_module("canary", {"url": url, **arguments, "workflows": [scene(frames=3)]})
        left_out = run_module("canary", {"url": url, **arguments, "workflows": [UNKNOWN]})
    assert made["workflow"]["name"] == "two-frames"
    assert made["workflow"]["details"]["frames"] == 2
    assert made["details"]["frames"] == 9
    assert failed["failed"]
    assert failed["reason"] == "two-frames: the video must have 3 frames, found 2"
    assert left_out["workflow"] == {"left_out": "other lacks node type Unknown"}


def test_the_module(tmp_path: Path) -> None:
    dest = tmp_path / "canary.mp4"
    fake = Fake()
    with serve(fake) as url:
        image = run_module("canary", {"url": url, "others": [url]})
        planned = run_module("canary", {"url": url, "kind": "video", "dest": str(dest)}, check=True)
        assert not dest.exists()
        video = run_module("canary", {"url": url, "kind": "video", "dest": str(dest), "mode": "0640"})
    assert (image["changed"], image["rendered"], image["details"]) == (False, True, {"largest_deviation": 1})
    assert (planned["changed"], planned["rendered"]) == (True, False)
    assert (video["changed"], video["details"]["frames"]) == (True, 9)
    assert dest.read_bytes() == fake.mp4
    assert dest.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "127.0.0.1:8188"}, "url: the address must look like http://127.0.0.1:8188"),
        (
            {"url": "http://127.0.0.1:9"},
            "ComfyUI at http://127.0.0.1:9 is not healthy: http://127.0.0.1:9 does not answer",
        ),
        ({"dest": "/x.mp4"}, "dest takes the mp4 of kind video; kind is image"),
        ({"kind": "video", "dest": "/nowhere/x.mp4"}, "dest: the folder /nowhere is not there"),
    ],
)
def test_the_module_fails_with_a_reason(arguments: dict[str, Any], message: str) -> None:
    answer = run_module("canary", arguments)
    assert answer["failed"]
    assert not answer.get("changed")
    assert answer["msg"].startswith(message)
