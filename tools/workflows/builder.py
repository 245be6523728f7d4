"""From a short source to the file that the browser opens: readable columns, groups, notes."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import schemas as workflow_schemas
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import default
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.workflows import model_name

NODE_WIDTH, NOTE_WIDTH = 330, 400
_GAP, _HEAD, _TITLE, _COLUMN_HEIGHT = 40, 50, 30, 1150
_COLOURS = {
    "Models": "#3f5159",
    "Prompts": "#335533",
    "Input": "#553355",
    "Sampling": "#3f3f59",
    "Result": "#594a33",
}
_BYPASSED = 4


@dataclass(frozen=True)
class Model:
    """A file of the catalogue, by its id, and files that may stand in for it, the better one first."""

    ids: tuple[str, ...]

    def __init__(self, *ids: str) -> None:
        object.__setattr__(self, "ids", ids)


@dataclass(frozen=True)
class Output:
    """An output of a node."""

    node: Node
    index: int


@dataclass
class Node:
    """A node of a workflow."""

    id: int
    type: str
    title: str
    group: str
    links: dict[str, Output] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[tuple[str, str], ...] = ()
    bypassed: bool = False
    text: str = ""

    def __getitem__(self, name: str) -> Output:
        for index, (_, label) in enumerate(self.outputs):
            if label == name:
                return Output(self, index)
        raise KeyError(f"{self.type} has no output {name!r}, but {[label for _, label in self.outputs]}")


class Workflow:
    """A workflow that is being written. ``settings`` says where a program finds what it may change."""

    def __init__(self, name: str, catalogue: Mapping[str, Any], about: str, change: str = "") -> None:
        self.name, self.about, self.change = name, about, change
        self.models: list[tuple[str, ...]] = []
        self.settings: dict[str, tuple[str, str]] = {}
        self.nodes: list[Node] = []
        self._catalogue = catalogue
        self._schemas = workflow_schemas.recorded()
        self._group = ""

    @contextmanager
    def group(self, name: str) -> Iterator[None]:
        """Nodes that are added within stand together, under a name."""
        self._group = name
        yield
        self._group = ""

    def add(self, kind: str, title: str, /, **inputs: Any) -> Node:
        """Add a node; an input is a value, a model, or the output of another node. With ``bypassed`` it passes on."""
        bypassed = inputs.pop("bypassed", False)
        known = self._schemas[kind]
        node = Node(len(self.nodes) + 1, kind, title, self._group, outputs=known.outputs, bypassed=bypassed)
        extra = [more.name for one in known.inputs for more in one.brings(inputs.get(one.name))]
        strange = [name for name in inputs if known.input(name) is None and name not in extra]
        if strange:
            raise KeyError(f"{self.name}: {kind} has no input {strange[0]!r}")
        for one in known.inputs:
            given = inputs.get(one.name)
            if isinstance(given, Node):
                given = Output(given, 0)
            if isinstance(given, Output):
                node.links[one.name] = given
            if one.widget:
                plain = given is not None and not isinstance(given, Output)
                node.values[one.name] = self._value(given) if plain else default(one)
        node.values |= {name: inputs[name] for name in extra if name in inputs}
        self.nodes.append(node)
        return node

    def note(self, text: str) -> None:
        """Add a note to the group."""
        self.nodes.append(Node(len(self.nodes) + 1, "MarkdownNote", "Note", self._group, text=text))

    def sets(self, name: str, title: str, entry: str) -> None:
        """Say that a program sets ``entry`` of the node with that title to change ``name``."""
        self.settings[name] = (title, entry)

    def _value(self, given: Any) -> Any:
        if not isinstance(given, Model):
            return given
        self.models.append(given.ids)
        return model_name(self._catalogue["files"][given.ids[0]])

    # -- the browser's format

    def ui(self) -> dict[str, Any]:
        """Return the file for the browser."""
        places, groups = self._lay_out()
        links: list[list[Any]] = []
        going: dict[tuple[int, int], list[int]] = {}
        for node in self.nodes:
            for name, output in node.links.items():
                kind = output.node.outputs[output.index][0]
                number = len(links) + 1
                links.append([number, output.node.id, output.index, node.id, self._slots(node).index(name), kind])
                going.setdefault((output.node.id, output.index), []).append(number)
        coming = {(link[3], link[4]): link[0] for link in links}
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"wanmetal:{self.name}")),  # the page warns of any other kind
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(links),
            "nodes": [self._ui_node(node, places[node.id], going, coming) for node in self.nodes],
            "links": links,
            "groups": groups,
            "config": {},
            "extra": {"ds": {"scale": 0.75, "offset": [110, 190]}},  # beside the page's bars, and large enough to read
            "version": 0.4,
        }

    def _slots(self, node: Node) -> list[str]:
        """Inputs as the browser lists them: first those that are only links, then widgets that are linked."""
        inputs = self._schemas[node.type].inputs if node.type in self._schemas else ()
        plain = [one.name for one in inputs if not one.widget]
        return plain + [one.name for one in inputs if one.widget and one.name in node.links]

    def _ui_node(
        self,
        node: Node,
        place: tuple[float, float, float, float],
        going: Mapping[tuple[int, int], list[int]],
        coming: Mapping[tuple[int, int], int],
    ) -> dict[str, Any]:
        x, y, width, height = place
        shown: dict[str, Any] = {
            "id": node.id,
            "type": node.type,
            "pos": [x, y],
            "size": [width, height],
            "flags": {},
            "order": node.id - 1,
            "mode": _BYPASSED if node.bypassed else 0,
            "inputs": [],
            "outputs": [],
            "title": node.title,
            "properties": {} if node.text else {"Node name for S&R": node.type},
            "widgets_values": [node.text] if node.text else self._widgets(node),
        }
        if node.text:
            return {**shown, "color": "#432", "bgcolor": "#653"}
        known = self._schemas[node.type]
        for index, name in enumerate(self._slots(node)):
            one = known.input(name)
            slot: dict[str, Any] = {
                "name": name,
                "type": one.type if one else "*",
                "link": coming.get((node.id, index)),
            }
            if one and one.widget:
                slot["widget"] = {"name": name}
            shown["inputs"].append(slot)
        for index, (kind, label) in enumerate(node.outputs):
            shown["outputs"].append({"name": label, "type": kind, "links": going.get((node.id, index), [])})
        return shown

    def _widgets(self, node: Node) -> Any:
        known = self._schemas[node.type]
        if known.pack == "ComfyUI-VideoHelperSuite":  # it saves its values by name
            return dict(node.values)
        values: list[Any] = []
        for one in known.inputs:
            if one.widget:
                values.append(node.values[one.name])
                if one.control:
                    values.append("randomize" if "seed" in one.name else "fixed")
        if any(one.upload for one in known.inputs):
            values.append("image")
        return values

    # -- places

    def _lay_out(self) -> tuple[dict[int, tuple[float, float, float, float]], list[dict[str, Any]]]:
        places: dict[int, tuple[float, float, float, float]] = {}
        groups: list[dict[str, Any]] = []
        left = 0.0
        for name in dict.fromkeys(node.group for node in self.nodes):
            x, y, widest, lowest = left, 0.0, 0.0, 0.0
            for node in (one for one in self.nodes if one.group == name):
                width, height = self._size(node)
                if y and y + height > _COLUMN_HEIGHT:
                    x, y, widest = x + widest + _GAP, 0.0, 0.0
                places[node.id] = (x, y + _TITLE, width, height)
                y += height + _TITLE + _GAP
                widest, lowest = max(widest, width), max(lowest, y)
            if name:
                first = name.split(":")[0].split(" ")[-1]
                groups.append(
                    {
                        "id": len(groups) + 1,
                        "title": name,
                        "bounding": [left - 20, -_HEAD - 10, x + widest - left + 40, lowest + _HEAD],
                        "color": _COLOURS.get(name, _COLOURS.get(first, "#444444")),
                        "font_size": 24,
                        "flags": {},
                    }
                )
            left = x + widest + 2 * _GAP + 20
        return places, groups

    def _size(self, node: Node) -> tuple[float, float]:
        if node.text:
            lines = sum(max(1, math.ceil(len(line) / 52)) for line in node.text.split("\n"))
            return NOTE_WIDTH, 40 + 19 * lines
        known = self._schemas[node.type]
        height = 20 * max(len(self._slots(node)), len(node.outputs))
        for one in known.inputs:
            if one.widget:
                height += 120 if one.options.get("multiline") else 24
                height += 24 if one.control else 0
        if node.type in {"LoadImage", "SaveImage", "LoadVideo", "SaveVideo", "VHS_LoadVideo"}:
            height += 260
        return NODE_WIDTH, height + 20
