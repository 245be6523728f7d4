"""Graphs in API format, and the map from a request's fields to the nodes' inputs."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .failure import JobError
from .request import FIELDS

Graph = dict[str, dict[str, Any]]
PREFIX = "filename_prefix"
VIDEOS = (".mp4", ".webm", ".mkv", ".mov", ".gif", ".webp")


class WorkflowError(Exception):
    """A workflow whose map does not fit its graph."""


@dataclass(frozen=True)
class Workflow:
    """A graph, where each field goes (a node's title and an input's name), and the title of the node with the video."""

    name: str
    graph: Graph
    fields: Mapping[str, tuple[str, str] | None]
    output: str

    @property
    def sha256(self) -> str:
        """A name for what the graph is, before it is filled in."""
        return hashlib.sha256(json.dumps(self.graph, sort_keys=True).encode()).hexdigest()

    def problems(self) -> list[str]:
        """Everything in the map that does not fit the graph."""
        found = []
        for name, place in self.fields.items():
            if place is None:
                continue
            title, entry = place
            nodes = self._titled(title)
            if len(nodes) != 1:
                found.append(f"{name}: {len(nodes)} nodes are titled {title!r}, one has to be")
            elif entry not in self.graph[nodes[0]]["inputs"]:
                found.append(f"{name}: node {title!r} has no input {entry!r}")
            elif isinstance(self.graph[nodes[0]]["inputs"][entry], list):
                found.append(f"{name}: input {entry!r} of node {title!r} is a link, which would be cut")
        if len(self._titled(self.output)) != 1:
            found.append(f"output: {len(self._titled(self.output))} nodes are titled {self.output!r}, one has to be")
        return found

    def fill(self, values: Mapping[str, Any], prefix: str) -> Graph:
        """Return the graph with the values in their places. What it saves gets names that begin with ``prefix``."""
        graph = copy.deepcopy(self.graph)
        for name, value in values.items():
            if place := self.fields[name]:
                graph[self._titled(place[0])[0]]["inputs"][place[1]] = value
        for number, node in enumerate(graph.values()):
            if PREFIX in node["inputs"]:
                node["inputs"][PREFIX] = f"{prefix}-{number}"
        return graph

    def values(self, graph: Graph) -> dict[str, Any]:
        """What the fields are in a graph that is filled in."""
        places = {name: place for name, place in self.fields.items() if place}
        return {name: graph[self._titled(title)[0]]["inputs"][entry] for name, (title, entry) in places.items()}

    def video(self, outputs: Mapping[str, Any]) -> dict[str, str]:
        """Return filename, subfolder and type of the video among a graph's outputs."""
        # Core nodes list videos under images, VideoHelperSuite under gifs.
        found = outputs.get(self._titled(self.output)[0]) or {}
        listed = [entry for key in ("images", "gifs", "videos", "video") for entry in found.get(key) or []]
        for entry in listed:
            if isinstance(entry, dict) and str(entry.get("filename")).lower().endswith(VIDEOS):
                return {key: str(entry.get(key) or default) for key, default in _PLACE.items()}
        raise JobError("output", f"the graph came to its end, and node {self.output!r} gave no video")

    def title(self, node: str) -> str:
        """What people call a node."""
        entry = self.graph.get(node) or {}
        return str((entry.get("_meta") or {}).get("title") or entry.get("class_type") or node)

    def models(self, graph: Graph) -> list[str]:
        """Names of the model files that a graph reads."""
        texts = {value for node in graph.values() for value in node["inputs"].values() if isinstance(value, str)}
        return sorted(text for text in texts if text.endswith((".safetensors", ".pth", ".pt", ".ckpt", ".gguf")))

    def _titled(self, title: str) -> list[str]:
        return [node for node in self.graph if self.title(node) == title]


# Callers of the RunPod image send the rate of the model's own frames, too, and there is no video of these alone.
_OWN, _FINAL = "frame_rate", "final_frame_rate"
_PLACE = {"filename": "", "subfolder": "", "type": "output"}


def load(path: Path) -> dict[str, Workflow]:
    """Read the workflows, the default one first, and refuse those whose map does not fit."""
    workflows = {}
    problems = []
    for entry in json.loads(path.read_text(encoding="utf-8")):
        settings = {name: tuple(place) for name, place in entry["settings"].items()}
        fields: dict[str, tuple[str, str] | None] = {name: settings[name] for name in FIELDS if name in settings}
        if _FINAL in fields:
            fields.setdefault(_OWN, None)
        output = settings.get(PREFIX, ("",))[0]
        workflow = workflows[entry["name"]] = Workflow(entry["name"], entry["graph"], fields, output)
        problems += [f"{workflow.name}: {problem}" for problem in workflow.problems()]
    if problems or not workflows:
        raise WorkflowError("; ".join(problems) or f"{path.name} has no workflows")
    return workflows
