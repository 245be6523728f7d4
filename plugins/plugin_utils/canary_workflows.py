"""Shipped workflows, made small, as the canary takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import workflows

_SMALL = {"width": 256, "height": 256, "num_frames": 9, "steps": 4}


def canary_workflows(names: Sequence[str], catalogue: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return workflows by their names, small, with what their videos must be, and the models that may stand in."""
    return [_small(name, workflows.index(), catalogue["files"]) for name in names]


def _small(name: str, index: Mapping[str, Any], files: Mapping[str, Any]) -> dict[str, Any]:
    graph = workflows.load_api(name)
    places = index[name]["settings"]
    inputs = {setting: _inputs(graph, title) for setting, (title, _unused) in places.items()}
    for setting, value in _SMALL.items():
        if setting in places:
            inputs[setting][places[setting][1]] = value
    return {
        "name": name,
        "graph": graph,
        "stand_ins": {
            workflows.model_name(files[first]): [workflows.model_name(files[other]) for other in others]
            for first, *others in index[name]["models"]
        },
        "frames": _SMALL["num_frames"],
        "width": _SMALL["width"],
        "height": _SMALL["height"],
        "fps": inputs["final_frame_rate"][places["final_frame_rate"][1]],
    }


def _inputs(graph: Mapping[str, Any], title: str) -> dict[str, Any]:
    return next(node["inputs"] for node in graph.values() if node["_meta"]["title"] == title)
