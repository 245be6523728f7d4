"""Canaries: small graphs that verify a worker by the pixels of their results.

A graph that ends with "success" says little: a model whose weights are missing renders black frames with success.
So each canary knows what its result must look like, and colours and places are drawn anew for each run, so that
neither a cache nor an old file can answer.
"""

from __future__ import annotations

import math
import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.client import (
    ComfyUIClient,
    ComfyUIError,
    Graph,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.node_types import OBJECT_INFO_S
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.png import Picture, PNGError, decode

Colour = tuple[int, int, int]


class UnhealthyError(Exception):
    """What is wrong with a result."""


class LeftOutError(Exception):
    """Why no workflow is rendered, though nothing is wrong."""


@dataclass
class CanaryResult:
    """What a canary found. ``reason`` is empty when the worker is healthy."""

    ok: bool
    kind: str
    seed: int
    reason: str
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)
    video: bytes | None = None


@dataclass
class Studio:
    """What a canary works with: a worker, the time that is left, random numbers, and where findings go."""

    client: ComfyUIClient
    deadline: float
    numbers: random.Random
    prefix: str
    details: dict[str, Any] = field(default_factory=dict)
    video: bytes | None = None

    def render(self, graph: Graph) -> dict[str, Any]:
        """Render a graph, before all that wait, and return its outputs by node id."""
        left = max(0.0, self.deadline - time.monotonic())
        return self.client.render(graph, left, front=True)

    def files(self, outputs: dict[str, Any], node: str) -> list[bytes]:
        """Return the files that a node made."""
        return [
            self.client.view(file["filename"], file.get("subfolder", ""), file.get("type", "output"))
            for file in _listed(outputs, node, "images")
            if isinstance(file, dict) and isinstance(file.get("filename"), str)
        ]

    def pictures(self, outputs: dict[str, Any], node: str) -> list[Picture]:
        """Return the pictures that a node made."""
        return [decode(data) for data in self.files(outputs, node)]


def run_canary(
    client: ComfyUIClient,
    kind: str,
    timeout_s: float,
    seed: int | None = None,
    output_dir: str | None = None,
) -> CanaryResult:
    """Run a canary and tell what it found; an unhealthy worker is a result, never an exception.

    ``seed`` repeats a run; without it no earlier result can be mistaken for this one.
    With ``output_dir``, ComfyUI's output folder on this machine, the files it saved there are removed.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no canary {kind!r}; there are: {', '.join(KINDS)}")
    return _run(client, kind, KINDS[kind], timeout_s, seed, output_dir)


def run_workflow(
    client: ComfyUIClient,
    workflows: Sequence[Mapping[str, Any]],
    timeout_s: float,
    seed: int | None = None,
    output_dir: str | None = None,
) -> CanaryResult:
    """Render the first of some workflows whose models and node types the worker has, where nobody's job is in the way.

    Each has ``name``, ``graph``, ``frames``, ``width``, ``height``, ``fps``, and ``stand_ins``: for the name of a
    model, those of others that do as well. The result's kind is the name. LeftOutError says why none is rendered.
    """
    try:
        if any(client.queue().values()):
            raise LeftOutError("it has jobs to do, and such a workflow may take the place of their models")
        types = ComfyUIClient(client.url, OBJECT_INFO_S).object_info()
    except ComfyUIError as error:
        return CanaryResult(False, "workflows", 0, str(error), 0.0)
    lacking = []
    for one in workflows:
        try:
            graph = fit(one["graph"], one["stand_ins"], types)
        except LeftOutError as error:
            lacking.append(f"{one['name']} {error}")
        else:
            return _run(client, one["name"], partial(_workflow, one, graph), timeout_s, seed, output_dir)
    raise LeftOutError("; ".join(lacking))


def _run(
    client: ComfyUIClient,
    kind: str,
    render: Callable[[Studio], None],
    timeout_s: float,
    seed: int | None,
    output_dir: str | None,
) -> CanaryResult:
    seed = secrets.randbits(32) if seed is None else seed
    started = time.monotonic()
    hurried = ComfyUIClient(client.url, min(client.timeout_s, timeout_s))
    prefix = f"wanmetal-canary-{secrets.token_hex(6)}"
    studio = Studio(hurried, started + timeout_s, random.Random(seed), prefix)  # noqa: S311 (colours, no secrets)
    reason = ""
    try:
        render(studio)
    except (ComfyUIError, PNGError, UnhealthyError) as error:
        reason = str(error)
    finally:
        _remove_outputs(studio, output_dir)
    seconds = round(time.monotonic() - started, 3)
    return CanaryResult(not reason, kind, seed, reason, seconds, studio.details, studio.video)


def assert_alive(frames: Sequence[Picture]) -> None:
    """Fail for frames that are plain, such as black ones, and for a video that stands still."""
    for number, frame in enumerate(frames):
        if max(frame.rgb) - min(frame.rgb) < 8:
            raise UnhealthyError(
                f"frame {number} is of one colour, {_rgb(frame.pixel(0, 0))}, where a picture was expected"
            )
    if len(frames) > 1 and all(_mean_difference(a, b) < 0.5 for a, b in pairwise(frames)):
        raise UnhealthyError(f"the video is frozen: its {len(frames)} frames are all the same")


# A square on a background, blurred and inverted. The blur is the one of these nodes that ComfyUI computes on the GPU.
_IMAGE_SIZE, _IMAGE_SQUARE, _RADIUS, _SIGMA = 64, 24, 3, 0.5
_IMAGE_TOLERANCE = 2


def _image(studio: Studio) -> None:
    back, square = _two_colours(studio.numbers)
    # far enough from the border that the blur does not reach it
    place = range(_RADIUS * 2, _IMAGE_SIZE - _IMAGE_SQUARE - _RADIUS * 2)
    x, y = studio.numbers.choice(place), studio.numbers.choice(place)
    outputs = studio.render(
        {
            "back": _empty(_IMAGE_SIZE, _IMAGE_SIZE, back),
            "square": _empty(_IMAGE_SQUARE, _IMAGE_SQUARE, square),
            "both": _composite("back", "square", x, y),
            "blur": _node("ImageBlur", image=["both", 0], blur_radius=_RADIUS, sigma=_SIGMA),
            "invert": _node("ImageInvert", image=["blur", 0]),
            "result": _node("PreviewImage", images=["invert", 0]),
        }
    )
    pictures = studio.pictures(outputs, "result")
    if len(pictures) != 1:
        raise UnhealthyError(f"one image was expected, {len(pictures)} came")
    _assert_size(pictures[0], _IMAGE_SIZE, _IMAGE_SIZE)
    assert_alive(pictures)
    across, down = _coverage(x), _coverage(y)

    def expected(column: int, row: int) -> Colour:
        share = across[column] * down[row]
        red, green, blue = (round(255 - b - (s - b) * share) for b, s in zip(back, square, strict=True))
        return red, green, blue

    everywhere = ((column, row) for row in range(_IMAGE_SIZE) for column in range(_IMAGE_SIZE))
    worst = _compare(pictures[0], expected, everywhere, _IMAGE_TOLERANCE, "the image")
    studio.details["largest_deviation"] = worst


def _coverage(start: int) -> list[float]:
    """Return how much of the square each column (or row) shows after the blur, which is separable."""
    steps = range(-_RADIUS, _RADIUS + 1)
    weights = [math.exp(-((step / _RADIUS) ** 2) / (2 * _SIGMA**2)) for step in steps]
    total = sum(weights)
    inside = range(start, start + _IMAGE_SQUARE)
    return [
        sum(weight for step, weight in zip(steps, weights, strict=True) if column + step in inside) / total
        for column in range(_IMAGE_SIZE)
    ]


_WIDTH, _HEIGHT, _SQUARE, _STEP, _FRAMES, _FPS = 128, 64, 24, 10, 9, 16
# h264 rounds colours and smears them: pixels nearer than _EDGE to the edges of the square are not compared. The
# square moves farther than that from frame to frame, so that a repeated frame is seen.
_VIDEO_TOLERANCE, _EDGE = 20, 8


def _video(studio: Studio) -> None:
    back, square = _two_colours(studio.numbers)
    xs = [_EDGE + _STEP * number for number in range(_FRAMES)]
    if studio.numbers.random() < 0.5:
        xs.reverse()
    y = studio.numbers.randrange(_EDGE, _HEIGHT - _SQUARE - _EDGE)
    saved = studio.render(_moving_square(studio.prefix, back, square, xs, y))
    video, frames = _checked(studio, saved, _FRAMES, _WIDTH, _HEIGHT, _FPS)
    worst = 0
    for number, (frame, x) in enumerate(zip(frames, xs, strict=True)):
        worst = max(worst, _compare_frame(frame, f"frame {number}", back, square, x, y))
    studio.video = video
    studio.details["largest_deviation"] = worst


def _checked(
    studio: Studio, outputs: dict[str, Any], frames: int, width: int, height: int, fps: float
) -> tuple[bytes, list[Picture]]:
    """Return the one video that a graph made, and its frames, which are as they must be, and alive."""
    nodes = [node for node in outputs if _listed(outputs, node, "images")]
    videos = [video for node in nodes for video in studio.files(outputs, node)]
    if len(videos) != 1:
        raise UnhealthyError(f"one video was expected, {len(videos)} came")
    if videos[0][4:8] != b"ftyp":
        raise UnhealthyError(f"the video is no mp4 file: it begins with {videos[0][:12]!r}")
    found, rate = read_back(studio, _listed(outputs, nodes[0], "images")[0])
    if len(found) != frames:
        raise UnhealthyError(f"the video must have {frames} frames, found {len(found)}")
    if abs(rate - fps) > 0.01:
        raise UnhealthyError(f"the video must have {fps:g} frames a second, found {rate:g}")
    for frame in found:
        _assert_size(frame, width, height)
    assert_alive(found)
    studio.details.update(frames=frames, fps=rate, width=width, height=height, bytes=len(videos[0]))
    return videos[0], found


def _workflow(expected: Mapping[str, Any], graph: Graph, studio: Studio) -> None:
    """Render a workflow with a seed that no earlier run had."""
    drawn = {"filename_prefix": studio.prefix, **dict.fromkeys(("seed", "noise_seed"), studio.numbers.getrandbits(32))}
    fresh = {
        id_: {**node, "inputs": {name: drawn.get(name, value) for name, value in node["inputs"].items()}}
        for id_, node in graph.items()
    }
    size = (expected["frames"], expected["width"], expected["height"], expected["fps"])
    studio.video, _unused = _checked(studio, studio.render(fresh), *size)


def fit(graph: Graph, stand_ins: Mapping[str, Sequence[str]], types: Mapping[str, Any]) -> dict[str, Any]:
    """Return a graph with the models that a worker has; raise LeftOutError for what it lacks."""
    fitted = {}
    for id_, node in graph.items():
        if node["class_type"] not in types:
            raise LeftOutError(f"lacks node type {node['class_type']}")
        inputs = dict(node["inputs"])
        for name, value in inputs.items():
            offered = _offered(types[node["class_type"]], name)
            if offered is None or isinstance(value, list):
                continue
            found = [one for one in (value, *stand_ins.get(value, ())) if one in offered]
            if not found:
                raise LeftOutError(f"lacks {value}")
            inputs[name] = found[0]
        fitted[id_] = {**node, "inputs": inputs}
    return fitted


def _offered(known: Mapping[str, Any], name: str) -> Sequence[Any] | None:
    """The choices of an input, or None where it is none of choices."""
    kind, *options = {**known["input"].get("required", {}), **known["input"].get("optional", {})}.get(name) or [""]
    if isinstance(kind, list):
        return kind
    return options[0].get("options") if kind == "COMBO" and options else None


def _moving_square(prefix: str, back: Colour, square: Colour, xs: Sequence[int], y: int) -> Graph:
    graph = {"back": _empty(_WIDTH, _HEIGHT, back), "square": _empty(_SQUARE, _SQUARE, square)}
    batch = ""
    for number, x in enumerate(xs):
        frame = f"frame{number}"
        graph[frame] = _composite("back", "square", x, y)
        if batch:
            graph[f"batch{number}"] = _node("ImageBatch", image1=[batch, 0], image2=[frame, 0])
        batch = f"batch{number}" if batch else frame
    graph["video"] = _node("CreateVideo", images=[batch, 0], fps=_FPS)
    graph["result"] = _node("SaveVideo", video=["video", 0], filename_prefix=prefix, format="mp4", codec="h264")
    return graph


def read_back(studio: Studio, file: dict[str, str]) -> tuple[list[Picture], float]:
    """Let ComfyUI decode a video that it saved; return its frames and its frames a second."""
    name = "/".join(part for part in (file.get("subfolder", ""), file["filename"]) if part)
    outputs = studio.render(
        {
            "load": _node("LoadVideo", file=f"{name} [{file.get('type', 'output')}]"),
            "parts": _node("GetVideoComponents", video=["load", 0]),
            "frames": _node("PreviewImage", images=["parts", 0]),
            "fps": _node("PreviewAny", source=["parts", 2]),
        }
    )
    text = "".join(str(part) for part in _listed(outputs, "fps", "text"))
    try:
        return studio.pictures(outputs, "frames"), float(text)
    except ValueError as error:
        raise UnhealthyError(f"ComfyUI told no frame rate of the video, but {text!r}") from error


def _compare_frame(frame: Picture, name: str, back: Colour, square: Colour, x: int, y: int) -> int:
    def expected(column: int, row: int) -> Colour:
        return square if x <= column < x + _SQUARE and y <= row < y + _SQUARE else back

    def near_edge(at: int, start: int) -> bool:
        return min(abs(at - start), abs(at - start - _SQUARE)) < _EDGE

    inner = [
        (column, row)
        for row in range(_HEIGHT)
        for column in range(_WIDTH)
        if not near_edge(column, x) and not near_edge(row, y)
    ]
    return _compare(frame, expected, inner, _VIDEO_TOLERANCE, name)


def _compare(
    found: Picture,
    expected: Callable[[int, int], Colour],
    places: Iterable[tuple[int, int]],
    tolerance: int,
    name: str,
) -> int:
    worst, where = 0, (0, 0)
    for place in places:
        off = max(abs(a - b) for a, b in zip(found.pixel(*place), expected(*place), strict=True))
        if off > worst:
            worst, where = off, place
    if worst > tolerance:
        raise UnhealthyError(
            f"{name} is wrong: at {where} it is {_rgb(found.pixel(*where))}, {_rgb(expected(*where))} was expected"
        )
    return worst


def _two_colours(numbers: random.Random) -> tuple[Colour, Colour]:
    """Return two colours that differ clearly in each channel, in any direction, and in which red and blue differ too.

    Otherwise a worker that swaps these two would not be noticed.
    """
    pairs = []
    for rising in (red := numbers.random() < 0.5, numbers.random() < 0.5, not red):
        low, high = numbers.randrange(16, 96), numbers.randrange(160, 240)
        pairs.append((low, high) if rising else (high, low))
    (r1, r2), (g1, g2), (b1, b2) = pairs
    return (r1, g1, b1), (r2, g2, b2)


def _node(class_type: str, **inputs: object) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def _empty(width: int, height: int, colour: Colour) -> dict[str, Any]:
    red, green, blue = colour
    return _node("EmptyImage", width=width, height=height, batch_size=1, color=red << 16 | green << 8 | blue)


def _composite(destination: str, source: str, x: int, y: int) -> dict[str, Any]:
    return _node(
        "ImageCompositeMasked",
        destination=[destination, 0],
        source=[source, 0],
        x=x,
        y=y,
        resize_source=False,
    )


def _listed(outputs: dict[str, Any], node: str, key: str) -> list[Any]:
    found = outputs.get(node)
    items = found.get(key) if isinstance(found, dict) else None
    return items if isinstance(items, list) else []


def _assert_size(picture: Picture, width: int, height: int) -> None:
    if (picture.width, picture.height) != (width, height):
        raise UnhealthyError(f"the size must be {width}x{height}, found {picture.width}x{picture.height}")


def _mean_difference(a: Picture, b: Picture) -> float:
    return sum(abs(x - y) for x, y in zip(a.rgb, b.rgb, strict=False)) / max(1, len(a.rgb))


def _rgb(colour: Colour) -> str:
    return f"rgb{colour}"


def _remove_outputs(studio: Studio, output_dir: str | None) -> None:
    if output_dir is None:
        return
    for path in Path(output_dir).glob(f"{studio.prefix}*"):
        try:
            path.unlink()
        except OSError as error:
            studio.details.setdefault("left_behind", []).append(f"{path}: {error.strerror}")


KINDS: dict[str, Callable[[Studio], None]] = {"image": _image, "video": _video}
