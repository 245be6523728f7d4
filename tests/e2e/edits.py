"""Graphs at random, of the kinds that people make in the browser: what is in them depends on a seed alone.

They hold nested subgraphs that show widgets, Set and Get, reroutes, primitives, nodes that are muted or bypassed,
widgets that are linked, and inputs that a file lists in another order, or leaves out.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import default
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.schemas import Input, Schemas

MUTED, BYPASSED = 2, 4
_SOURCES = ("EmptyImage", "SolidMask")
_MIDDLE = (
    "ImageBatch",
    "ImageBlur",
    "ImageCompositeMasked",
    "ImageCrop",
    "ImageInvert",
    "ImageScale",
    "ImageScaleBy",
    "ImageToMask",
    "InvertMask",
    "JoinImageWithAlpha",
    "MaskToImage",
    "RepeatImageBatch",
    "SplitImageWithAlpha",
    "ThresholdMask",
)
_NUMBERS = ("PrimitiveInt", "PrimitiveFloat")
Node = dict[str, Any]


@dataclass(frozen=True)
class Output:
    """An output that others may be linked to; a subgraph's own input has the id of its input node."""

    id: int
    slot: int
    type: str


@dataclass
class Graph:
    """A graph that grows, or the inside of a subgraph."""

    nodes: list[Node] = field(default_factory=list)
    links: list[tuple[int, Output, int, str]] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)
    """Inputs of the subgraph."""
    names: list[tuple[str, str]] = field(default_factory=list)
    """What Set nodes keep, with its type."""
    inside: bool = False


class Edits:
    """One workflow, by its seed, without what a version of the browser is known to get wrong.

    The pinned one takes the wrong widgets where nodes inside a subgraph list few of their inputs. It takes the wrong
    value of a primitive that is linked to one of two nodes of a subgraph, or to one with subgraphs inside, and no value
    for a widget whose link leads to a muted node. A ``newer`` one loses primitives that are linked to a subgraph.
    """

    def __init__(self, seed: int, schemas: Schemas, *, newer: bool = False) -> None:
        self._newer = newer
        self._random = random.Random(seed)  # noqa: S311 (no secret)
        self._schemas = schemas
        self._last = 0
        self._definitions: list[dict[str, Any]] = []

    def workflow(self) -> dict[str, Any]:
        """The file for the browser."""
        graph = self._grown(Graph(), depth=0)
        images = [one for one in graph.outputs if one.type == "IMAGE"]
        for one in self._random.sample(images, min(len(images), 3)):
            save = self._node(graph, "SaveImage", ["out"])
            save["inputs"] = [self._slot("images", "IMAGE", self._link(graph, one, save, "IMAGE"))]
        return {
            "last_node_id": self._last,
            "last_link_id": self._last,
            "nodes": graph.nodes,
            "links": [list(row) for row in self._rows(graph)],
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
            "definitions": {"subgraphs": self._definitions},
        }

    # -- growing

    def _grown(self, graph: Graph, depth: int) -> Graph:
        chance = self._random.random
        for kind in _SOURCES:
            self._add(graph, kind)
        for _ in range(self._random.randint(3, 7)):
            if depth < 2 and chance() < 0.25:
                self._subgraph(graph, depth)
            elif chance() < 0.12:
                self._set_and_get(graph)
            elif chance() < 0.12:
                self._add(graph, self._random.choice(_NUMBERS))
            else:
                self._add(graph, self._random.choice(_MIDDLE))
        return graph

    def _add(self, graph: Graph, kind: str) -> Node:
        known = self._schemas[kind]
        node = self._node(graph, kind, self._values(known.inputs))
        slots = []
        order = [*(one for one in known.inputs if not one.widget), *(one for one in known.inputs if one.widget)]
        for one in order:
            chance = self._random.random()
            link = None
            if not one.widget and chance < 0.9:
                link = self._linked(graph, node, one)
            elif one.widget and chance < 0.25 and one.type in ("INT", "FLOAT"):
                link = self._number(graph, node, one)
            slots.append(self._slot(one.name, one.type, link, widget=one.widget))
        node["inputs"] = slots if graph.inside and not self._newer else self._listed(slots)
        node["outputs"] = [{"name": label, "type": type_, "links": []} for type_, label in known.outputs]
        self._finish(graph, node, [type_ for type_, _ in known.outputs])
        return node

    def _finish(self, graph: Graph, node: Node, types: Sequence[str]) -> None:
        chance = self._random.random()
        node["mode"] = MUTED if chance < 0.08 else BYPASSED if chance < 0.22 else 0
        if node["type"] in _NUMBERS and not self._newer:
            node["mode"] = 0
        graph.outputs += [Output(node["id"], slot, type_) for slot, type_ in enumerate(types)]

    def _listed(self, slots: list[Node]) -> list[Node]:
        """Inputs as files list them: all, those that are linked or no widgets, or these in another order."""
        way = self._random.choice(["all", "few", "mixed"])
        if way == "all":
            return slots
        few = [slot for slot in slots if "widget" not in slot or slot["link"] is not None]
        if way == "mixed":
            self._random.shuffle(few)
        return few

    def _values(self, inputs: Sequence[Input]) -> list[Any]:
        values: list[Any] = []
        for one in inputs:
            if one.widget:
                values.append(self._value(one))
                if one.control:
                    values.append("fixed")
        return values

    def _value(self, one: Input) -> Any:
        if one.type == "INT":
            step = one.options.get("step") or 1
            least, most = max(1, one.options.get("min", 1)), 30  # fits the limits of every widget
            return least + step * self._random.randint(0, (most - least) // step)
        if one.type == "FLOAT":
            return self._random.randint(1, 10) / 10  # fits the step of every widget, to which the browser rounds
        if one.choices:
            return self._random.choice(one.choices)
        return self._random.random() < 0.5 if one.type == "BOOLEAN" else default(one)

    # -- links

    def _linked(self, graph: Graph, node: Node, one: Input) -> int | None:
        fitting = [other for other in graph.outputs if other.type == one.type]
        if graph.inside and self._random.random() < 0.3:
            return self._shown(graph, node, one.name, one.type)
        if not fitting:
            return None
        return self._link(graph, self._by_a_reroute(graph, self._random.choice(fitting)), node, one.type)

    def _number(self, graph: Graph, node: Node, one: Input, primitive: bool = True) -> int | None:
        """Link a widget: to an input of the subgraph, to a primitive, or to a node that gives a number."""
        if graph.inside and self._random.random() < 0.7:
            return self._shown(graph, node, one.name, one.type, self._value(one))
        if (
            primitive and not graph.inside and self._random.random() < 0.5
        ):  # the pinned browser fails with them in subgraphs
            giver = self._node(graph, "PrimitiveNode", [self._value(one), "fixed"])
            giver["outputs"] = [
                {"name": one.type, "type": one.type, "links": [], "slot_index": 0, "widget": {"name": one.name}}
            ]
            return self._link(graph, Output(giver["id"], 0, one.type), node, one.type)
        fitting = [other for other in graph.outputs if other.type == one.type]
        return self._link(graph, self._random.choice(fitting), node, one.type) if fitting else None

    def _by_a_reroute(self, graph: Graph, output: Output) -> Output:
        if self._random.random() > 0.15:
            return output
        reroute = self._node(graph, "Reroute")
        reroute["inputs"] = [self._slot("", "*", self._link(graph, output, reroute, "*"))]
        reroute["outputs"] = [{"name": "", "type": output.type, "links": []}]
        return Output(reroute["id"], 0, output.type)

    def _set_and_get(self, graph: Graph) -> None:
        outputs = [one for one in graph.outputs if one.type in ("IMAGE", "MASK")]
        output = self._random.choice(outputs)
        name = f"kept-{self._id()}"
        setter = self._node(graph, "SetNode", [name], properties={"previousName": name})
        setter["inputs"] = [self._slot(output.type, output.type, self._link(graph, output, setter, output.type))]
        setter["outputs"] = [{"name": "*", "type": "*", "links": []}]
        graph.names.append((name, output.type))
        kept = [other for other, kind in graph.names if kind == output.type]
        getter = self._node(graph, "GetNode", ["gone" if self._random.random() < 0.1 else self._random.choice(kept)])
        getter["outputs"] = [{"name": output.type, "type": output.type, "links": []}]
        graph.outputs += [Output(getter["id"], 0, output.type), Output(setter["id"], 0, output.type)]

    # -- subgraphs

    def _subgraph(self, graph: Graph, depth: int) -> None:
        inner = self._grown(Graph(inside=True), depth + 1)
        offered = [one for one in inner.outputs if self._newer or one.type in ("IMAGE", "MASK")]
        results = self._random.sample(offered, min(len(offered), self._random.randint(1, 3)))
        named: list[dict[str, Any]] = [
            {"id": self._uuid(), "name": f"{one.type}_{index}", "type": one.type} for index, one in enumerate(results)
        ]
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        links: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in self._rows(inner)]
        for slot, (one, entry) in enumerate(zip(results, named, strict=True)):
            number = self._id()
            entry["linkIds"] = [number]
            links.append(
                {"id": number, "origin_id": one.id, "origin_slot": one.slot, "target_id": -20, "target_slot": slot}
                | {"type": one.type}
            )
            node = next(node for node in inner.nodes if node["id"] == one.id)
            node["outputs"][one.slot]["links"].append(number)
        definition = {
            "id": self._uuid(),
            "version": 1,
            "state": {"lastGroupId": 0, "lastNodeId": self._last, "lastLinkId": self._last, "lastRerouteId": 0},
            "revision": 0,
            "config": {},
            "name": f"Part {len(self._definitions) + 1}",
            "inputNode": {"id": -10, "bounding": [0, 0, 120, 80]},
            "outputNode": {"id": -20, "bounding": [900, 0, 120, 80]},
            "inputs": [{key: value for key, value in one.items() if key != "value"} for one in inner.shown],
            "outputs": named,
            "widgets": [],
            "nodes": inner.nodes,
            "groups": [],
            "links": links,
            "extra": {},
        }
        self._definitions.append(definition)
        times = self._random.choice([1, 1, 2])
        for _ in range(times):
            self._instance(graph, definition, inner.shown, named, alone=times == 1)

    def _instance(
        self,
        graph: Graph,
        definition: dict[str, Any],
        shown: list[dict[str, Any]],
        outputs: list[dict[str, Any]],
        *,
        alone: bool,
    ) -> None:
        node = self._node(graph, definition["id"])
        slots, widgets = [], []
        for one in shown:
            link, widget = None, one.get("value") is not None
            entry = Input(one["name"], one["type"], widget=widget)
            if not widget or self._random.random() < 0.2:
                ids = [inner["id"] for inner in self._definitions]
                nests = any(node["type"] in ids for node in definition["nodes"])
                primitive = alone and not nests and not self._newer
                link = self._number(graph, node, entry, primitive) if widget else self._linked(graph, node, entry)
            slots.append(self._slot(one["name"], one["type"], link, widget=widget))
            if widget:
                widgets.append((one["name"], self._value(entry)))
        node["inputs"] = slots if graph.inside and not self._newer else self._listed(slots)
        node["outputs"] = [{"name": one["name"], "type": one["type"], "links": []} for one in outputs]
        way = self._random.choice(["in order", "few", "none", "listed"])
        if way == "few":
            widgets = widgets[: self._random.randint(0, len(widgets))]
        if way == "listed":
            self._random.shuffle(widgets)
            node["properties"]["proxyWidgets"] = [["-1", name] for name, _ in widgets]
        if way != "none":
            node["widgets_values"] = [value for _, value in widgets]
        self._finish(graph, node, [one["type"] for one in outputs])
        if alone and node["mode"]:
            self._all_in(definition, node["mode"])  # as the browser does it
        else:
            node["mode"] = 0

    def _all_in(self, definition: dict[str, Any], mode: int) -> None:
        for node in definition["nodes"]:
            node["mode"] = mode
            for inner in self._definitions:
                if inner["id"] == node["type"]:
                    self._all_in(inner, mode)

    def _shown(self, graph: Graph, node: Node, name: str, kind: str, value: Any = None) -> int:
        """Link an input to one of the subgraph, which may be there."""
        same = [one for one in graph.shown if one["type"] == kind and (one.get("value") is None) == (value is None)]
        if same and self._random.random() < 0.3:
            entry = self._random.choice(same)
        else:
            names = {one["name"] for one in graph.shown}
            unique = name if name not in names else f"{name}_{len(names)}"
            entry = {"id": self._uuid(), "name": unique, "type": kind, "linkIds": [], "value": value}
            graph.shown.append(entry)
        number = self._link(graph, Output(-10, graph.shown.index(entry), kind), node, kind)
        entry["linkIds"].append(number)
        return number

    # -- parts

    def _rows(self, graph: Graph) -> list[tuple[int, int, int, int, int, str]]:
        """Links as files have them: they count the inputs of their target as the file lists these."""
        places = {slot["link"]: index for node in graph.nodes for index, slot in enumerate(node["inputs"])}
        return [(number, one.id, one.slot, to, places[number], kind) for number, one, to, kind in graph.links]

    def _id(self) -> int:
        self._last += 1
        return self._last

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def _node(self, graph: Graph, kind: str, values: list[Any] | None = None, **more: Any) -> Node:
        number = self._id()
        place = [260 * (len(graph.nodes) % 8), 300 * (len(graph.nodes) // 8)]
        node: Node = {"id": number, "type": kind, "pos": place, "size": [220, 120], "flags": {}, "order": number}
        node |= {"mode": 0, "inputs": [], "outputs": [], "properties": {}, **more}
        if values is not None:
            node["widgets_values"] = values
        graph.nodes.append(node)
        return node

    def _slot(self, name: str, kind: str, link: int | None, *, widget: bool = False) -> Node:
        slot: Node = {"name": name, "type": kind, "link": link}
        return {**slot, "widget": {"name": name}} if widget else slot

    def _link(self, graph: Graph, output: Output, node: Node, kind: str) -> int:
        number = self._id()
        graph.links.append((number, output, node["id"], kind))
        if output.id != -10:
            origin = next(one for one in graph.nodes if one["id"] == output.id)
            origin["outputs"][output.slot]["links"].append(number)
        return number
