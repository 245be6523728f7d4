"""From the format in which the browser saves a workflow to the one that ComfyUI's API takes.

What exists only in the browser is resolved as it does: reroutes, primitives, Set and Get, Use Everywhere, subgraphs,
nodes that are muted or bypassed, and widgets, whose values the browser saves without their names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.schemas import Input, NodeType, Schemas

_MUTED, _BYPASSED = 2, 4
_SUBGRAPH_INPUT, _SUBGRAPH_OUTPUT = "-10", "-20"
_AFTER_RUN = {"fixed", "increment", "decrement", "randomize", "increment-wrap"}
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
_REROUTES = {"Reroute", "Reroute (rgthree)"}
_NOTES = {"Note", "MarkdownNote", *(f"{name} (rgthree)" for name in _RGTHREE)}
_BROWSER_ONLY = {*_NOTES, *_REROUTES, "PrimitiveNode", "SetNode", "GetNode"}
_EVERYWHERE = {"Anything Everywhere", "Anything Everywhere3", "Anything Everywhere?", "Prompts Everywhere"}
# Widgets that show a video, which the browser takes for inputs once they have loaded it.
PREVIEWS = {"videopreview", "video-preview"}
# Saved among the values, and given to no input.
_BUTTONS = {"choose audio to upload", "choose folder to upload", "choose video to upload"}

Node = Mapping[str, Any]


class ConversionError(Exception):
    """What cannot be converted, with what to do."""


@dataclass(frozen=True)
class Link:
    """Where an input gets its value from."""

    origin: str
    slot: int
    type: str


@dataclass
class Scope:
    """The nodes and links of a graph or a subgraph; a subgraph knows the node it stands for, and that one's scope."""

    nodes: dict[str, Node]
    links: dict[int, Link]
    prefix: str = ""
    parent: Scope | None = None
    instance: Node | None = None
    definition: Mapping[str, Any] = field(default_factory=dict)
    inner: dict[str, Scope] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """What an input resolves to: an output of a node, or, from a primitive, a value."""

    node: str = ""
    slot: int = 0
    value: object = None


def is_group_node(kind: str) -> bool:
    """Whether a type is a group of nodes that the browser takes apart, as it was before there were subgraphs."""
    return kind.startswith(("workflow>", "workflow/"))


def is_api_format(workflow: Mapping[str, Any]) -> bool:
    """Whether a workflow needs no conversion."""
    return bool(workflow) and all(isinstance(node, dict) and "class_type" in node for node in workflow.values())


def to_api(workflow: Mapping[str, Any], schemas: Schemas, *, strict: bool = True) -> dict[str, Any]:
    """Return a workflow in API format; one that is in it already comes back as it is.

    Unless ``strict``, values that have no names are left out.
    """
    if is_api_format(workflow):
        return dict(workflow)
    if not isinstance(workflow.get("nodes"), list):
        raise ConversionError("this is no workflow: it has neither nodes nor class types")
    definitions = {one["id"]: one for one in (workflow.get("definitions") or {}).get("subgraphs") or []}
    root = _scope(workflow, definitions)
    everywhere = _Everywhere(root, workflow)
    api: dict[str, Any] = {}
    for scope, node in _active(root):
        if strict and is_group_node(node["type"]):
            raise ConversionError(
                f"node {node['id']} is a group node ({node['type']}), which only the browser takes apart: "
                "turn it into nodes or a subgraph there, and save again"
            )
        inputs = {name: value for name, value in _widgets(node, schemas, strict) if not _is_promoted(scope, node, name)}
        inputs |= _promoted(scope, node)
        for index, slot in enumerate(node.get("inputs") or []):
            source = _resolve_input(scope, node, index) or everywhere.find(scope, node, index)
            if source is not None:
                inputs[slot["name"]] = [source.node, source.slot] if source.node else source.value
        title = node.get("title") or node["type"]
        api[scope.prefix + str(node["id"])] = {"inputs": inputs, "class_type": node["type"], "_meta": {"title": title}}
    for node in api.values():  # what a link leads to may not be there: it was muted, or exists in the browser only
        node["inputs"] = {
            name: value for name, value in node["inputs"].items() if not _is_link(value) or value[0] in api
        }
    return api


# -- nodes and links


def _scope(graph: Mapping[str, Any], definitions: Mapping[str, Any], **place: Any) -> Scope:
    links = {}
    for link in graph.get("links") or []:
        if isinstance(link, Mapping):
            links[link["id"]] = Link(str(link["origin_id"]), link["origin_slot"], str(link["type"]))
        elif link:
            links[link[0]] = Link(str(link[1]), link[2], str(link[5]))
    scope = Scope({str(node["id"]): node for node in graph["nodes"]}, links, **place)
    for id_, node in scope.nodes.items():
        if node["type"] in definitions:
            definition = definitions[node["type"]]
            prefix = f"{scope.prefix}{id_}:"
            scope.inner[id_] = _scope(
                definition, definitions, prefix=prefix, parent=scope, instance=node, definition=definition
            )
    return scope


def _active(scope: Scope) -> Iterator[tuple[Scope, Node]]:
    for id_, node in scope.nodes.items():
        if node.get("mode") in (_MUTED, _BYPASSED) or node["type"] in _BROWSER_ONLY | _EVERYWHERE:
            continue
        if id_ in scope.inner:
            yield from _active(scope.inner[id_])
        else:
            yield scope, node


def _resolve_input(scope: Scope, node: Node, index: int, seen: frozenset[str] = frozenset()) -> Source | None:
    slots = node.get("inputs") or []
    number = slots[index].get("link") if index < len(slots) else None
    link = scope.links.get(number) if number is not None else None
    return _resolve(scope, link, seen) if link else None


def _resolve(scope: Scope, link: Link, seen: frozenset[str]) -> Source | None:
    here = f"{scope.prefix}{link.origin}.{link.slot}"
    if here in seen:
        raise ConversionError(f"the links of node {scope.prefix}{link.origin} lead in a circle")
    seen |= {here}
    if link.origin == _SUBGRAPH_INPUT:
        return _resolve_outside(scope, link.slot, seen)
    node = scope.nodes.get(link.origin)
    if node is None or node.get("mode") == _MUTED:
        return None
    if node.get("mode") == _BYPASSED:
        index = _passes_through(node, link)
        return None if index is None else _resolve_input(scope, node, index, seen)
    if link.origin in scope.inner:
        return _resolve_inside(scope.inner[link.origin], link.slot, seen)
    if node["type"] in _REROUTES:
        return _resolve_input(scope, node, 0, seen)
    if node["type"] == "GetNode":
        return _resolve_get(scope, node, seen)
    if node["type"] == "PrimitiveNode":
        return Source(value=(node.get("widgets_values") or [None])[0])
    if node["type"] in _BROWSER_ONLY:
        return None
    return Source(scope.prefix + link.origin, link.slot)


def _resolve_outside(scope: Scope, slot: int, seen: frozenset[str]) -> Source | None:
    if scope.parent is None or scope.instance is None:
        return None
    name = scope.definition["inputs"][slot]["name"]
    for index, one in enumerate(scope.instance.get("inputs") or []):
        if one["name"] == name:
            return _resolve_input(scope.parent, scope.instance, index, seen)
    return None


def _resolve_inside(scope: Scope, slot: int, seen: frozenset[str]) -> Source | None:
    for number in scope.definition["outputs"][slot].get("linkIds") or []:
        if number in scope.links:
            return _resolve(scope, scope.links[number], seen)
    return None


def _resolve_get(scope: Scope, node: Node, seen: frozenset[str]) -> Source | None:
    name = (node.get("widgets_values") or [None])[0]
    at: Scope | None = scope
    while at is not None:
        for other in at.nodes.values():
            if other["type"] == "SetNode" and (other.get("widgets_values") or [None])[0] == name:
                return None if other.get("mode") == _MUTED else _resolve_input(at, other, 0, seen)
        at = at.parent
    raise ConversionError(f"the node {node['id']} gets {name!r}, which no node sets")


def _passes_through(node: Node, link: Link) -> int | None:
    """Which input of a bypassed node takes the place of an output."""
    slots = node.get("inputs") or []
    outputs = node.get("outputs") or []
    given = outputs[link.slot]["type"] if link.slot < len(outputs) else link.type
    if "*" in (given, link.type):
        return (link.slot if link.slot < len(slots) else 0) if slots else None
    if link.slot < len(slots) and slots[link.slot]["type"] == given:
        return link.slot
    return next((index for index, slot in enumerate(slots) if slot["type"] == link.type), None)


# -- widgets


def _widgets(node: Node, schemas: Schemas, strict: bool) -> Iterator[tuple[str, Any]]:
    saved = node.get("widgets_values")
    known = schemas.get(node["type"])
    if isinstance(saved, Mapping):
        yield from ((name, value) for name, value in saved.items() if name not in PREVIEWS | _BUTTONS)
    elif known:
        yield from named_values(known, saved or [])
    else:
        yield from _named_by_the_file(node, saved or [], strict)


def named_values(known: NodeType, saved: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Name the values that the browser has saved in the order of the widgets."""
    values = list(saved)
    for one in known.inputs:
        if not one.widget:
            continue
        value = values.pop(0) if values else default(one)
        yield one.name, value
        if one.control and values and values[0] in _AFTER_RUN:
            values.pop(0)
        for name in one.brings(value):
            if values:
                yield name, values.pop(0)


def default(one: Input) -> Any:
    """The value that the browser gives a widget."""
    if "default" in one.options:
        return one.options["default"]
    if one.choices:
        return one.choices[0]
    return {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False}.get(one.type, "")


def _named_by_the_file(node: Node, saved: Sequence[Any], strict: bool) -> Iterator[tuple[str, Any]]:
    names = [slot["name"] for slot in node.get("inputs") or [] if slot.get("widget")]
    values = list(saved)
    for name in names:
        if values:
            yield name, values.pop(0)
        if re.search("seed", name) and values and values[0] in _AFTER_RUN:
            values.pop(0)
    if strict and values and not names:
        raise ConversionError(
            f"nothing is known of the node type {node['type']!r} (node {node['id']}), so its values have no names. "
            "Give the answer of /object_info of a ComfyUI that has it"
        )


def _promoted(scope: Scope, node: Node) -> dict[str, Any]:
    """Values that the node of a subgraph shows, and holds, for a node inside."""
    return {
        slot["name"]: value
        for slot in node.get("inputs") or []
        for found, value in [_shown_outside(scope, slot)]
        if found
    }


def _is_promoted(scope: Scope, node: Node, name: str) -> bool:
    return name in _promoted(scope, node)


def _shown_outside(scope: Scope, slot: Mapping[str, Any]) -> tuple[bool, Any]:
    link = scope.links.get(slot["link"]) if slot.get("link") is not None else None
    if link is None or link.origin != _SUBGRAPH_INPUT or scope.instance is None:
        return False, None
    shown = [one for one in scope.instance.get("inputs") or [] if one.get("widget")]
    values = scope.instance.get("widgets_values") or []
    name = scope.definition["inputs"][link.slot]["name"]
    for one, value in zip(shown, values, strict=False):
        if one["name"] == name:
            return True, value
    return False, None


# -- Use Everywhere


class _Everywhere:
    """Links that Use Everywhere draws by type, as it has saved them, or else by its rules."""

    def __init__(self, root: Scope, workflow: Mapping[str, Any]) -> None:
        self._root = root
        self._saved = (workflow.get("extra") or {}).get("ue_links")
        self._offers = [] if self._saved else list(self._offered())

    def find(self, scope: Scope, node: Node, index: int) -> Source | None:
        """Return what is broadcast to an input that nothing is linked to."""
        slot = node["inputs"][index]
        if slot.get("link") is not None:
            return None
        if self._saved:
            return self._find_saved(scope, node, index)
        if slot.get("widget"):
            properties = (node.get("properties") or {}).get("ue_properties") or {}
            if not (properties.get("widget_ue_connectable") or {}).get(slot["name"]):
                return None
        for fits, source in self._offers:
            if fits(node, slot):
                return source
        return None

    def _find_saved(self, scope: Scope, node: Node, index: int) -> Source | None:
        if scope is not self._root:
            return None
        for link in self._saved or []:
            if str(link["downstream"]) == str(node["id"]) and link["downstream_slot"] == index:
                return _resolve(
                    scope, Link(str(link["upstream"]), link["upstream_slot"], str(link["type"])), frozenset()
                )
        return None

    def _offered(self) -> Iterator[tuple[Callable[[Node, Mapping[str, Any]], bool], Source]]:
        # a controller with a filter is meant for few inputs, and comes before those that are meant for all
        nodes = [node for node in self._root.nodes.values() if node.get("mode") not in (_MUTED, _BYPASSED)]
        controllers = [node for node in nodes if node["type"] in _EVERYWHERE]
        controllers.sort(key=lambda node: node["type"] != "Anything Everywhere?" and not _filters(node))
        for node in controllers:
            for index, slot in enumerate(node.get("inputs") or []):
                link = self._root.links.get(slot["link"]) if slot.get("link") is not None else None
                source = _resolve_input(self._root, node, index)
                if link and source:
                    yield _fit(node, index, link.type), source
        for node in nodes:
            if node["type"] == "Seed Everywhere":
                yield (lambda _, slot: slot["type"] == "INT" and "seed" in slot["name"]), Source(str(node["id"]), 0)


def _filters(node: Node) -> dict[str, str]:
    values = node.get("widgets_values") or []
    if node["type"] == "Anything Everywhere?":
        found = dict(zip(("title_regex", "input_regex", "group_regex"), values, strict=False))
    else:
        properties = (node.get("properties") or {}).get("ue_properties") or {}
        found = {key: properties.get(key) for key in ("title_regex", "input_regex")}
    return {key: value for key, value in found.items() if isinstance(value, str) and value not in ("", ".*")}


def _fit(controller: Node, index: int, kind: str) -> Callable[[Node, Mapping[str, Any]], bool]:
    filters = _filters(controller)
    prompt = {0: r"(_|\b)pos(itive|_|\b)|^prompt", 1: r"(_|\b)neg(ative|_|\b)"}.get(index, "")

    def fits(node: Node, slot: Mapping[str, Any]) -> bool:
        if slot["type"] != kind or node["id"] == controller["id"]:
            return False
        if controller["type"] == "Prompts Everywhere" and not re.search(prompt, slot["name"]):
            return False
        title = node.get("title") or node["type"]
        return bool(
            re.search(filters.get("title_regex", ""), title) and re.search(filters.get("input_regex", ""), slot["name"])
        )

    return fits


def _is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)
