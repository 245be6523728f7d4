"""Workflows as the browser saves them, made of the format of the API."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import (
    POWER_LORAS,
    ConversionError,
    default,
    to_api,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.schemas import Input, NodeType, Schemas

_WIDTH, _GAP = 380, 40


def to_browser(api: Mapping[str, Any], schemas: Schemas) -> dict[str, Any]:
    """Return a graph in API format as a file that the browser opens, in columns from left to right."""
    ids = {id_: number for number, id_ in enumerate(api, 1)}
    if all(id_.isdecimal() for id_ in api):
        ids = {id_: int(id_) for id_ in api}
    nodes: dict[str, dict[str, Any]] = {}
    links: list[list[Any]] = []
    for id_, node in api.items():
        linked = {name: one for name, one in node["inputs"].items() if _is_link(one, api)}
        values = {name: _plain(one) for name, one in node["inputs"].items() if name not in linked}
        kind = schemas.get(node["class_type"]) or _guessed(node["class_type"], linked, values)
        nodes[id_] = browser_node(ids[id_], kind, values, linked)
        title = (node.get("_meta") or {}).get("title")
        if isinstance(title, str) and title != kind.name:
            nodes[id_]["title"] = title
    for id_, node in api.items():
        for index, slot in enumerate(nodes[id_]["inputs"]):
            one = node["inputs"].get(slot["name"])
            if _is_link(one, api):
                outputs = nodes[one[0]]["outputs"]
                while len(outputs) <= one[1]:  # of a type that is not known
                    outputs.append({"name": f"output {len(outputs)}", "type": "*", "links": []})
                slot["link"] = len(links) + 1
                outputs[one[1]]["links"].append(slot["link"])
                links.append([slot["link"], ids[one[0]], one[1], ids[id_], index, slot["type"]])
    _placed(api, nodes)
    made = {
        "last_node_id": max(ids.values(), default=0),
        "last_link_id": len(links),
        "nodes": list(nodes.values()),
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }
    again = to_api(made, schemas, strict=False)
    for id_, node in api.items():
        back = again.get(str(ids[id_]), {}).get("inputs", {})
        for name, value in node["inputs"].items():
            wanted = [str(ids[value[0]]), value[1]] if _is_link(value, api) else value
            if name not in back or _plain(back[name]) != _plain(wanted):
                raise ConversionError(
                    f"the browser has no place for the input {name} of node {id_} ({node['class_type']}): "
                    "open the workflow there, and save it with its menu Save"
                )
    return made


def _is_link(value: object, api: Mapping[str, Any]) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[0] in api and isinstance(value[1], int)


def _plain(value: Any) -> Any:
    return value["__value__"] if isinstance(value, Mapping) and "__value__" in value else value


def _guessed(name: str, linked: Collection[str], values: Collection[str]) -> NodeType:
    inputs = [Input(one, "*") for one in linked] + [Input(one, "*", widget=True) for one in values]
    return NodeType(name, "", tuple(inputs), ())


def _placed(api: Mapping[str, Any], nodes: Mapping[str, dict[str, Any]]) -> None:
    columns: dict[str, int] = dict.fromkeys(api, 0)
    for _unused in api:  # as often as the longest way may have steps
        moved = False
        for id_, node in api.items():
            before = [columns[one[0]] + 1 for one in node["inputs"].values() if _is_link(one, api)]
            if before and max(before) > columns[id_] and max(before) <= len(api):
                columns[id_], moved = max(before), True
        if not moved:
            break
    heights: dict[int, int] = {}
    for id_, column in columns.items():
        nodes[id_]["pos"] = [column * _WIDTH, heights.get(column, 0)]
        heights[column] = heights.get(column, 0) + nodes[id_]["size"][1] + _GAP


def browser_node(id_: Any, known: NodeType, values: Mapping[str, Any], linked: Collection[str] = ()) -> dict[str, Any]:
    """A node as the browser saves it, with values by their names, and the inputs that are going to be linked."""
    inputs: list[dict[str, Any]] = []
    saved: list[Any] = []
    button = False
    given = list(known.given(values))
    for one in given:
        if button and one.optional:
            saved.append("image")
            button = False
        if one.widget:
            inputs.append({"name": one.name, "type": one.type, "widget": {"name": one.name}, "link": None})
            saved.append(values.get(one.name, default(one)))
            saved += ["fixed"] if one.control else []
        elif one.name in linked or "." not in one.name or not one.optional:
            inputs.append({"name": one.name, "type": one.type, "link": None})
        button = button or (one.upload and not one.optional)
    if button:
        saved.append("image")
    inputs.sort(key=lambda slot: "widget" in slot)
    outputs = [{"name": label, "type": kind, "links": []} for kind, label in known.outputs]
    widgets: Any = saved
    if known.name == POWER_LORAS:
        widgets = [one for one in values.values() if isinstance(one, Mapping) and "lora" in one]
    if known.name.startswith("VHS_"):
        widgets = {one.name: values.get(one.name, default(one)) for one in given if one.widget}
    return {
        "id": id_,
        "type": known.name,
        "pos": [0, 0],
        "size": [300, 60 + 26 * len(inputs)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "properties": {"Node name for S&R": known.name},
        "widgets_values": widgets,
    }
