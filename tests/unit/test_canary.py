from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.canary import run_canary
from ansible_collections.wanmetal.comfyui.plugins.module_utils.comfyui_client import ComfyUIClient
from ansible_collections.wanmetal.comfyui.tests.unit.fake_comfyui import Fake, Frame, reply, serve
from ansible_collections.wanmetal.comfyui.tests.unit.run_module import run_module

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
