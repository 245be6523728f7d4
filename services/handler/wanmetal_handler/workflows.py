"""Graphs in API format: those with a map of where a request's values go, and those that a caller brings."""

from __future__ import annotations

import copy
import fnmatch
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .failure import JobError
from .inputs import MEDIA, OLD_NAMES, Input, RequestError, check, derived

Graph = dict[str, dict[str, Any]]
PREFIX = "filename_prefix"
_KINDS = {
    "image": ("png", "jpg", "jpeg", "webp"),
    "video": ("mp4", "webm", "mkv", "mov", "gif"),
    "audio": ("wav", "mp3", "flac", "ogg", "m4a", "opus"),
}
_MODELS = (".safetensors", ".pth", ".pt", ".ckpt", ".gguf")
_OUTSIDE = re.compile(
    r"\s*(/|~|[A-Za-z]:[\\/]|file:|handler/)|(.*[\\/])?\.\.([\\/]|\s*$)|.*\[(output|temp)\]\s*$", re.I | re.S
)
# Inputs that hold words, such as prompts, by their names; those that name files; and nodes that pass words on.
_WORDS = re.compile(
    r"(?!.*(file|path|folder|dir)).*(text|prompt|caption|value|string|tags|lyrics|clip_|t5|positive|negative|instruct|"
    r"question|message|description|title|note)",
    re.IGNORECASE,
)
_NAMES = re.compile(r".*(file|path|folder|dir|_name$)|image|mask|video|audio", re.IGNORECASE)
_PASSING = re.compile(r"(?!.*encode).*(string|text|primitive|concat|join|format|switch|reroute)", re.IGNORECASE)
_MOST_NODES, _MOST_FILES = 2000, 50


class WorkflowError(Exception):
    """A workflow whose map does not fit its graph."""


@dataclass(frozen=True)
class Media:
    """What a request brings: its kind and where it is or what it holds."""

    kind: str
    text: str


@dataclass(frozen=True)
class Task:
    """What one request asks for: a graph, and which values in it stand for files that it brings."""

    graph: Graph
    media: Mapping[str, Media]
    places: Mapping[str, Collection[tuple[str, str]]]
    workflow: Workflow
    api_key: str = ""
    replaced: tuple[str, ...] = ()
    """What is said of node types that others took the place of."""

    def filled(self, files: Mapping[str, str], prefix: str) -> Graph:
        """Return the graph with the names of its files. What it saves gets names that begin with ``prefix``."""
        graph = copy.deepcopy(self.graph)
        for name, places in self.places.items():
            for node, key in places:
                graph[node]["inputs"][key] = files[name]
        for number, saving in enumerate(graph.values()):
            if isinstance(saving["inputs"].get(PREFIX), str):
                saving["inputs"][PREFIX] = f"{prefix}-{number}"
        return graph

    def original(self, filename: str, prefix: str) -> str:
        """Return the name that a file would have without the handler's prefix."""
        found = re.fullmatch(re.escape(prefix.rpartition("/")[2]) + r"-(\d+)(\D.*)", filename)
        if not found:
            return filename
        saved = str(list(self.graph.values())[int(found[1])]["inputs"][PREFIX])
        return f"{saved.replace(chr(92), '/').rpartition('/')[2]}{found[2]}"


@dataclass(frozen=True)
class Workflow:
    """A graph, the node and the input that each value goes to, and the node that saves the video."""

    name: str
    graph: Graph
    fields: Mapping[str, tuple[str, str] | None]
    output: str
    inputs: Mapping[str, Input] = field(default_factory=dict)

    def task(self, given: object) -> Task:
        """Check a request, and return what it asks for."""
        values = check(given, self.inputs)
        graph = copy.deepcopy(self.graph)
        for name, value in values.items():
            place = self.fields[name]
            if place and self.inputs[name].kind not in MEDIA:
                graph[place[0]]["inputs"][place[1]] = value
        media = {name: Media(one.kind, values[name]) for name, one in self.inputs.items() if one.kind in MEDIA}
        return Task(graph, media, {name: [place] for name in media if (place := self.fields[name])}, self)

    def values(self, graph: Graph) -> dict[str, Any]:
        """What the fields are in a graph that is filled in."""
        return {name: graph[place[0]]["inputs"][place[1]] for name, place in self.fields.items() if place}

    def described(self) -> dict[str, Any]:
        """The inputs with their ranges and defaults, and an example."""
        defaults = {**self.values(self.graph), "seed": None, "positive_prompt": "", "positive_prompt_2": ""}
        inputs = {name: one.schema(defaults.get(name)) for name, one in self.inputs.items()}
        needed = {name: one.kind for name, one in self.inputs.items() if one.kind in MEDIA}
        example = {name: f"https://example.com/{name}.{_KINDS.get(kind, ('png',))[0]}" for name, kind in needed.items()}
        example |= {name: "a fox runs into the forest" for name in inputs if name.startswith("positive_prompt")}
        return {
            "inputs": {"type": "object", "properties": inputs, "required": list(needed), "additionalProperties": False},
            "example": {"input": {"workflow": self.name, **example}},
        }

    def title(self, node: str) -> str:
        """What people call a node."""
        return _title(self.graph, node)


def _title(graph: Graph, node: str) -> str:
    entry = graph.get(node) or {}
    return str((entry.get("_meta") or {}).get("title") or entry.get("class_type") or node)


def kind_of(filename: str) -> str:
    """Return the kind of a file by its name, or ``file``."""
    suffix = filename.rpartition(".")[2].lower()
    return next((kind for kind, suffixes in _KINDS.items() if suffix in suffixes), "file")


def listed(outputs: Mapping[str, Any], node: str = "") -> list[dict[str, str]]:
    """Return filename, subfolder and type of the files that a graph, or one node of it, has saved, each once."""
    # Core nodes list videos under images, VideoHelperSuite under gifs.
    found = []
    for output in [outputs.get(node)] if node else outputs.values():
        for entries in (output or {}).values():
            for entry in entries if isinstance(entries, list) else []:
                if isinstance(entry, dict) and isinstance(entry.get("filename"), str):
                    place = {"subfolder": "", "type": "output", **entry}
                    found.append({key: str(place[key]) for key in ("filename", "subfolder", "type")})
    return [place for number, place in enumerate(found) if place not in found[:number]]


def models(graph: Graph) -> list[str]:
    """Names of the model files that a graph reads."""
    texts = {value for node in graph.values() for value in node["inputs"].values() if isinstance(value, str)}
    return sorted(text for text in texts if text.endswith(_MODELS))


def digest(graph: Graph) -> str:
    """Return the hash of a graph."""
    return hashlib.sha256(json.dumps(graph, sort_keys=True).encode()).hexdigest()


def load(path: Path) -> dict[str, Workflow]:
    """Read the workflows, the default one first, and refuse those whose map does not fit."""
    workflows = {}
    problems = []
    for entry in json.loads(path.read_text(encoding="utf-8")):
        name, graph = entry["name"], entry["graph"]
        places: dict[str, tuple[str, str] | None] = {}
        inputs: dict[str, Input] = {}
        for said, (title, key) in {PREFIX: ("", PREFIX), **entry["settings"]}.items():
            setting = OLD_NAMES.get(said, said)
            nodes = [node for node in graph if _title(graph, node) == title]
            found = graph[nodes[0]]["inputs"].get(key) if nodes else None
            if len(nodes) != 1:
                problems.append(f"{name}: {setting}: {len(nodes)} nodes are titled {title!r}, one has to be")
            elif found is None:
                problems.append(f"{name}: {setting}: node {title!r} has no input {key!r}")
            elif isinstance(found, list):
                problems.append(f"{name}: {setting}: input {key!r} of node {title!r} is a link, which would be cut")
            else:
                inputs[setting] = derived(setting, graph[nodes[0]]["class_type"], key, found)
            places[setting] = (nodes[0], key) if nodes else None
        output = (places.pop(PREFIX) or ("",))[0]
        inputs.pop(PREFIX, None)
        if "final_frame_rate" in inputs:
            # Callers of the RunPod image send the rate of the model's own frames, too; no video has these alone.
            places.setdefault("frame_rate", None)
            inputs.setdefault("frame_rate", derived("frame_rate", "", "", 0))
        workflows[name] = Workflow(name, graph, places, output, inputs)
    if problems or not workflows:
        raise WorkflowError("; ".join(problems) or f"{path.name} has no workflows")
    return workflows


def _files(inner: str) -> dict[str, Any]:
    text = {"type": "string", "minLength": 1}
    entry: dict[str, Any] = {"type": "object", "properties": {"name": {**text, "maxLength": 200}, inner: text}}
    entry |= {"required": ["name", inner], "additionalProperties": False}
    return {"type": ["array", "null"], "items": entry, "maxItems": _MOST_FILES}


_NODE = {
    "type": "object",
    "properties": {"class_type": {"type": "string"}, "inputs": {"type": "object"}, "_meta": {"type": "object"}},
    "required": ["class_type", "inputs"],
}
BROUGHT: dict[str, Any] = {
    "title": "a graph of the caller's own",
    "type": "object",
    "properties": {
        "workflow": {
            "anyOf": [
                {
                    "description": "In API format",
                    "type": "object",
                    "additionalProperties": _NODE,
                    "minProperties": 1,
                    "maxProperties": _MOST_NODES,
                },
                {
                    "description": "As the browser saves it",
                    "type": "object",
                    "properties": {"nodes": {"type": "array"}},
                    "required": ["nodes"],
                },
            ]
        },
        "images": _files("image"),
        "files": _files("file"),
        "comfy_org_api_key": {"type": ["string", "null"]},
    },
    "required": ["workflow"],
    "additionalProperties": False,
}
"""What ``brought`` takes, as JSON schema."""


def files_of(given: Mapping[str, Any]) -> tuple[dict[str, Media], list[tuple[Any, Any, str]]]:
    """The files beside a graph by their names, and what is wrong with what stands there."""
    names = BROUGHT["properties"]
    found: list[tuple[Any, Any, str]] = [
        (name, given[name], f"beside a graph: {', '.join(names)}") for name in given.keys() - names
    ]
    if not isinstance(given.get("comfy_org_api_key") or "", str):
        found.append(("comfy_org_api_key", None, "a text"))
    media: dict[str, Media] = {}
    for field_, inner in (("images", "image"), ("files", "file")):
        entries = given.get(field_)
        if entries is not None and not isinstance(entries, list):
            found.append((field_, entries, f"a list of objects with the texts name and {inner}"))
            continue
        for number, entry in enumerate(entries or []):
            at, entry = f"{field_}[{number}]", entry if isinstance(entry, Mapping) else {}
            name, text = entry.get("name"), entry.get(inner)
            if not isinstance(name, str) or not isinstance(text, str) or not text or entry.keys() - {"name", inner}:
                found.append((at, None, f"an object with the texts name and {inner}"))
            elif (
                name in media or not 0 < len(name) <= 200 or (_OUTSIDE.match(name) and not name.startswith("handler/"))
            ):
                found.append((f"{at}.name", name, "a name of its own, inside of ComfyUI's folder for input"))
            else:
                kind = kind_of(name)
                media[name] = Media("image" if kind == "file" and field_ == "images" else kind, text)
                if media[name].kind == "file":
                    found.append(
                        (f"{at}.name", name, f"one that ends in .{', .'.join(s for k in _KINDS.values() for s in k)}")
                    )
    if len(media) > _MOST_FILES:
        found.append(("files", len(media), f"at most {_MOST_FILES} files"))
    return media, found


def brought(given: Mapping[str, Any], allowed: Collection[str]) -> Task:
    """Check a graph of a caller's own with its files, as worker-comfyui takes them."""
    media, found = files_of(given)
    graph = given["workflow"]
    places: dict[str, list[tuple[str, str]]] = {name: [] for name in media}
    if not isinstance(graph, dict) or not 0 < len(graph) <= _MOST_NODES:
        raise RequestError(*found, ("workflow", graph, f"a graph in API format of at most {_MOST_NODES} nodes"))
    words = _words(graph)
    for id_, node in graph.items():
        if (
            not isinstance(node, dict)
            or not isinstance(node.get("class_type"), str)
            or not isinstance(node.get("inputs"), dict)
        ):
            found.append((f"workflow.{id_}", node, "a node with class_type and inputs: a graph in API format"))
            continue
        kind = node["class_type"]
        if allowed and not any(fnmatch.fnmatchcase(kind, pattern) for pattern in allowed):
            found.append((f"workflow.{id_}.class_type", kind, "a node type out of handler_raw_nodes"))
        if not isinstance(node.get("_meta", {}), dict):
            found.append((f"workflow.{id_}._meta", node["_meta"], "an object"))
        _texts([one for key, one in node.items() if key != "inputs"])  # how deep they are
        for name, value in _texts(node["inputs"]):
            if value in media and node["inputs"].get(name) == value:
                places[value].append((id_, name))
            elif name != PREFIX and _OUTSIDE.match(value[:4096]) and (id_, name) not in words:
                found.append((f"workflow.{id_}.inputs.{name}", value, "a name inside of ComfyUI's own folders"))
    if found:
        raise RequestError(*found[:50])
    return Task(graph, media, places, Workflow("", graph, {}, ""), given.get("comfy_org_api_key") or "")


def _words(graph: Mapping[str, Any]) -> set[tuple[str, str]]:
    """The inputs that hold words, which may look as they like, unless they are linked to one that names a file."""
    given = {
        id_: node["inputs"]
        for id_, node in graph.items()
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    names = [value for inputs in given.values() for name, value in inputs.items() if _NAMES.match(name)]
    fed: set[str] = set()
    while names:
        match names.pop():
            case [str(id_), int()] if (
                id_ in given and id_ not in fed and _PASSING.match(str(graph[id_].get("class_type")))
            ):
                fed.add(id_)
                names += given[id_].values()
    return {(id_, name) for id_, inputs in given.items() for name in inputs if id_ not in fed and _WORDS.match(name)}


def _texts(value: Any, name: str = "", depth: int = 0) -> list[tuple[str, str]]:
    """All texts in a value, with the name of the input that each stands in."""
    if depth > 20:
        raise JobError("request", "the graph is nested too deeply")
    if isinstance(value, str):
        return [(name, value)]
    inner = (
        value.items() if isinstance(value, dict) else ((name, one) for one in value) if isinstance(value, list) else ()
    )
    return [found for key, one in inner for found in _texts(one, name or str(key), depth + 1)]
