"""The shipped workflows at a small size, and what their results must be."""

from __future__ import annotations

import copy
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.canary import Studio, assert_alive, read_back
from ansible_collections.wanmetal.comfyui.plugins.module_utils.comfyui_client import ComfyUIClient
from ansible_collections.wanmetal.comfyui.plugins.module_utils.png import Picture
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import locks, workflows

SIZE, FRAMES = 64, 5

LEFT_OUT = {
    "SDXL-Helper-FirstFrame": "it is no Wan model, and SDXL's text encoders have one size",
    "Wan22-5B": "its VAE has one size, 1.4 GB",
}

# What takes the place of a node whose pack is not there: the input that passes on.
_PASSES_ON = {
    "RIFE VFI": "frames",
    "DepthAnythingV2Preprocessor": "image",
    "DWPreprocessor": "image",
    "LineartStandardPreprocessor": "image",
}
_KINDS = (
    ("flf2v", "flf2v"),
    ("vace_module", "vace[-_]module"),
    ("vace", "vace"),
    ("fun_control", "fun[-_]control"),
    ("i2v22", "wan2.2_i2v"),
    ("i2v", "i2v|fun_inp"),
    ("t2v", "t2v"),
)
_FOLDERS = {"loras": "lora", "vae": "vae", "text_encoders": "text_encoder", "upscale_models": "upscaler"}

Graph = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Small:
    """A graph and its video: the frames (None where a node of a pack decides), their size and rate."""

    graph: Graph
    frames: int
    size: tuple[int, int]
    fps: float


def names() -> list[str]:
    """Native workflows that tiny models can be made for."""
    return [name for name in workflows.index() if not name.startswith("Wrapper-") and name not in LEFT_OUT]


def tasks(models_dir: str, wanted: list[str]) -> list[dict[str, str]]:
    """Return what tests/tiny/models.py has to make for some workflows."""
    catalogue = locks.load("models")["files"]
    index = workflows.index()
    ids = dict.fromkeys(ids[0] for name in wanted for ids in index[name]["models"])
    found = [
        {"path": f"{models_dir}/{one['folder']}/{one['name']}", "kind": _kind(one)} for one in map(catalogue.get, ids)
    ]
    return [task for task in found if task["kind"]]


def _kind(entry: Mapping[str, Any]) -> str:
    if entry["folder"] == "diffusion_models":
        return next(kind for kind, pattern in _KINDS if re.search(pattern, entry["name"], re.IGNORECASE))
    return _FOLDERS.get(entry["folder"], "")


def small(name: str, known: Mapping[str, Any], seed: int = 1, prompt: str = "") -> Small:
    """Make a workflow small; ``known`` are the node types that there are."""
    graph: Graph = copy.deepcopy(workflows.load(name, "api"))
    outpaints = any(node["class_type"] == "ImagePadForOutpaint" for node in graph.values())
    for id_ in list(graph):
        node = graph[id_]
        _shrink(node["inputs"], node["class_type"], outpaints)
        for key in ("seed", "noise_seed"):
            if key in node["inputs"]:
                node["inputs"][key] = seed
        if prompt and node["_meta"]["title"].startswith("Positive prompt"):
            node["inputs"]["text"] = prompt
        _replace(graph, id_, known)
    rate = next(node for node in graph.values() if node["class_type"] == "CreateVideo")["inputs"]["fps"]
    scale = 2 if "Upscale" in name else 1
    if name == "Upscale-32FPS":  # which takes a video as large as it is
        opened = next(id_ for id_, node in graph.items() if node["class_type"] == "GetVideoComponents")
        first = next(node for node in graph.values() if node["class_type"] == "ImageFromBatch")
        inputs = {"image": [opened, 0], "upscale_method": "area", "width": SIZE, "height": SIZE, "crop": "center"}
        graph["small"] = {"class_type": "ImageScale", "inputs": inputs}
        first["inputs"]["image"] = ["small", 0]
    frames = FRAMES * 2 - 1 if name == "Native-VideoExtension" else FRAMES
    return Small(graph, frames, (SIZE * scale, SIZE * scale), 16.0 if isinstance(rate, list) else float(rate))


def _shrink(inputs: dict[str, Any], kind: str, outpaints: bool) -> None:
    if "width" in inputs and "height" in inputs:
        inputs["width"] = SIZE // 2 if outpaints and kind == "ImageScale" else SIZE
        inputs["height"] = SIZE
    for key in ("left", "right"):
        if key in inputs:
            inputs[key] = SIZE // 4
    for key in ("length", "amount", "num_frames"):
        if isinstance(inputs.get(key), int) and 1 < inputs[key] <= 161:
            inputs[key] = FRAMES
    if inputs.get("batch_index", 0) > 1:
        inputs["batch_index"] = FRAMES - 1
    if kind == "KSampler":
        inputs["steps"] = 2
    if kind == "VAEDecodeTiled":
        inputs |= {"tile_size": 64, "overlap": 32}


def _replace(graph: Graph, id_: str, known: Mapping[str, Any]) -> None:
    node = graph[id_]
    kind = node["class_type"]
    if kind == "CLIPLoader":  # the full text encoder has one size
        graph[id_] = {"class_type": "TinyTextEncoder", "inputs": {"clip_name": node["inputs"]["clip_name"]}}
    elif kind.startswith("CLIPVision"):  # and so has the image encoder
        _relink(graph, id_, None)
    elif kind in _PASSES_ON and kind not in known:
        _relink(graph, id_, node["inputs"][_PASSES_ON[kind]])
    elif kind == "VHS_LoadVideo" and kind not in known:
        graph[f"{id_}-file"] = {"class_type": "LoadVideo", "inputs": {"file": node["inputs"]["video"]}}
        graph[f"{id_}-all"] = {"class_type": "GetVideoComponents", "inputs": {"video": [f"{id_}-file", 0]}}
        inputs = {"image": [f"{id_}-all", 0], "batch_index": 0, "length": FRAMES}
        graph[id_] = {"class_type": "ImageFromBatch", "inputs": inputs}


def _relink(graph: Graph, id_: str, other: object) -> None:
    """Take a node out; what it gave comes from elsewhere, or from nowhere."""
    del graph[id_]
    for node in graph.values():
        for key, value in list(node["inputs"].items()):
            if isinstance(value, list) and value[0] == id_:
                if other is None:
                    del node["inputs"][key]
                else:
                    node["inputs"][key] = other


def render(client: ComfyUIClient, one: Small, seconds: float = 120) -> list[Picture]:
    """Render a graph, check size, rate and life of its video, and return its frames."""
    studio = Studio(client, time.monotonic() + seconds, random.Random(0), "")  # noqa: S311 (no secrets)
    outputs = studio.render(one.graph)
    saved = [file for output in outputs.values() for file in output.get("images") or []]
    videos = [file for file in saved if file["filename"].endswith(".mp4")]
    assert len(videos) == 1, f"one video was expected, there are: {saved}"
    frames, fps = read_back(studio, videos[0])
    assert abs(fps - one.fps) < 0.01
    assert {(frame.width, frame.height) for frame in frames} == {one.size}
    assert_alive(frames)
    return frames
