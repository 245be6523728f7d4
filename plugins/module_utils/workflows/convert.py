"""From the format in which the browser saves a workflow to the one that ComfyUI's API takes.

What exists only in the browser is resolved as it does: reroutes, primitives, Set and Get, Use Everywhere, subgraphs,
nodes that are muted or bypassed, and widgets, whose values the browser saves without their names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import zip_longest
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import queued as queued_texts
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.schemas import (
    MATCHTYPE,
    PLAIN,
    Input,
    NodeType,
    Schemas,
)

_MUTED, _BYPASSED = 2, 4
_SUBGRAPH_INPUT, _SUBGRAPH_OUTPUT = "-10", "-20"
AFTER_RUN = {"fixed", "increment", "decrement", "randomize", "increment-wrap"}
_RGTHREE = {
    "Bookmark",
    "Fast Actions Button",
    "Fast Bypasser",
    "Fast Groups Bypasser",
    "Fast Groups Muter",
    "Fast Muter",
    "Label",
    "Mute / Bypass Relay",
    "Mute / Bypass Repeater",
    "Node Collector",
    "Node Combiner",
    "Power Conductor",
    "Random Unmuter",
}
_PASSES_ON = {"Reroute", "Reroute (rgthree)", "SetNode"}
_NOTES = {"Note", "MarkdownNote", *(f"{name} (rgthree)" for name in _RGTHREE)}
_BROWSER_ONLY = {*_NOTES, *_PASSES_ON, "PrimitiveNode", "GetNode"}
_EVERYWHERE = {"Anything Everywhere", "Anything Everywhere3", "Anything Everywhere?", "Prompts Everywhere"}
# Names that the browser replaces when it opens a file.
_RENAMED = {
    "ConditioningAverage ": "ConditioningAverage",
    "Load3DAnimation": "Load3D",
    "Preview3DAnimation": "Preview3D",
    "SDV_img2vid_Conditioning": "SVD_img2vid_Conditioning",
    "T2IAdapterLoader": "ControlNetLoader",
}
# Widgets that show a video, which the browser takes for inputs once they have loaded it.
PREVIEWS = {"videopreview", "video-preview"}
# Saved among the values, and given to no input.
_BUTTONS = {
    "choose audio to upload",
    "choose folder to upload",
    "choose video to upload",
    "control_after_generate",
    "upload",
}
POWER_LORAS = "Power Lora Loader (rgthree)"
CUSTOM_COMBO = "CustomCombo"
# VideoHelperSuite saved its values as a list once, and under another name.
_VHS_LOAD = ("force_rate", "force_size", "frame_load_cap", "skip_first_frames", "select_every_nth")
_VHS_LISTS: dict[str, tuple[str, ...]] = {
    "VHS_LoadImages": ("directory", "", "image_load_cap", "skip_first_images", "select_every_nth"),
    "VHS_LoadImagesPath": ("directory", "image_load_cap", "skip_first_images", "select_every_nth"),
    "VHS_LoadVideo": ("video", *_VHS_LOAD),
    "VHS_LoadVideoPath": ("video", *_VHS_LOAD),
    "VHS_VideoCombine": ("frame_rate", "loop_count", "filename_prefix", "format", "pingpong", "save_image"),
}
_VHS_OLD_NAMES = {"save_output": "save_image"}

Node = Mapping[str, Any]


class ConversionError(Exception):
    """What cannot be converted, with what to do."""


@dataclass(frozen=True)
class Link:
    """Where an input gets its value from."""

    origin: str
    slot: int
    type: str


@dataclass(frozen=True)
class Slot:
    """An input of a node as the browser shows it, in its order; a widget's has the name of the widget."""

    name: str
    type: str
    link: Any = None
    widget: str = ""


@dataclass
class Scope:
    """The nodes and links of a graph or a subgraph; a subgraph knows the node it stands for, and that one's scope."""

    nodes: dict[str, Node]
    links: dict[Any, Link]
    prefix: str = ""
    parent: Scope | None = None
    instance: Node = field(default_factory=dict)
    definition: Mapping[str, Any] = field(default_factory=dict)
    given: dict[tuple[str, str, str], Any] = field(default_factory=dict)
    """Values of widgets inside that the node of the subgraph shows as its own: by node, name, and the node in there."""
    inner: dict[str, Scope] = field(default_factory=dict)

    def values_of(self, id_: str) -> dict[str, Any]:
        """What is given from outside to the widgets of a node."""
        return {name: value for (other, name, _unused), value in self.given.items() if other == id_}


@dataclass(frozen=True)
class Source:
    """What an input resolves to: an output of a node, or, from the node of a subgraph or a primitive, a value."""

    node: str = ""
    slot: int = 0
    value: Any = None


def is_group_node(kind: str) -> bool:
    """Whether a type is a group of nodes that the browser takes apart, as it was before there were subgraphs."""
    return str(kind).startswith(("workflow>", "workflow/"))


def is_api_format(workflow: Mapping[str, Any]) -> bool:
    """Whether a workflow needs no conversion."""
    return bool(workflow) and all(isinstance(node, dict) and "class_type" in node for node in workflow.values())


def to_api(
    workflow: Mapping[str, Any], schemas: Schemas, *, strict: bool = True, queued: bool = False
) -> dict[str, Any]:
    """Return a workflow in API format; one that is in it already comes back as it is.

    Unless ``strict``, values that have no names are left out. What the browser fills in as it queues, such as dates in
    names, is filled in where it is ``queued``.
    """
    if is_api_format(workflow):
        return dict(workflow)
    if not isinstance(workflow.get("nodes"), list):
        raise ConversionError("this is no workflow: it has neither nodes nor class types")
    root = _scope(workflow, _definitions(workflow))
    graph = _Graph(schemas, strict)
    queue = _Queue(graph, root, schemas) if queued else None
    everywhere = _Everywhere(graph, root, workflow)
    api: dict[str, Any] = {}
    for scope, node in _active(root):
        if strict and is_group_node(node["type"]):
            raise ConversionError(
                f"node {node['id']} is a group node ({node['type']}), which only the browser takes apart: "
                "turn it into nodes or a subgraph there, and save again"
            )
        values = graph.values(scope, node)
        inputs = {
            name: _wrapped(value) for name, value in (queue.filled(scope, node, values) if queue else values).items()
        }
        for index, slot in enumerate(graph.slots(scope, node)):
            source = graph.input(scope, node, index) or everywhere.find(scope, node, slot)
            if source is not None:
                inputs[slot.name] = [source.node, source.slot] if source.node else _wrapped(source.value)
        title = node.get("title") or node["type"]
        api[scope.prefix + str(node["id"])] = {"inputs": inputs, "class_type": node["type"], "_meta": {"title": title}}
    for node in api.values():  # what a link leads to may not be there: it was muted, or exists in the browser only
        node["inputs"] = {
            name: value for name, value in node["inputs"].items() if not _is_link(value) or value[0] in api
        }
    return api


def _wrapped(value: Any) -> Any:
    """A list would be a link, so the browser puts it into a mapping, which ComfyUI opens."""
    return {"__value__": value} if isinstance(value, list) else value


def _is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


# -- nodes and links


def _links(graph: Mapping[str, Any]) -> dict[Any, Link]:
    links = {}
    for link in graph.get("links") or []:
        if isinstance(link, Mapping):
            links[link["id"]] = Link(str(link["origin_id"]), link["origin_slot"], str(link["type"]))
        elif link:
            links[link[0]] = Link(str(link[1]), link[2], str(link[5]))
    return links


def _definitions(workflow: Mapping[str, Any]) -> dict[str, Any]:
    """The subgraphs. A widget inside that a node of one shows as its own loses its link inside, as in the browser."""
    found = {one["id"]: one for one in (workflow.get("definitions") or {}).get("subgraphs") or []}
    shown: dict[str, set[tuple[Any, str]]] = {id_: set() for id_ in found}
    for graph in (workflow, *found.values()):
        for node in graph.get("nodes") or []:
            if node["type"] in found:
                shown[node["type"]] |= {(id_, name) for id_, name, _unused, _value in _shown_inside(node)}
    return {id_: _unlinked(one, shown[id_]) if shown[id_] else one for id_, one in found.items()}


def _unlinked(definition: Mapping[str, Any], shown: Collection[tuple[Any, str]]) -> dict[str, Any]:
    links = _links(definition)

    def slots(node: Node) -> list[Any]:
        return [
            {**slot, "link": None}
            if (str(node["id"]), (slot.get("widget") or {}).get("name")) in shown
            and slot.get("link") in links
            and links[slot["link"]].origin != _SUBGRAPH_INPUT
            else slot
            for slot in node.get("inputs") or []
        ]

    return {**definition, "nodes": [{**node, "inputs": slots(node)} for node in definition["nodes"]]}


def _scope(graph: Mapping[str, Any], definitions: Mapping[str, Any], **place: Any) -> Scope:
    links = _links(graph)
    nodes: dict[str, Node] = {
        str(node["id"]): {**node, "type": _RENAMED.get(node["type"], node["type"])} for node in graph["nodes"]
    }
    scope = Scope(nodes, links, **place)
    for id_, node in nodes.items():
        if node["type"] in definitions:
            definition = definitions[node["type"]]
            above: Scope | None = scope
            while above is not None:
                if above.definition.get("id") == node["type"]:
                    raise ConversionError(f"the subgraph {definition.get('name')} is inside itself")
                above = above.parent
            prefix = f"{scope.prefix}{id_}:"
            scope.inner[id_] = _scope(
                definition,
                definitions,
                prefix=prefix,
                parent=scope,
                instance=node,
                definition=definition,
                given=_given(node, {key[1:]: value for key, value in scope.given.items() if key[0] == id_}),
            )
    return scope


def _shown_inside(node: Node) -> Iterator[tuple[Any, str, str, Any]]:
    """The widgets inside that the node of a subgraph shows as its own: node, name, a node in there, and the value."""
    listed = (node.get("properties") or {}).get("proxyWidgets") or []
    listed = json.loads(listed) if isinstance(listed, str) else listed
    saved = node.get("widgets_values")
    values = saved if isinstance(saved, list) else []
    for (id_, name, *more), value in zip_longest(listed, values[: len(listed)]):
        yield id_, name, more[0] if more else "", value


def _given(node: Node, outer: Mapping[tuple[str, str], Any]) -> dict[tuple[str, str, str], Any]:
    """What the node of a subgraph gives to widgets inside; ``outer`` are the values that it has got from outside."""
    left = dict(outer)
    found: dict[tuple[str, str, str], Any] = {}
    for id_, name, deeper, value in _shown_inside(node):
        value = left.pop((name, id_), left.pop((name, ""), value))  # without a node the first of that name is meant
        if isinstance(id_, str) and value is not None:
            found[id_, name, deeper] = value
    return found


def _active(scope: Scope) -> Iterator[tuple[Scope, Node]]:
    for id_, node in scope.nodes.items():
        if node.get("mode") in (_MUTED, _BYPASSED) or node["type"] in _BROWSER_ONLY | _EVERYWHERE:
            continue
        if id_ in scope.inner:
            yield from _active(scope.inner[id_])
        else:
            yield scope, node


class _Graph:
    """Nodes as the browser has them once it has opened a file: their inputs, the values of these, and their sources."""

    def __init__(self, schemas: Schemas, strict: bool) -> None:
        self._schemas = schemas
        self._strict = strict
        self._slots: dict[str, list[Slot]] = {}
        self._values: dict[str, dict[str, Any]] = {}

    def slots(self, scope: Scope, node: Node) -> list[Slot]:
        """The inputs of a node, in the browser's order: those of its type, then what the file has besides."""
        here = scope.prefix + str(node["id"])
        if here not in self._slots:
            self._slots[here] = self._slots_of(scope, node)
        return self._slots[here]

    def _slots_of(self, scope: Scope, node: Node) -> list[Slot]:
        saved = node.get("inputs") or []
        inner = scope.inner.get(str(node["id"]))
        if inner is not None:
            own = [(one["name"], str(one["type"])) for one in inner.definition.get("inputs") or []]
        # Use Everywhere has given its inputs other names; what counts is their order in the file.
        elif node["type"] not in _EVERYWHERE and (known := self._schemas.get(node["type"])):
            own = [(one.name, one.type) for one in sorted(known.inputs, key=lambda one: one.widget)]
        else:
            return [
                Slot(slot["name"], str(slot["type"]), slot.get("link"), (slot.get("widget") or {}).get("name") or "")
                for slot in saved
            ]
        widgets = self.values(scope, node)
        links = {slot["name"]: slot.get("link") for slot in saved}
        slots = [Slot(name, kind, links.get(name), name if name in widgets else "") for name, kind in own]
        names = {name for name, _unused in own}
        for slot in saved:
            widget = (slot.get("widget") or {}).get("name") or ""
            if slot["name"] not in names and (not widget or widget in widgets):
                slots.append(Slot(slot["name"], str(slot["type"]), slot.get("link"), widget))
        return slots

    # -- where an input gets its value from

    def input(
        self, scope: Scope, node: Node, index: int, kind: str = "", seen: frozenset[str] = frozenset()
    ) -> Source | None:
        """What an input resolves to; ``kind`` is the type that the first input of the way wants."""
        slots = self.slots(scope, node)
        link = scope.links.get(slots[index].link) if index < len(slots) else None
        if link is None:
            return None
        if link.origin == _SUBGRAPH_INPUT:
            return self._outside(scope, link.slot, seen, nested=str(node["id"]) in scope.inner)
        return self.output(scope, link.origin, link.slot, kind or slots[index].type, seen)

    def output(self, scope: Scope, id_: str, slot: int, kind: str, seen: frozenset[str] = frozenset()) -> Source | None:
        """What an output stands for."""
        here = f"{scope.prefix}{id_}.{slot}"
        if here in seen:
            raise ConversionError(f"the links of node {scope.prefix}{id_} lead in a circle")
        seen |= {here}
        node = scope.nodes.get(id_)
        if node is None or node.get("mode") == _MUTED:
            return None
        if node.get("mode") == _BYPASSED:
            index = self._passes_through(scope, node, slot, kind)
            return None if index is None else self.input(scope, node, index, seen=seen)
        if id_ in scope.inner:
            return self._inside(scope.inner[id_], slot, kind, seen)
        if node["type"] in _PASSES_ON:
            return self.input(scope, node, slot, kind, seen)
        if node["type"] == "GetNode":
            return self._get(scope, node, slot, kind, seen)
        return None if node["type"] in _BROWSER_ONLY else Source(scope.prefix + id_, slot)

    def _outside(self, scope: Scope, slot: int, seen: frozenset[str], *, nested: bool = False) -> Source | None:
        if scope.parent is None:
            return None
        slots = self.slots(scope.parent, scope.instance)
        if slot >= len(slots):
            return None
        shown = slots[slot]
        if shown.link is not None and (nested or _primitive(scope.parent, shown) is None):
            return self.input(scope.parent, scope.instance, slot, seen=seen)
        values = self.values(scope.parent, scope.instance)
        return Source(value=values[shown.name]) if shown.name in values else None

    def _inside(self, scope: Scope, slot: int, kind: str, seen: frozenset[str]) -> Source | None:
        outputs = scope.definition.get("outputs") or []
        numbers = outputs[slot].get("linkIds") or [] if slot < len(outputs) else []
        link = scope.links.get(numbers[0]) if numbers else None
        if link is None:
            return None
        if link.origin == _SUBGRAPH_INPUT:
            return self._outside(scope, link.slot, seen)
        return self.output(scope, link.origin, link.slot, kind, seen)

    def _get(self, scope: Scope, node: Node, slot: int, kind: str, seen: frozenset[str]) -> Source | None:
        name = _first_value(node)
        at: Scope | None = scope
        while at is not None and name:
            for other in at.nodes.values():
                if other["type"] == "SetNode" and _first_value(other) == name:
                    return self.input(at, other, slot, kind, seen)
            at = at.parent
        return None

    def _passes_through(self, scope: Scope, node: Node, slot: int, kind: str) -> int | None:
        """Which input of a bypassed node takes the place of an output."""
        slots = self.slots(scope, node)
        if kind in ("*", ""):
            return slot if slot < len(slots) else 0
        outputs = self._output_types(scope, node)
        given = outputs[slot] if slot < len(outputs) else kind
        fits = [_fit(one.type, given) and _fit(one.type, kind) for one in slots]
        if slot < len(fits) and fits[slot]:
            return slot
        exact = next((index for index, one in enumerate(slots) if one.type == kind), None)
        return exact if exact is not None else next((index for index, fit in enumerate(fits) if fit), None)

    def _output_types(self, scope: Scope, node: Node) -> list[str]:
        if inner := scope.inner.get(str(node["id"])):
            return [str(one["type"]) for one in inner.definition.get("outputs") or []]
        if known := self._schemas.get(node["type"]):
            return [kind for kind, _unused in known.outputs]
        return [str(one["type"]) for one in node.get("outputs") or []]

    # -- values

    def values(self, scope: Scope, node: Node) -> dict[str, Any]:
        """The values of a node's widgets, by the names of these."""
        here = scope.prefix + str(node["id"])
        if here not in self._values:
            inner = scope.inner.get(str(node["id"]))
            found = self._promoted(inner) if inner else dict(_widgets(node, self._schemas, self._strict))
            found |= {name: value for name, value in scope.values_of(str(node["id"])).items() if name in found}
            self._values[here] = found
            for slot in node.get("inputs") or []:
                name = (slot.get("widget") or {}).get("name")
                primitive = _primitive(scope, Slot(slot["name"], "", slot.get("link")))
                if name in found and primitive and primitive.get("widgets_values"):
                    shown = scope.values_of(str(primitive["id"])).get("value")
                    value = _first_value(primitive) if shown is None else shown
                    found[name] = _within(self._schemas.get(node["type"]), name, value)
        return self._values[here]

    def _promoted(self, scope: Scope) -> dict[str, Any]:
        """The values that the node of a subgraph shows for widgets inside: its own, or else those of the widgets."""
        found: dict[str, Any] = {}
        sources: dict[tuple[str, str], str] = {}
        targets: dict[Any, tuple[Node, Slot]] = {}
        for node in scope.nodes.values():
            targets |= {slot.link: (node, slot) for slot in self.slots(scope, node) if slot.link is not None}
        for one in scope.definition.get("inputs") or []:
            for number in one.get("linkIds") or []:
                if number in targets and targets[number][1].widget:
                    node, slot = targets[number]
                    values = self.values(scope, node)
                    if slot.widget not in values:  # of a type that is not known
                        continue
                    found[one["name"]] = values[slot.widget]
                    sources[str(node["id"]), slot.widget] = one["name"]
                    break
        saved = scope.instance.get("widgets_values")
        saved = saved if isinstance(saved, list) else []
        found |= dict(zip(list(found), saved, strict=False))
        # Where a browser of 2025 has saved, the values are in the order of this list.
        for id_, name, _unused, value in _shown_inside(scope.instance):
            shown = name if str(id_) == "-1" else sources.get((str(id_), name))
            if shown in found and value is not None:
                found[shown] = value
        return found


def _primitive(scope: Scope, slot: Slot) -> Node | None:
    """The primitive that an input is linked to."""
    link = scope.links.get(slot.link) if slot.link is not None else None
    node = scope.nodes.get(link.origin) if link else None
    return node if node is not None and node["type"] == "PrimitiveNode" else None


def _within(known: NodeType | None, name: str, value: Any) -> Any:
    """A primitive's number, within the limits of the widget that gets it."""
    one = known.input(name) if known else None
    if one is None or one.type not in ("INT", "FLOAT") or isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return min(max(value, one.options.get("min", value)), one.options.get("max", value))


def _first_value(node: Node) -> Any:
    values = node.get("widgets_values")
    return values[0] if isinstance(values, list) and values else None


def _fit(one: str, other: str) -> bool:
    if {one, other} & {"*", "", MATCHTYPE}:
        return True
    return bool(set(one.lower().split(",")) & set(other.lower().split(",")))


# -- widgets


def _widgets(node: Node, schemas: Schemas, strict: bool) -> Iterator[tuple[str, Any]]:
    saved = node.get("widgets_values") or []
    if isinstance(saved, Mapping) and saved.keys() == {str(index) for index in range(len(saved))}:
        saved = [saved[str(index)] for index in range(len(saved))]  # for JavaScript that is a list
    known = schemas.get(node["type"])
    if node["type"] == POWER_LORAS:
        yield from _power_loras(saved)
    elif node["type"] == CUSTOM_COMBO and isinstance(saved, list) and saved:
        yield from _custom_combo(saved)
    elif known and node["type"] in _VHS_LISTS and isinstance(saved, list):
        names = _VHS_LISTS[node["type"]]
        saved = dict(zip(names, saved, strict=False)) if len(saved) >= len(names) else {}
        yield from _by_name(known.inputs, saved)
    elif known and isinstance(saved, Mapping):
        yield from _by_name(known.inputs, saved)
    elif isinstance(saved, Mapping):
        yield from ((name, value) for name, value in saved.items() if name not in PREVIEWS | _BUTTONS)
    elif known:
        left = _without_forced(known, saved)
        yield from _taken(known.inputs, left)
        if strict and any(isinstance(value, Mapping) for value in left):
            raise _nameless(node)
    elif named := node.get("widgets_values_named"):
        yield from ((name, value) for name, value in named.items() if name not in PREVIEWS | _BUTTONS)
    else:
        yield from _named_by_the_file(node, saved, strict)


def _power_loras(saved: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    rows = [dict(one) for one in saved if isinstance(one, Mapping) and "lora" in one]
    yield "PowerLoraLoaderHeaderWidget", {"type": "PowerLoraLoaderHeaderWidget"}
    for number, row in enumerate(rows, 1):
        if row.get("strengthTwo") is None:
            row.pop("strengthTwo", None)
        yield f"lora_{number}", row
    yield "➕ Add Lora", ""


def _custom_combo(saved: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """The choice, and its place among the choices that people have written into the node."""
    options = [one for one in saved[2:] if one not in ("", None)]
    yield "choice", saved[0]
    yield "index", options.index(saved[0]) if saved[0] in options else -1
    yield from ((f"option{number}", one) for number, one in enumerate(options, 1))


def _by_name(inputs: Sequence[Input], saved: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Values that were saved by name, as VideoHelperSuite does; what is missing has its default."""
    for one in inputs:
        if one.widget:
            name = one.name if one.name in saved else _VHS_OLD_NAMES.get(one.name, one.name)
            value = saved[name] if name in saved else default(one)
            yield one.name, value
            yield from _by_name(one.brings(value), saved)


def named_values(known: NodeType, saved: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Name the values that the browser has saved in the order of the widgets."""
    yield from _taken(known.inputs, _without_forced(known, saved))


def _taken(inputs: Sequence[Input], values: list[Any]) -> Iterator[tuple[str, Any]]:
    """Name values in the order of widgets. Those that are over stay in ``values``."""
    button = any(one.upload and not one.optional for one in inputs)
    for one in inputs:
        if button and one.optional:
            button = False  # the button stands after the last of the inputs that a node must have
            del values[:1]
        if not one.widget:
            continue
        value = values.pop(0) if values else default(one)
        if value is None and one.choices:
            value = default(one)
        if one.type == "CURVE" and isinstance(value, list):
            yield one.name, {"__type__": "CURVE", "__value__": value}
        elif one.type != "RESOLUTION_PREVIEW":  # which the browser saves, and gives to nobody
            yield one.name, value
        if one.type == "BOUNDING_BOX":
            del values[:4]  # its sides, once more
        if one.control and values and (values[0] in AFTER_RUN or isinstance(values[0], bool)):
            values.pop(0)
        yield from _taken(one.brings(value), values)


def _without_forced(known: NodeType, saved: Sequence[Any]) -> list[Any]:
    """Browsers before 2025 saved a value for widgets that are inputs only, too."""
    inputs = [one for one in known.inputs if one.widget or one.type in PLAIN]
    forced = {index for index, one in enumerate(inputs) if not one.widget}
    count = sum(2 if one.control else 1 for one in inputs) + any(one.upload for one in inputs)
    if not forced or len(saved) != count:
        return list(saved)
    return [value for index, value in enumerate(saved) if index not in forced]


def default(one: Input) -> Any:
    """The value that the browser gives a widget."""
    if "default" in one.options:
        return one.options["default"]
    if one.choices:
        return one.choices[0]
    return {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(one.type, "")


def _named_by_the_file(node: Node, saved: Sequence[Any], strict: bool) -> Iterator[tuple[str, Any]]:
    """Values of a type that is not known. The file names the widgets that it lists as inputs, in their order."""
    names = [slot["name"] for slot in node.get("inputs") or [] if slot.get("widget")]
    values = list(saved)
    found: dict[str, Any] = {}
    for index, name in enumerate(names):
        if not values:
            break
        found[name] = values.pop(0)
        more = len(values) > len(names) - index - 1
        if values and values[0] in AFTER_RUN and ("seed" in name or more):
            values.pop(0)
    if len(found) == len(names) and not values:  # otherwise some widgets are not listed, and any name may be wrong
        yield from found.items()
    elif strict:
        raise _nameless(node)


def _nameless(node: Node) -> ConversionError:
    return ConversionError(
        f"too little is known of the node type {node['type']!r} (node {node['id']}), so its values have no names. "
        "Give the answer of /object_info of a ComfyUI that has it, or save the API format in the browser"
    )


# -- what the browser fills in as it queues


class _Queue:
    """Values as the browser queues them."""

    def __init__(self, graph: _Graph, root: Scope, schemas: Schemas) -> None:
        self._graph = graph
        self._root = root
        self._schemas = schemas
        self._now = datetime.now()

    def filled(self, scope: Scope, node: Node, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a node's widgets, with texts that are drawn, and names that are filled in.

        What the node of a subgraph gives stays as it is, as in the browser.
        """
        given = scope.values_of(str(node["id"]))
        known = self._schemas.get(node["type"])
        by_lot = {one.name for one in known.inputs if one.drawn} if known else set()
        found = dict(values)
        for name, value in values.items():
            if not isinstance(value, str) or name in given:
                continue
            if name in by_lot:
                found[name] = queued_texts.drawn(value)
            elif queued_texts.is_name(node["type"], name):
                found[name] = queued_texts.filled(value, self._value, self._now)
        return found

    def _value(self, called: str, widget: str) -> Any:
        nodes = [(*one, queued_texts.called(one[1], self._title(one[1]))) for one in _every(self._root)]
        for index in (0, 1):  # the name in its properties comes first, then the title
            for scope, node, names in nodes:
                if names[index] == called:
                    if node["type"] == "PrimitiveNode":
                        return {"value": _first_value(node)}[widget]
                    shown = {name: value for _id, name, _unused, value in _shown_inside(node)}
                    with suppress(ConversionError):  # too little is known of its type
                        return {**shown, **self._graph.values(scope, node)}[widget]
        raise LookupError(called)

    def _title(self, node: Node) -> str:
        known = self._schemas.get(node["type"])
        return known.title if known else {"PrimitiveNode": "Primitive"}.get(node["type"], "")


def _every(scope: Scope) -> Iterator[tuple[Scope, Node]]:
    """All nodes, as the browser walks over them."""
    for id_, node in scope.nodes.items():
        if id_ in scope.inner:
            yield from _every(scope.inner[id_])
        yield scope, node


# -- Use Everywhere


class _Everywhere:
    """Links that Use Everywhere draws by type, as it has saved them, or else by its rules."""

    def __init__(self, graph: _Graph, root: Scope, workflow: Mapping[str, Any]) -> None:
        self._graph = graph
        self._root = root
        self._saved = (workflow.get("extra") or {}).get("ue_links")
        self._offers = [] if self._saved else list(self._offered())

    def find(self, scope: Scope, node: Node, slot: Slot) -> Source | None:
        """Return what is broadcast to an input that nothing is linked to."""
        if slot.link is not None:
            return None
        if self._saved:
            return self._find_saved(scope, node, slot)
        if slot.widget:
            properties = (node.get("properties") or {}).get("ue_properties") or {}
            if not (properties.get("widget_ue_connectable") or {}).get(slot.name):
                return None
        for fits, source in self._offers:
            if fits(node, slot):
                return source
        return None

    def _find_saved(self, scope: Scope, node: Node, slot: Slot) -> Source | None:
        if scope is not self._root:
            return None
        names = [one["name"] for one in node.get("inputs") or []]
        index = names.index(slot.name) if slot.name in names else -1
        for link in self._saved or []:
            if str(link["downstream"]) == str(node["id"]) and link["downstream_slot"] == index:
                return self._graph.output(scope, str(link["upstream"]), link["upstream_slot"], str(link["type"]))
        return None

    def _offered(self) -> Iterator[tuple[Callable[[Node, Slot], bool], Source]]:
        # a controller with a filter is meant for few inputs, and comes before those that are meant for all
        nodes = [node for node in self._root.nodes.values() if node.get("mode") not in (_MUTED, _BYPASSED)]
        controllers = [node for node in nodes if node["type"] in _EVERYWHERE]
        controllers.sort(key=lambda node: node["type"] != "Anything Everywhere?" and not _filters(node))
        for node in controllers:
            for index, slot in enumerate(node.get("inputs") or []):
                link = self._root.links.get(slot["link"]) if slot.get("link") is not None else None
                source = self._graph.input(self._root, node, index)
                if link and source:
                    yield _meant_for(node, index, link.type), source
        for node in nodes:
            if node["type"] == "Seed Everywhere":
                yield (lambda _unused, slot: slot.type == "INT" and "seed" in slot.name), Source(str(node["id"]), 0)


def _filters(node: Node) -> dict[str, str]:
    values = node.get("widgets_values") or []
    if node["type"] == "Anything Everywhere?":
        found = dict(zip(("title_regex", "input_regex", "group_regex"), values, strict=False))
    else:
        properties = (node.get("properties") or {}).get("ue_properties") or {}
        found = {key: properties.get(key) for key in ("title_regex", "input_regex")}
    return {key: value for key, value in found.items() if isinstance(value, str) and value not in ("", ".*")}


def _meant_for(controller: Node, index: int, kind: str) -> Callable[[Node, Slot], bool]:
    filters = _filters(controller)
    prompt = {0: r"(_|\b)pos(itive|_|\b)|^prompt", 1: r"(_|\b)neg(ative|_|\b)"}.get(index, "")

    def fits(node: Node, slot: Slot) -> bool:
        if slot.type != kind or node["id"] == controller["id"]:
            return False
        if controller["type"] == "Prompts Everywhere" and not re.search(prompt, slot.name):
            return False
        texts = {"title_regex": str(node.get("title") or node["type"]), "input_regex": slot.name}
        try:
            return all(re.search(filters.get(key, ""), text) for key, text in texts.items())
        except re.error as error:
            raise ConversionError(
                f"node {controller['id']} ({controller['type']}): its filter cannot be read ({error})"
            ) from error

    return fits
