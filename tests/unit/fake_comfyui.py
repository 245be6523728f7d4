"""A scripted ComfyUI: it computes the few core nodes that canaries use, and can be told to go wrong."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ansible_collections.wanmetal.comfyui.tests.web import Answer, Request, body, hosting, reply

Frame = list[list[tuple[float, float, float]]]


@dataclass
class Fake:
    """What the server does. ``spoil`` changes the frames that are shown; ``special`` answers paths in its own way."""

    spoil: Callable[[list[Frame]], list[Frame]] = lambda frames: frames
    fps: float | None = None
    mp4: bytes = b"\0\0\0\x18ftypmp42 and so on"
    png: Callable[[bytes], bytes] = lambda data: data
    status: dict[str, Any] = field(default_factory=lambda: {"status_str": "success", "messages": []})
    reject: dict[str, Any] | None = None
    stays: str = ""  # the queue that jobs stay in for ever
    special: dict[str, Answer] = field(default_factory=dict)

    history: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    videos: dict[str, tuple[list[Frame], float]] = field(default_factory=dict)
    queue: dict[str, list[Any]] = field(default_factory=lambda: {"queue_running": [], "queue_pending": []})
    requests: list[tuple[str, Any]] = field(default_factory=list)

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/prompt" and self.reject is not None:
            return 400, self.reject
        if path == "/prompt":
            prompt_id = f"job-{len(self.requests)}"
            if self.stays:
                self.queue[self.stays].append([0, prompt_id, {}])
            else:
                self.history[prompt_id] = {"outputs": self.compute(body["prompt"]), "status": self.status}
            return 200, {"prompt_id": prompt_id, "node_errors": {}}
        if path == "/history":
            for prompt_id in body["delete"]:
                self.history.pop(prompt_id, None)
        return 200, None

    def get(self, path: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        if path == "/history":
            return 200, dict(list(self.history.items())[-int(query["max_items"][0]) :])
        if path.startswith("/history/"):
            prompt_id = path.removeprefix("/history/")
            return 200, {key: value for key, value in self.history.items() if key == prompt_id}
        if path == "/view":
            data = self.files.get(query["filename"][0])
            return (404, None) if data is None else (200, data)
        return 200, {"/queue": self.queue, "/userdata": [], "/system_stats": {"system": {"comfyui_version": "0.3.75"}}}[
            path
        ]

    def compute(self, graph: dict[str, Any]) -> dict[str, Any]:
        results: dict[str, Any] = {}
        outputs: dict[str, Any] = {}

        def value(link: Any) -> Any:
            if not isinstance(link, list):
                return link
            node, slot = link
            if node not in results:
                results[node] = run(node)
            return results[node][slot]

        def run(node: str) -> tuple[Any, ...]:
            given = {name: value(link) for name, link in graph[node]["inputs"].items()}
            kind = graph[node]["class_type"]
            if kind in _NODES:
                return (_NODES[kind](**given),)
            if kind == "CreateVideo":
                return ((given["images"], given["fps"]),)
            if kind == "LoadVideo":
                return (self.videos[given["file"]],)
            if kind == "GetVideoComponents":
                frames, fps = given["video"]
                return frames, None, self.fps or fps
            outputs[node] = self.show(kind, given)
            return ()

        for node in graph:
            value([node, slice(None)])
        return outputs

    def show(self, kind: str, given: dict[str, Any]) -> dict[str, Any]:
        if kind == "PreviewAny":
            return {"text": [str(given["source"])]}
        if kind == "SaveVideo":
            name = f"{given['filename_prefix']}_00001_.mp4"
            self.files[name], self.videos[f"{name} [output]"] = self.mp4, given["video"]
            return {"images": [{"filename": name, "subfolder": "", "type": "output"}], "animated": [True]}
        assert kind == "PreviewImage"
        names = []
        for frame in self.spoil(given["images"]):
            names.append({"filename": f"{len(self.files)}.png", "subfolder": "", "type": "temp"})
            self.files[names[-1]["filename"]] = self.png(encode(frame))
        return {"images": names}


def _empty(width: int, height: int, batch_size: int, color: int) -> list[Frame]:
    pixel = ((color >> 16 & 255) / 255, (color >> 8 & 255) / 255, (color & 255) / 255)
    return [[[pixel] * width for _ in range(height)] for _ in range(batch_size)]


def _composite(destination: list[Frame], source: list[Frame], x: int, y: int, resize_source: bool) -> list[Frame]:
    assert not resize_source
    both = [[list(row) for row in frame] for frame in destination]
    for frame in both:
        for down, row in enumerate(source[0]):
            frame[y + down][x : x + len(row)] = row
    return both


def _blur(image: list[Frame], blur_radius: int, sigma: float) -> list[Frame]:
    steps = range(-blur_radius, blur_radius + 1)
    weights = {step: math.exp(-((step / blur_radius) ** 2) / (2 * sigma**2)) for step in steps}
    total = sum(weights.values())

    def along(row: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
        mirrored = [row[abs(at) if at < len(row) else 2 * len(row) - 2 - at] for at in range(-3, len(row) + 3)]
        return [
            tuple(  # type: ignore[misc]
                sum(weights[step] * mirrored[at + step + 3][channel] for step in steps) / total for channel in range(3)
            )
            for at in range(len(row))
        ]

    def turned(frame: Frame) -> Frame:
        return [list(column) for column in zip(*frame, strict=True)]

    return [turned([along(row) for row in turned([along(row) for row in frame])]) for frame in image]


def _invert(image: list[Frame]) -> list[Frame]:
    return [[[(1 - r, 1 - g, 1 - b) for r, g, b in row] for row in frame] for frame in image]


_NODES: dict[str, Callable[..., list[Frame]]] = {
    "EmptyImage": _empty,
    "ImageCompositeMasked": _composite,
    "ImageBlur": _blur,
    "ImageInvert": _invert,
    "ImageBatch": lambda image1, image2: image1 + image2,
}


def encode(frame: Frame) -> bytes:
    """Encode as PNG, with another row filter in each row."""
    rows = bytearray()
    above = bytes(len(frame[0]) * 3)
    for number, pixels in enumerate(frame):
        row = bytes(int(255 * channel) for pixel in pixels for channel in pixel)
        rows.append(number % 5)
        for i, byte in enumerate(row):
            left, corner = (row[i - 3], above[i - 3]) if i >= 3 else (0, 0)
            rows.append((byte - _guess(number % 5, left, above[i], corner)) & 255)
        above = row
    header = struct.pack(">IIBBBBB", len(frame[0]), len(frame), 8, 2, 0, 0, 0)
    return png((b"IHDR", header), (b"tEXt", b"prompt\0{}"), (b"IDAT", zlib.compress(bytes(rows))), (b"IEND", b""))


def _guess(method: int, left: int, above: int, corner: int) -> int:
    if method == 4:
        return min((left, above, corner), key=lambda value: abs(left + above - corner - value))
    return (0, left, above, (left + above) // 2)[method]


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """Put a PNG together."""
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@contextmanager
def serve(fake: Fake) -> Iterator[str]:
    """Serve it on a free port of the loopback address and return its address."""

    def answer(request: Request) -> None:
        parts = urlsplit(request.path)
        data = body(request)
        given: Any = json.loads(data or b"null") if "json" in request.headers.get("Content-Type", "json") else data
        fake.requests.append((f"{request.command} {parts.path}", given))
        for path, special in fake.special.items():
            if parts.path.startswith(path):
                special(request)
                return
        if request.command == "POST":
            status, found = fake.post(parts.path, given)
        else:
            status, found = fake.get(parts.path, parse_qs(parts.query))
        content = found if isinstance(found, bytes) else b"" if found is None else json.dumps(found).encode()
        reply(request, content, status)

    with hosting(answer) as url:
        yield url
