"""The converter against the truth: what ComfyUI's real browser page exports for the API, of the same files.

The pages are the pinned one, the practice copy's and a newer one. What is behind them is a stand-in: see frontend.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import schemas as workflow_schemas
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import PREVIEWS, to_api
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import workflows

from tests.e2e import frontend
from tests.e2e.edits import Edits
from tests.unit import test_workflow_convert as cases

pytestmark = pytest.mark.slow
NEWER = "1.58.1"
EDITS, NEWER_EDITS = 320, 120
LACKING = {"VHS-defaults", "VHS-old-names"}
"""Files without some values. The pinned page leaves these out, which ComfyUI refuses; here they get their defaults."""
MADE_UP = workflow_schemas.from_object_info({**cases.POWER_LORA_INFO, **cases.TEXTS})
SCHEMAS = {**workflow_schemas.recorded(), **MADE_UP}


def complete(workflow: dict[str, Any]) -> dict[str, Any]:
    """A workflow with all that the page wants of one besides."""
    for number, node in enumerate(workflow["nodes"]):
        for key, value in (("pos", [300 * number, 0]), ("size", [220, 100]), ("flags", {}), ("order", number)):
            node.setdefault(key, value)
        for key, value in (("mode", 0), ("properties", {}), ("inputs", []), ("outputs", [])):
            node.setdefault(key, value)
        for slot, output in enumerate(node["outputs"]):
            output["links"] = [one for one, id_, at in _links(workflow) if (id_, at) == (node["id"], slot)]
    for part in (workflow.get("definitions") or {}).get("subgraphs", []):
        complete(part)
        _list_every_input(part)
        part |= {
            "inputNode": {"id": -10, "bounding": [0, 0, 1, 1]},
            "outputNode": {"id": -20, "bounding": [9, 0, 1, 1]},
        }
        for key, value in (("version", 1), ("revision", 0), ("config", {}), ("widgets", []), ("groups", [])):
            part.setdefault(key, value)
        for number, slot in enumerate([*part["inputs"], *part["outputs"]]):
            slot.setdefault("id", f"00000000-0000-4000-8000-{number:012}")
        part.setdefault("state", {"lastGroupId": 0, "lastNodeId": 99, "lastLinkId": 99, "lastRerouteId": 0})
    return {"version": 0.4, "last_node_id": 99, "last_link_id": 99, "groups": [], "config": {}, "extra": {}, **workflow}


def _list_every_input(part: dict[str, Any]) -> None:
    """As Save does it: inside subgraphs, the pinned browser counts on that."""
    for node in part["nodes"]:
        links = {slot["name"]: slot["link"] for slot in node["inputs"]}
        inputs = sorted(SCHEMAS[node["type"]].inputs, key=lambda one: one.widget) if node["type"] in SCHEMAS else []
        node["inputs"] = [
            {"name": one.name, "type": one.type, "link": links.get(one.name)}
            | ({"widget": {"name": one.name}} if one.widget else {})
            for one in inputs
        ] or node["inputs"]
        places = {slot["link"]: index for index, slot in enumerate(node["inputs"])}
        for link in part["links"]:
            if link["target_id"] == node["id"]:
                link["target_slot"] = places[link["id"]]


def _links(workflow: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    return [
        (link["id"], link["origin_id"], link["origin_slot"]) if isinstance(link, dict) else (link[0], link[1], link[2])
        for link in workflow["links"]
    ]


def named_cases() -> dict[str, Any]:
    """The graphs of the unit tests that a browser takes, too, and those that a browser has exported once."""
    found = {name: complete(json.loads(json.dumps(graph))) for name, graph in cases.browser_cases().items()}
    for file in sorted(cases.RECORDED.glob("*.json")):
        found[f"recorded {file.stem}"] = json.loads(file.read_text())["workflow"]
    return {name.replace(" ", "-"): graph for name, graph in found.items()}


def shown(api: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What counts of an API format; players and previews have values in the browser, and are no inputs."""
    return {
        id_: {
            name: value
            for name, value in node["inputs"].items()
            if name not in PREVIEWS and (value != "" or _is_input(node.get("class_type", ""), name))
        }
        | {"class_type": node.get("class_type")}
        for id_, node in api.items()
    }


def _is_input(kind: str, name: str) -> bool:
    known = SCHEMAS.get(kind)
    if known is None:
        return True
    return kind == cases.POWER_LORA or known.input(name) is not None or known.pack != workflow_schemas.CORE


def compared(files: Mapping[str, Any], version: str, folder: Path) -> tuple[dict[str, str], list[str]]:
    """Where we differ from the browser, by file, and what the browser itself gives up on, as it names a circle."""
    page = frontend.Page(frontend.package(version), SCHEMAS, frontend.scripts(folder), files)
    different: dict[str, str] = {}
    refused: list[str] = []
    for name, found in frontend.exported(page).items():
        if any("RecursionError" in error for error in found["errors"]):
            refused.append(name)
            continue
        if "api" not in found:
            different[name] = str(found["errors"])
            continue
        ours, theirs = shown(to_api(files[name], SCHEMAS, queued=True)), shown(found["api"])
        rows = [
            f"{id_}: ours {ours.get(id_)}, the browser's {theirs.get(id_)}"
            for id_ in sorted(ours.keys() | theirs.keys())
            if ours.get(id_) != theirs.get(id_)
        ]
        if rows:
            different[name] = "\n".join(rows)
    return different, refused


def test_we_convert_as_the_browser_of_the_practice_copy_does(tmp_path: Path) -> None:
    files = named_cases()  # it cannot draw the shipped ones, whose nodes are of today's ComfyUI
    files.pop("choices-that-people-write")  # of a node that it does not know
    for name in ("widgets-inside-without-inputs", "a-shown-widget-that-is-linked-inside"):
        files.pop(name)  # it knows the values and links inside alone
    edits = {f"edit-{seed}": Edits(seed, SCHEMAS).workflow() for seed in range(EDITS)}
    different, refused = compared({**files, **edits}, frontend.pinned_version("practice"), tmp_path)
    assert different == {}
    assert len(refused) < EDITS / 50
    assert not set(refused) & files.keys()


def test_we_convert_as_the_pinned_browser_does(tmp_path: Path) -> None:
    files = {name: workflows.load(name) for name in workflows.index()} | named_cases()
    edits = {f"edit-{seed}": Edits(seed, SCHEMAS, newer=True).workflow() for seed in range(NEWER_EDITS)}
    different, refused = compared({**files, **edits}, frontend.pinned_version(), tmp_path)
    assert different.keys() == LACKING
    assert len(refused) < NEWER_EDITS / 50
    assert not set(refused) & files.keys()


def test_we_convert_as_a_newer_browser_does(tmp_path: Path) -> None:
    edits = {f"edit-{seed}": Edits(seed, SCHEMAS, newer=True).workflow() for seed in range(NEWER_EDITS)}
    different, refused = compared(edits, NEWER, tmp_path)
    assert different == {}
    assert len(refused) < NEWER_EDITS / 50
