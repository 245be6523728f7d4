"""What the lab makes of the workflows that it places."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.user_files import pack, unpack
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import schemas
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import to_api
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import workflows
from ansible_collections.wanmetal.comfyui.tests.lab.filter_plugins.lab_small import SMALL, lab_small


@pytest.mark.parametrize("name", workflows.index())
def test_sizes_and_steps_become_small_and_nothing_else_changes(name: str) -> None:
    text = workflows.written(workflows.load(name)).encode()
    template = f"templates/{name.replace('-', ' ')}.json"
    files = {f"workflows/{name}.json": text, template: text, "first.txt": b"x", "theirs.json": b"{}"}
    made = unpack(lab_small(pack(files)))
    assert {path: made[path] for path in ("first.txt", "theirs.json")} == {"first.txt": b"x", "theirs.json": b"{}"}
    assert made[template] == made[f"workflows/{name}.json"]
    wanted: dict[str, Any] = workflows.load_api(name)
    for setting, (title, key) in workflows.index()[name]["settings"].items():
        if setting in SMALL:
            next(node for node in wanted.values() if node["_meta"]["title"] == title)["inputs"][key] = SMALL[setting]
    assert to_api(json.loads(made[template]), schemas.recorded()) == wanted
