"""Node types of packs that are not on a host, replaced by those of ComfyUI or of packs that are."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.browser import browser_node
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import (
    AFTER_RUN,
    default,
    is_api_format,
    named_values,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.schemas import NodeType, Schemas

TABLE = Path(__file__).resolve().parents[3] / "files" / "workflows" / "replacements.json"
NOTE = "Replaced node types"
_SUBGRAPH_INPUT, _SUBGRAPH_OUTPUT = -10, -20
_CONVERTED: dict[str, Callable[[Any], Any]] = {
    "int": lambda value: int(float(value)),
    "float": float,
    "rgb": lambda value: int(str(value).lstrip("#")[:6], 16),
}


@dataclass(frozen=True)
class Replacement:
    """A node whose type was replaced: by which types, and what may be different. Empty where it is the same."""

    where: str
    old: str
    new: tuple[str, ...]
    changes: str

    def __str__(self) -> str:
        """Return a line for people."""
        line = f"{self.where}: {self.old} → {' + '.join(self.new) or 'nothing'}"
        return f"{line}. {self.changes}" if self.changes else line


@dataclass(frozen=True)
class _Link:
    """An output of a node; ``taken`` is the input of the replaced node that was linked to it."""

    node: Any
    slot: int
    taken: str = ""


@dataclass(frozen=True)
class _Old:
    id: Any
    kind: str
    title: str
    values: Mapping[str, Any]
    links: Mapping[str, _Link | None]
    used: Collection[int]


_Made = dict[str, tuple[Any, NodeType, dict[str, Any]]]
"""Of each node that is new, by its name in the table: id, type, and inputs, which are values or links."""


@cache
def table(file: Path = TABLE) -> dict[str, dict[str, Any]]:
    """Return what is replaced, by node type."""
    entries = json.loads(file.read_text(encoding="utf-8"))
    return {kind: entry for entry in entries for kind in entry["types"]}


def replace(
    workflow: Mapping[str, Any], schemas: Schemas, here: Collection[str]
) -> tuple[dict[str, Any], list[Replacement]]:
    """Replace the node types of a workflow of either format that are not ``here``, where the table knows how.

    What cannot be replaced stays, and so does what is no workflow. A file for the browser gets a note.
    """
    try:
        return _with_others(workflow, schemas, here)
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError):
        return dict(workflow), []  # a check says what is wrong with it


def _with_others(
    workflow: Mapping[str, Any], schemas: Schemas, here: Collection[str]
) -> tuple[dict[str, Any], list[Replacement]]:
    changed = copy.deepcopy(dict(workflow))
    known = {kind: schemas[kind] for kind in here if kind in schemas}
    if is_api_format(changed):
        scopes: list[_Graph] = [_ApiGraph(changed)]
    else:
        inner = (changed.get("definitions") or {}).get("subgraphs") or []
        scopes = [_BrowserGraph(graph, changed) for graph in [changed, *inner]]
    found: list[Replacement] = []
    for scope in scopes:
        found += scope.fitted(known)
    while more := [one for scope in scopes for one in _replaced(scope, known, here)]:
        found += more
    if found and not is_api_format(changed):
        _add_note(changed, found)
    return changed, found


def _replaced(scope: _Graph, known: Schemas, here: Collection[str]) -> Iterator[Replacement]:
    for node in list(scope.nodes()):
        entry = table().get(node.kind)
        if entry is None or node.kind in here:
            continue
        for way in entry["ways"]:
            if (names := _fitting(way, node, known)) is None:
                continue
            ids = {name: scope.new_id() for name in names[:-1]} | dict.fromkeys(names[-1:], node.id)
            made: _Made = {}
            for name in names:
                kind, *_unused = given = way["nodes"][name]
                inputs = {key: _source(one, node, ids, scope) for key, one in given[1].items()}
                made[name] = ids[name], known[kind], {key: one for key, one in inputs.items() if one is not None}
            outputs = [
                None if isinstance(one, list) and one[0] not in ids else _source(one, node, ids, scope)
                for one in way["outputs"]
            ]
            scope.put(node, made, outputs)
            lost = sorted(set(node.links) - set(_taken_from(way, names)))
            changes = [way["changes"]] if way.get("changes") else []
            changes += [f"What was linked to its {', '.join(lost)} has no place."] if lost else []
            yield Replacement(
                f"node {scope.prefix}{node.id} ({node.title})",
                node.kind,
                tuple(known_type.name for _unused, known_type, _unused2 in made.values()),
                " ".join(changes),
            )
            break


def _fitting(way: Mapping[str, Any], node: _Old, known: Schemas) -> list[str] | None:
    """The new nodes that are needed for what is used of the old one, or None where this way does not fit."""
    nodes, outputs = way["nodes"], way["outputs"]
    if any(slot >= len(outputs) or outputs[slot] is None for slot in node.used):
        return None
    if not set(way.get("linked", ())) <= set(node.links):
        return None
    if any(node.values.get(name) not in wanted or name in node.links for name, wanted in way.get("when", {}).items()):
        return None
    left = [outputs[slot][0] for slot in node.used if isinstance(outputs[slot], list)] or list(nodes)
    needed: set[str] = set()
    while left:
        if (name := left.pop()) not in needed:
            needed.add(name)
            left += [one[0] for one in nodes[name][1].values() if isinstance(one, list)]
    if any(nodes[name][0] not in known for name in needed):
        return None
    return [name for name in nodes if name in needed]


def _taken_from(way: Mapping[str, Any], names: Iterable[str]) -> Iterator[str]:
    for one in [*way["outputs"], *(source for name in names for source in way["nodes"][name][1].values())]:
        if isinstance(one, Mapping):
            yield from [one["from"]] if isinstance(one["from"], str) else one["from"]
    yield from way.get("unused", ())


def _source(one: Any, node: _Old, ids: Mapping[str, Any], scope: _Graph) -> Any:
    """What the table says of an input: a value, an output of a new node, or what the old node was given."""
    if isinstance(one, list):
        return _Link(ids[one[0]], one[1])
    if not isinstance(one, Mapping):
        return one
    name = one["from"]
    if isinstance(name, list):  # red, green and blue
        red, green, blue = (int(node.values.get(each) or 0) for each in name)
        return red << 16 | green << 8 | blue
    if name in node.links and "of" not in one:
        return node.links[name] or _Link(None, 0, name)
    value = scope.value_behind(node, name, one["of"]) if "of" in one else node.values.get(name)
    value = one.get("map", {}).get(str(value), one.get("else", value))
    try:
        return _CONVERTED[one["as"]](value) if "as" in one else value
    except (TypeError, ValueError, OverflowError):
        return value  # which the check of the inputs then names


class _Graph:
    """A graph in which nodes are replaced."""

    prefix = ""

    def nodes(self) -> Iterator[_Old]:
        raise NotImplementedError

    def new_id(self) -> Any:
        raise NotImplementedError

    def put(self, old: _Old, made: _Made, outputs: list[Any]) -> None:
        raise NotImplementedError

    def fitted(self, known: Schemas) -> Iterator[Replacement]:
        """Give numbers their defaults where an older pack has saved a text in their place, and say so."""
        raise NotImplementedError

    def value_behind(self, old: _Old, name: str, value: str) -> Any:
        """A value of the node that an input is linked to, as it was before anything was replaced."""
        raise NotImplementedError


def _values(entry: Mapping[str, Any] | None, saved: Any) -> dict[str, Any]:
    if isinstance(saved, Mapping):
        return dict(saved)
    names = entry["values"] if entry else []
    return {name: value for name, value in zip(names, saved or [], strict=False) if name}


class _ApiGraph(_Graph):
    def __init__(self, api: dict[str, Any]) -> None:
        self._api = api
        self._before = copy.deepcopy(api)
        self._next = max((int(id_) for id_ in api if id_.isdecimal()), default=0)

    def fitted(self, known: Schemas) -> Iterator[Replacement]:
        del known  # values have names in this format
        yield from ()

    def nodes(self) -> Iterator[_Old]:
        used: dict[str, set[int]] = {}
        for node in self._api.values():
            for value in node["inputs"].values():
                if _is_link(value):
                    used.setdefault(value[0], set()).add(value[1])
        for id_, node in self._api.items():
            links: dict[str, _Link | None] = {
                name: _Link(value[0], value[1], name) for name, value in node["inputs"].items() if _is_link(value)
            }
            values = {name: value for name, value in node["inputs"].items() if name not in links}
            title = (node.get("_meta") or {}).get("title") or node["class_type"]
            yield _Old(id_, str(node["class_type"]), title, values, links, used.get(id_, ()))

    def new_id(self) -> str:
        self._next += 1
        return str(self._next)

    def value_behind(self, old: _Old, name: str, value: str) -> Any:
        origin = self._before[old.id]["inputs"].get(name)
        return self._before.get(origin[0], {}).get("inputs", {}).get(value) if _is_link(origin) else None

    def put(self, old: _Old, made: _Made, outputs: list[Any]) -> None:
        del self._api[old.id]
        for id_, known, inputs in made.values():
            given = {name: [one.node, one.slot] if isinstance(one, _Link) else one for name, one in inputs.items()}
            title = old.title if old.title != old.kind else known.name
            self._api[id_] = {"inputs": given, "class_type": known.name, "_meta": {"title": title}}
        new = {id_ for id_, _unused, _unused2 in made.values()}
        for id_, node in self._api.items():
            for name, value in list(node["inputs"].items()):
                if id_ not in new and _is_link(value) and value[0] == old.id:
                    now = outputs[value[1]]
                    if isinstance(now, _Link):
                        node["inputs"][name] = [now.node, now.slot]
                    else:
                        del node["inputs"][name]


def _is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


_FIELDS = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


class _BrowserGraph(_Graph):
    def __init__(self, graph: dict[str, Any], root: dict[str, Any]) -> None:
        self._graph, self._root = graph, root
        self.prefix = "" if graph is root else f"of the subgraph {graph.get('name')}, "
        self._before = {node["id"]: copy.deepcopy(node) for node in graph["nodes"]}
        self._links = graph.setdefault("links", [])
        self._next = max([_number(id_) for id_ in self._before] + [_number(graph.get("last_node_id"))])
        self._next_link = max(
            [_number(_get(link, "id")) for link in self._links if link] + [_number(graph.get("last_link_id"))]
        )

    def fitted(self, known: Schemas) -> Iterator[Replacement]:
        for node in self._graph["nodes"]:
            kind, saved = known.get(node["type"]), node.get("widgets_values")
            if kind is None or not isinstance(saved, list) or any(isinstance(value, Mapping) for value in saved):
                continue
            values = dict(named_values(kind, saved))
            wrong = {
                one.name: default(one)
                for one in kind.given(values)
                if one.widget and one.type in ("INT", "FLOAT") and _is_text(values.get(one.name))
            }
            if not wrong:
                continue
            after = next((value for value in saved if value in AFTER_RUN), "fixed")
            new = browser_node(node["id"], kind, {**values, **wrong})["widgets_values"]
            node["widgets_values"] = [after if value in AFTER_RUN else value for value in new]
            yield Replacement(
                f"node {self.prefix}{node['id']} ({node.get('title') or node['type']})",
                kind.name,
                (kind.name,),
                f"It was saved by another version of its pack, so {', '.join(wrong)} got the default.",
            )

    def nodes(self) -> Iterator[_Old]:
        for node in list(self._graph["nodes"]):
            links: dict[str, _Link | None] = {}
            for index, slot in enumerate(node.get("inputs") or []):
                link = self._link(slot.get("link"))
                if link is not None:
                    links[slot["name"]] = _Link(_get(link, "origin_id"), _get(link, "origin_slot"), slot["name"])
                elif any(
                    one["downstream"] == node["id"] and one["downstream_slot"] == index for one in self._everywhere()
                ):
                    links[slot["name"]] = None
            used = {index for index, slot in enumerate(node.get("outputs") or []) if slot.get("links")}
            used |= {one["upstream_slot"] for one in self._everywhere() if one["upstream"] == node["id"]}
            values = _values(table().get(node["type"]), node.get("widgets_values"))
            yield _Old(node["id"], str(node["type"]), node.get("title") or node["type"], values, links, used)

    def new_id(self) -> int:
        self._next += 1
        for place, key in ((self._graph, "last_node_id"), (self._graph.get("state") or {}, "lastNodeId")):
            if key in place:
                place[key] = self._next
        return self._next

    def value_behind(self, old: _Old, name: str, value: str) -> Any:
        link = old.links.get(name)
        node = self._before.get(link.node) if link else None
        return _values(table().get(node["type"]), node.get("widgets_values")).get(value) if node else None

    def put(self, old: _Old, made: _Made, outputs: list[Any]) -> None:
        raw = self._node(old.id)
        self._graph["nodes"].remove(raw)
        free = {
            slot["name"]: slot["link"] for slot in raw.get("inputs") or [] if self._link(slot.get("link")) is not None
        }
        everywhere: list[tuple[str, Any, int]] = []
        for number, (id_, known, inputs) in enumerate(made.values(), 1):
            node = browser_node(
                id_,
                known,
                {name: one for name, one in inputs.items() if not isinstance(one, _Link)},
                [name for name, one in inputs.items() if isinstance(one, _Link)],
            )
            x, y = _point(raw.get("pos"))
            node |= {"pos": [x - 40 * (len(made) - number), y - 60 * (len(made) - number)], "mode": raw.get("mode", 0)}
            if raw.get("title") and raw["title"] != raw["type"] and number == len(made):
                node["title"] = raw["title"]
            if number < len(made):
                node["flags"] = {"collapsed": True}
            self._graph["nodes"].append(node)
            for index, slot in enumerate(node["inputs"]):
                one = inputs.get(slot["name"])
                if not isinstance(one, _Link):
                    continue
                if one.node is None:
                    everywhere.append((one.taken, id_, index))
                elif one.taken in free:
                    link = self._link(free.pop(one.taken))
                    _set(link, "target_id", id_)
                    _set(link, "target_slot", index)
                    slot["link"] = _get(link, "id")
                else:
                    slot["link"] = self._new_link(one, id_, index, slot["type"])
        for number in free.values():
            self._unlink(number)
        for index, slot in enumerate(raw.get("outputs") or []):
            for number in list(slot.get("links") or []):
                self._lead(number, outputs[index], made)
        self._lead_everywhere(old, raw, everywhere, outputs)

    # -- links

    def _node(self, id_: Any) -> Any:
        return next((node for node in self._graph["nodes"] if node["id"] == id_), None)

    def _link(self, number: Any) -> Any:
        return (
            next((link for link in self._links if link and _get(link, "id") == number), None)
            if number is not None
            else None
        )

    def _numbers(self, node: Any, slot: int) -> list[Any]:
        """The list in which an output, or an input of a subgraph from inside, keeps the numbers of its links."""
        if node == _SUBGRAPH_INPUT:
            return self._graph["inputs"][slot].setdefault("linkIds", [])  # type: ignore[no-any-return]
        output = self._node(node)["outputs"][slot]
        output["links"] = output.get("links") or []
        return output["links"]  # type: ignore[no-any-return]

    def _new_link(self, origin: _Link, target: Any, index: int, kind: str) -> int:
        self._next_link += 1
        for place, key in ((self._graph, "last_link_id"), (self._graph.get("state") or {}, "lastLinkId")):
            if key in place:
                place[key] = self._next_link
        fields = (self._next_link, origin.node, origin.slot, target, index, kind)
        plain = self._graph is self._root and not any(isinstance(link, Mapping) for link in self._links)
        self._links.append(list(fields) if plain else dict(zip(_FIELDS, fields, strict=True)))
        self._numbers(origin.node, origin.slot).append(self._next_link)
        return self._next_link

    def _unlink(self, number: Any) -> None:
        link = self._link(number)
        if link is None:
            return
        self._links.remove(link)
        origin = _get(link, "origin_id")
        if origin == _SUBGRAPH_INPUT or self._node(origin) is not None:
            numbers = self._numbers(origin, _get(link, "origin_slot"))
            numbers[:] = [one for one in numbers if one != number]
        target = _get(link, "target_id")
        if target == _SUBGRAPH_OUTPUT:
            ends = self._graph["outputs"][_get(link, "target_slot")].get("linkIds") or []
            ends[:] = [one for one in ends if one != number]
        elif (node := self._node(target)) is not None:
            for slot in node.get("inputs") or []:
                if slot.get("link") == number:
                    slot["link"] = None

    def _lead(self, number: Any, now: Any, made: _Made) -> None:
        """Lead a link from the replaced node to what takes its place."""
        link = self._link(number)
        if link is None:
            return
        if not isinstance(now, _Link) or now.node is None:
            self._unlink(number)
            return
        _set(link, "origin_id", now.node)
        _set(link, "origin_slot", now.slot)
        for id_, known, _unused in made.values():
            if id_ == now.node:
                _set(link, "type", known.outputs[now.slot][0])
        self._numbers(now.node, now.slot).append(number)

    # -- what Use Everywhere has drawn

    def _everywhere(self) -> list[dict[str, Any]]:
        if self._graph is not self._root:
            return []
        return (self._root.get("extra") or {}).get("ue_links") or []

    def _lead_everywhere(
        self, old: _Old, raw: Mapping[str, Any], places: list[tuple[str, Any, int]], outputs: list[Any]
    ) -> None:
        names = [slot["name"] for slot in raw.get("inputs") or []]
        kept: list[dict[str, Any]] = []
        for one in self._everywhere():
            if one["downstream"] == old.id:
                name = names[one["downstream_slot"]] if one["downstream_slot"] < len(names) else ""
                kept += [
                    {**one, "downstream": id_, "downstream_slot": index}
                    for taken, id_, index in places
                    if taken == name
                ]
            elif one["upstream"] == old.id:
                now = outputs[one["upstream_slot"]]
                if isinstance(now, _Link) and now.node is not None:
                    kept.append({**one, "upstream": now.node, "upstream_slot": now.slot})
            else:
                kept.append(one)
        self._everywhere()[:] = kept


def _is_text(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return isinstance(value, str)
    return False


def _number(value: object) -> int:
    text = str(value)
    return int(text) if text.isdecimal() else 0


def _get(link: Any, key: str) -> Any:
    return link[key] if isinstance(link, Mapping) else link[_FIELDS.index(key)]


def _set(link: Any, key: str, value: Any) -> None:
    link[key if isinstance(link, Mapping) else _FIELDS.index(key)] = value


def _point(place: Any) -> tuple[float, float]:
    if isinstance(place, Mapping):  # as old browsers have saved it
        place = [place.get("0"), place.get("1")]
    if isinstance(place, list) and len(place) > 1 and all(isinstance(one, int | float) for one in place[:2]):
        return place[0], place[1]
    return 0, 0


def _add_note(workflow: dict[str, Any], found: Iterable[Replacement]) -> None:
    places = [_point(node.get("pos")) for node in workflow["nodes"]]
    id_ = 1 + max([_number(node["id"]) for node in workflow["nodes"]] + [_number(workflow.get("last_node_id"))])
    lines = dict.fromkeys(f"- {'**' if one.changes else ''}{one}{'**' if one.changes else ''}" for one in found)
    text = (
        "This host does not have the packs of these nodes, so others took their places. "
        "What is printed bold may change the picture.\n\n" + "\n".join(lines)
    )
    workflow["nodes"].append(
        {
            "id": id_,
            "type": "MarkdownNote",
            "pos": [min((x for x, _unused in places), default=0) - 520, min((y for _unused, y in places), default=0)],
            "size": [480, 120 + 40 * len(lines)],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "title": NOTE,
            "properties": {},
            "widgets_values": [text],
        }
    )
    if "last_node_id" in workflow:
        workflow["last_node_id"] = id_
