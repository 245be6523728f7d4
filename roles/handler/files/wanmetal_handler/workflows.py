"""Graphs in API format, and the map from a request's fields to the nodes' inputs."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .failure import JobError
from .request import FIELDS, IMAGE

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
    fields: Mapping[str, list[list[str]]]
    output: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """A name for what the graph is, before it is filled in."""
        return hashlib.sha256(json.dumps(self.graph, sort_keys=True).encode()).hexdigest()

    def problems(self) -> list[str]:
        """Everything in the map that does not fit the graph."""
        found = [f"there is no field {name}" for name in self.fields if name not in FIELDS]
        for name, places in self.fields.items():
            for title, entry in places:
                nodes = self._titled(title)
                if len(nodes) != 1:
                    found.append(f"{name}: {len(nodes)} nodes are titled {title!r}, one has to be")
                elif entry not in self.graph[nodes[0]]["inputs"]:
                    found.append(f"{name}: node {title!r} has no input {entry!r}")
                elif isinstance(self.graph[nodes[0]]["inputs"][entry], list):
                    found.append(f"{name}: input {entry!r} of node {title!r} is a link, which would be cut")
        if len(self._titled(self.output)) != 1:
            found.append(f"output: {len(self._titled(self.output))} nodes are titled {self.output!r}, one has to be")
        found += [f"{name} has a default or is required, and no place" for name in self._named() - set(self.fields)]
        found += [
            f"the default {value!r} of {name} is not {FIELDS[name].allowed()}"
            for name, value in self.defaults.items()
            if name in FIELDS and not FIELDS[name].fits(value)
        ]
        return found

    def fill(self, values: Mapping[str, Any], prefix: str) -> Graph:
        """Return the graph with the values in their places. What it saves gets names that begin with ``prefix``."""
        graph = copy.deepcopy(self.graph)
        for name, value in values.items():
            for title, entry in self.fields[name]:
                graph[self._titled(title)[0]]["inputs"][entry] = value
        for number, node in enumerate(graph.values()):
            if PREFIX in node["inputs"]:
                node["inputs"][PREFIX] = f"{prefix}-{number}"
        return graph

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

    def _named(self) -> set[str]:
        return {*self.defaults, *self.required}


_PLACE = {"filename": "", "subfolder": "", "type": "output"}


def load(path: Path) -> dict[str, Workflow]:
    """Read the workflows, the default one first, and refuse those whose map does not fit."""
    workflows = {}
    problems = []
    for entry in json.loads(path.read_text(encoding="utf-8")):
        fields = entry["fields"]
        workflow = Workflow(
            entry["name"],
            entry["graph"],
            fields,
            entry["output"],
            entry.get("defaults", {}),
            tuple(entry.get("required", [IMAGE] if IMAGE in fields else [])),
        )
        problems += [f"{workflow.name}: {problem}" for problem in workflow.problems()]
        workflows[workflow.name] = workflow
    if problems or not workflows:
        raise WorkflowError("; ".join(problems) or f"{path.name} has no workflows")
    return workflows
