"""The shipped workflows at a small size, and what their results must be."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.canary import Studio, assert_alive, read_back
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.client import ComfyUIClient
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.png import Picture
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import locks, workflows

SIZE, FRAMES = 64, 5
MIDDLE = 24

LEFT_OUT = {"SDXL-Helper-FirstFrame": "ComfyUI knows SDXL and its ControlNet by their full size, 10 GB together"}

# What takes the place of a node whose pack is not there: the input that passes on.
_PASSES_ON = {"FrameInterpolate": "images", "LineartStandardPreprocessor": "image"}
# The same for nodes whose networks have one size, and come as compiled programs.
_NEVER_THERE = {"DepthAnythingV2Preprocessor": "image", "DWPreprocessor": "image"}

Graph = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Small:
    """A graph and its video: how many frames, their size and rate."""

    graph: Graph
    frames: int
    size: tuple[int, int]
    fps: float


def names() -> list[str]:
    """Native workflows that tiny models can be made for; they render without packs, too."""
    return [name for name in workflows.index() if not name.startswith("Wrapper-") and name not in LEFT_OUT]


def few() -> list[str]:
    """Few of them that together have every node type of all."""
    kinds = {name: {node["class_type"] for node in workflows.load_api(name).values()} for name in names()}
    left, found = set().union(*kinds.values()), list[str]()
    while left:
        found.append(max(kinds, key=lambda name: len(kinds[name] & left)))
        left -= kinds[found[-1]]
    return found


def models(wanted: Sequence[str]) -> list[str]:
    """The model files of some workflows, by their paths below the folder of models."""
    catalogue = locks.load("models")["files"]
    index = workflows.index()
    entries = [catalogue[ids[0]] for name in wanted for ids in index[name]["models"]]
    return list(dict.fromkeys(f"{entry['folder']}/{entry['name']}" for entry in entries))


def small(name: str, known: Mapping[str, Any], seed: int = 1, prompt: str = "") -> Small:
    """Make a workflow small; ``known`` are the node types that there are."""
    graph: Graph = workflows.load_api(name)
    outpaints = any(node["class_type"] == "ImagePadForOutpaint" for node in graph.values())
    frames = FRAMES * 2 - 1 if name == "Native-VideoExtension" else FRAMES
    for id_ in list(graph):
        node = graph[id_]
        _shrink(node["inputs"], node["class_type"], outpaints)
        for key in ("seed", "noise_seed"):
            if key in node["inputs"]:
                node["inputs"][key] = seed
        if prompt and node["_meta"]["title"].startswith("Positive prompt"):
            node["inputs"]["value" if "value" in node["inputs"] else "text"] = prompt
        if node["class_type"] == "FrameInterpolate" and "FrameInterpolate" in known:
            frames = (frames - 1) * node["inputs"]["multiplier"] + 1
        _replace(graph, id_, known)
    made = next(node["inputs"] for node in graph.values() if node["class_type"] in ("CreateVideo", "VHS_VideoCombine"))
    rate = made.get("fps") or made["frame_rate"]
    scale = 2 if "Upscale" in name else 1
    if name == "Upscale-32FPS":  # which takes a video as large as it is
        opened = next(id_ for id_, node in graph.items() if node["class_type"] == "GetVideoComponents")
        first = next(node for node in graph.values() if node["class_type"] == "ImageFromBatch")
        inputs = {"image": [opened, 0], "upscale_method": "area", "width": SIZE, "height": SIZE, "crop": "center"}
        graph["small"] = {"class_type": "ImageScale", "inputs": inputs}
        # Frames of the middle: at its beginning, the example hardly moves.
        first["inputs"] |= {"image": ["small", 0], "batch_index": MIDDLE}
    return Small(graph, frames, (SIZE * scale, SIZE * scale), 16.0 if isinstance(rate, list) else float(rate))


def _shrink(inputs: dict[str, Any], kind: str, outpaints: bool) -> None:
    if "width" in inputs and "height" in inputs:
        inputs["width"] = SIZE // 2 if outpaints and kind == "ImageScale" else SIZE
        inputs["height"] = SIZE
    if "custom_width" in inputs:
        inputs |= {"custom_width": SIZE, "custom_height": SIZE, "frame_load_cap": FRAMES}
    for key in ("left", "right"):
        if key in inputs:
            inputs[key] = SIZE // 4
    for key in ("length", "amount", "num_frames"):
        if isinstance(inputs.get(key), int) and 1 < inputs[key] <= 161:
            inputs[key] = FRAMES
    if inputs.get("batch_index", 0) > 1:
        inputs["batch_index"] = FRAMES - 1
    if kind in ("KSampler", "WanVideoSampler"):
        inputs["steps"] = 2
    if kind in ("WanVideoModelLoader", "WanVideoVAELoader"):  # as it must be without a GPU
        inputs["base_precision" if "base_precision" in inputs else "precision"] = "fp32"
    if kind == "VAEDecodeTiled":
        inputs |= {"tile_size": 64, "overlap": 32}


def _replace(graph: Graph, id_: str, known: Mapping[str, Any]) -> None:
    node = graph[id_]
    kind = node["class_type"]
    if kind == "FrameInterpolationModelLoader" and kind not in known:
        del graph[id_]
    elif kind in _NEVER_THERE or (kind in _PASSES_ON and kind not in known):
        _relink(graph, id_, node["inputs"][(_PASSES_ON | _NEVER_THERE)[kind]])
    elif kind == "LoadWanVideoT5TextEncoder":  # of one size; the wrapper takes what ComfyUI's own encoder says, too
        graph[id_] = {
            "class_type": "CLIPLoader",
            "inputs": {"clip_name": node["inputs"]["model_name"], "type": "wan", "device": "default"},
        }
    elif kind == "WanVideoTextEncode":
        given = node["inputs"]
        graph[id_] = {"class_type": "WanVideoTextEmbedBridge", "inputs": {}}
        for sign in ("positive", "negative"):
            encode = {"clip": given["t5"], "text": given[f"{sign}_prompt"]}
            graph[f"{id_}-{sign}"] = {"class_type": "CLIPTextEncode", "inputs": encode}
            graph[id_]["inputs"][sign] = [f"{id_}-{sign}", 0]
    elif kind == "VHS_LoadVideo" and kind not in known:
        graph[f"{id_}-file"] = {"class_type": "LoadVideo", "inputs": {"file": node["inputs"]["video"]}}
        graph[f"{id_}-all"] = {"class_type": "GetVideoComponents", "inputs": {"video": [f"{id_}-file", 0]}}
        inputs = {"image": [f"{id_}-all", 0], "batch_index": 0, "length": FRAMES}
        graph[id_] = {"class_type": "ImageFromBatch", "inputs": inputs}


def _relink(graph: Graph, id_: str, other: object) -> None:
    """Take a node out; what it gave comes from elsewhere."""
    del graph[id_]
    for node in graph.values():
        for key, value in node["inputs"].items():
            if isinstance(value, list) and value[0] == id_:
                node["inputs"][key] = other


def render(client: ComfyUIClient, one: Small, seconds: float = 600) -> list[Picture]:
    """Render a graph, check size, rate and life of its video, and return its frames."""
    studio = Studio(client, time.monotonic() + seconds, random.Random(0), "")  # noqa: S311 (no secrets)
    outputs = studio.render(one.graph)
    saved = [file for output in outputs.values() for file in output.get("images") or output.get("gifs") or []]
    videos = [file for file in saved if file["filename"].endswith(".mp4")]
    assert len(videos) == 1, f"one video was expected, there are: {saved}"
    frames, fps = read_back(studio, videos[0])
    assert abs(fps - one.fps) < 0.01
    assert {(frame.width, frame.height) for frame in frames} == {one.size}
    assert_alive(frames)
    return frames


def prove(client: ComfyUIClient, known: Mapping[str, Any], name: str, vary: bool = True) -> None:
    """Render a workflow, and see that another seed and another prompt make another video."""
    first = small(name, known)
    frames = render(client, first)
    assert len(frames) == first.frames
    if not vary:
        return
    for what, other in {"seed": small(name, known, seed=2), "prompt": small(name, known, prompt="slow clouds")}.items():
        if other.graph != first.graph:  # a workflow without a diffusion model has neither
            assert render(client, other) != frames, f"another {what} makes the same video"
