"""The filter ``lab_small``: a render at a workflow's own size takes a host without a GPU half an hour."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.user_files import pack, unpack
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import workflows

SMALL = {"width": 416, "height": 240, "num_frames": 17, "steps": 4}


def lab_small(archive: str) -> str:
    """Make the shipped workflows of an archive small, those of the browser's list and the templates alike."""
    index = workflows.index()
    files = unpack(archive)
    for path, data in files.items():
        name = Path(path).stem.replace(" ", "-")
        if path.endswith(".json") and name in index:
            files[path] = workflows.written(_small(name, json.loads(data), index[name]["settings"])).encode()
    return pack(files)


def _small(name: str, workflow: dict[str, Any], settings: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    shipped = workflows.load_api(name)
    for setting, value in SMALL.items():
        if setting in settings:
            title, key = settings[setting]
            (node,) = (node for node in workflow["nodes"] if node.get("title") == title)
            held = node["widgets_values"]
            place = key if isinstance(held, dict) else held.index(shipped[str(node["id"])]["inputs"][key])
            held[place] = value
    return workflow


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[[str], str]]:
        """Name them for Ansible."""
        return {"lab_small": lab_small}
