"""Graphs in API format, and where in them a request's fields go."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .failure import JobError
from .request import FIELDS

Graph = dict[str, dict[str, Any]]
PREFIX = "filename_prefix"
_VIDEOS = (".mp4", ".webm", ".mkv", ".mov", ".gif", ".webp")
_MODELS = (".safetensors", ".pth", ".pt", ".ckpt", ".gguf")


class WorkflowError(Exception):
    """A workflow whose map does not fit its graph."""


@dataclass(frozen=True)
class Workflow:
    """A graph, the node and the input that each field goes to, and the node that saves the video."""

    name: str
    graph: Graph
    fields: Mapping[str, tuple[str, str] | None]
    output: str

    def fill(self, values: Mapping[str, Any], prefix: str) -> Graph:
        """Return the graph with the values in their places. What it saves gets names that begin with ``prefix``."""
        graph = copy.deepcopy(self.graph)
        for name, value in values.items():
            if place := self.fields[name]:
                graph[place[0]]["inputs"][place[1]] = value
        for number, node in enumerate(graph.values()):
            if PREFIX in node["inputs"]:
                node["inputs"][PREFIX] = f"{prefix}-{number}"
        return graph

    def values(self, graph: Graph) -> dict[str, Any]:
        """What the fields are in a graph that is filled in."""
        return {name: graph[place[0]]["inputs"][place[1]] for name, place in self.fields.items() if place}

    def video(self, outputs: Mapping[str, Any]) -> dict[str, str]:
        """Return filename, subfolder and type of the video among a graph's outputs."""
        # Core nodes list videos under images, VideoHelperSuite under gifs.
        for listed in (outputs.get(self.output) or {}).values():
            for entry in listed if isinstance(listed, list) else []:
                if isinstance(entry, dict) and str(entry.get("filename")).lower().endswith(_VIDEOS):
                    place = {"subfolder": "", "type": "output", **entry}
                    return {key: str(place[key]) for key in ("filename", "subfolder", "type")}
        raise JobError("output", f"the graph came to its end, and node {self.title(self.output)!r} gave no video")

    def title(self, node: str) -> str:
        """What people call a node."""
        return _title(self.graph, node)


def _title(graph: Graph, node: str) -> str:
    entry = graph.get(node) or {}
    return str((entry.get("_meta") or {}).get("title") or entry.get("class_type") or node)


def models(graph: Graph) -> list[str]:
    """Names of the model files that a graph reads."""
    texts = {value for node in graph.values() for value in node["inputs"].values() if isinstance(value, str)}
    return sorted(text for text in texts if text.endswith(_MODELS))


def load(path: Path) -> dict[str, Workflow]:
    """Read the workflows, the default one first, and refuse those whose map does not fit."""
    workflows = {}
    problems = []
    for entry in json.loads(path.read_text(encoding="utf-8")):
        name, graph = entry["name"], entry["graph"]
        places: dict[str, tuple[str, str] | None] = {}
        for field, (title, key) in {PREFIX: ("", PREFIX), **entry["settings"]}.items():
            nodes = [node for node in graph if _title(graph, node) == title]
            found = graph[nodes[0]]["inputs"].get(key) if nodes else None
            if field != PREFIX and field not in FIELDS:
                continue
            if len(nodes) != 1:
                problems.append(f"{name}: {field}: {len(nodes)} nodes are titled {title!r}, one has to be")
            elif found is None:
                problems.append(f"{name}: {field}: node {title!r} has no input {key!r}")
            elif isinstance(found, list):
                problems.append(f"{name}: {field}: input {key!r} of node {title!r} is a link, which would be cut")
            places[field] = (nodes[0], key) if nodes else None
        output = (places.pop(PREFIX) or ("",))[0]
        if "final_frame_rate" in places:
            # Callers of the RunPod image send the rate of the model's own frames, too; no video has these alone.
            places.setdefault("frame_rate", None)
        workflows[name] = Workflow(name, graph, {key: places[key] for key in FIELDS if key in places}, output)
    if problems or not workflows:
        raise WorkflowError("; ".join(problems) or f"{path.name} has no workflows")
    return workflows
