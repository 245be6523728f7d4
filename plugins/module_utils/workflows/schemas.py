"""What node types take and give: recorded for the pinned commits, or read from a running ComfyUI."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[3] / "files" / "locks" / "schemas"
CORE = "core"

_WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
_UPLOADS = ("image_upload", "video_upload", "audio_upload", "file_upload")
# VHS looks for these itself, in other folders than the one whose files it offers, too.
_ANY_FILE = ("audio", "directory", "video")
_KEPT = ("default", "min", "max", "step", "multiline", "formats", "image_folder")


class SchemaError(Exception):
    """Schemas that cannot be read."""


@dataclass(frozen=True)
class Input:
    """An input. ``choices`` is None where they are not fixed, such as the files in a folder."""

    name: str
    type: str
    optional: bool = False
    widget: bool = False
    control: bool = False
    upload: bool = False
    choices: tuple[Any, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def brings(self, value: object) -> list[str]:
        """Return the further inputs that this value brings, such as those of a video format of VideoHelperSuite."""
        offered = (self.options.get("formats") or {}).get(value) if isinstance(value, str) else None
        # a format that is a mapping changes no inputs
        return [name for name, *_ in offered if isinstance(name, str)] if isinstance(offered, list) else []


@dataclass(frozen=True)
class NodeType:
    """A node type, with its inputs in the order of the browser's widgets, and the pack that it is of."""

    name: str
    pack: str
    inputs: tuple[Input, ...]
    outputs: tuple[tuple[str, str], ...]
    ends: bool = False

    def input(self, name: str) -> Input | None:
        """Return an input by its name."""
        return next((one for one in self.inputs if one.name == name), None)


Schemas = Mapping[str, NodeType]


@cache
def recorded(folder: Path = FOLDER) -> Schemas:
    """Return the schemas that are recorded, those of all packs."""
    found: dict[str, NodeType] = {}
    for file in sorted(folder.glob("*.json")):
        data = json.loads(file.read_text(encoding="utf-8"))
        found.update({name: _freed(_read(name, file.stem, entry)) for name, entry in data["types"].items()})
    if not found:
        raise SchemaError(f"{folder} holds no schemas")
    return found


def commits(folder: Path = FOLDER) -> dict[str, str]:
    """Return the commits that the schemas were recorded with, by pack."""
    return {file.stem: _commit(file) for file in sorted(folder.glob("*.json"))}


def _commit(file: Path) -> str:
    return str(json.loads(file.read_text(encoding="utf-8"))["commit"])


def from_object_info(info: Mapping[str, Any], marker: str = "") -> dict[str, NodeType]:
    """Read the answer of /object_info. Choices are not fixed where they are empty, or hold a file named ``marker``."""
    return {name: _freed(_node(name, entry, marker)) for name, entry in info.items()}


def write(types: Iterable[NodeType], commit: str) -> str:
    """Write the schemas of a pack, a line for each type."""
    lines = [
        f"{json.dumps(one.name)}: {json.dumps(_plain(one), separators=(',', ':'))}"
        for one in sorted(types, key=lambda node_type: node_type.name)
    ]
    return f'{{"commit": {json.dumps(commit)}, "types": {{\n' + ",\n".join(lines) + "\n}}\n"


def _plain(one: NodeType) -> dict[str, Any]:
    plain: dict[str, Any] = {"in": {}, "out": [list(output) for output in one.outputs]}
    if one.ends:
        plain["ends"] = True
    for entry in one.inputs:
        flags = {key: True for key in ("optional", "widget", "control", "upload") if getattr(entry, key)}
        choices = {} if entry.choices is None else {"choices": list(entry.choices)}
        plain["in"][entry.name] = {"type": entry.type, **flags, **choices, **entry.options}
    return plain


def _read(name: str, pack: str, entry: Mapping[str, Any]) -> NodeType:
    inputs = []
    for input_name, given in entry["in"].items():
        rest = dict(given)
        choices = rest.pop("choices", None)
        flags = {key: rest.pop(key, False) for key in ("optional", "widget", "control", "upload")}
        kind = rest.pop("type")
        inputs.append(
            Input(input_name, kind, choices=None if choices is None else tuple(choices), options=rest, **flags)
        )
    outputs = tuple((kind, label) for kind, label in entry["out"])
    return NodeType(name, pack, tuple(inputs), outputs, entry.get("ends", False))


def _node(name: str, entry: Mapping[str, Any], marker: str) -> NodeType:
    inputs = [
        _input(input_name, spec, section == "optional", marker)
        for section in ("required", "optional")
        for input_name, spec in (entry["input"].get(section) or {}).items()
    ]
    module = str(entry.get("python_module", "")).split(".")
    pack = module[1] if module[0] == "custom_nodes" and len(module) > 1 else CORE
    names = entry.get("output_name") or entry["output"]
    outputs = tuple((_type(kind), str(label)) for kind, label in zip(entry["output"], names, strict=False))
    return NodeType(name, pack, tuple(inputs), outputs, bool(entry.get("output_node")))


def _freed(kind: NodeType) -> NodeType:
    if not kind.name.startswith("VHS_Load"):
        return kind
    return replace(
        kind, inputs=tuple(replace(one, choices=None) if one.name in _ANY_FILE else one for one in kind.inputs)
    )


def _type(kind: object) -> str:
    return "COMBO" if isinstance(kind, list) else str(kind)


def _input(name: str, spec: object, optional: bool, marker: str) -> Input:
    listed = spec if isinstance(spec, list) and spec else [str(spec)]
    kind = _type(listed[0])
    options = listed[1] if len(listed) > 1 and isinstance(listed[1], dict) else {}
    upload = next((True for key in _UPLOADS if options.get(key)), False)
    choices = None
    if kind == "COMBO":
        offered = listed[0] if isinstance(listed[0], list) else options.get("options") or []
        from_folder = not offered or upload or any(marker and marker in str(one) for one in offered)
        choices = None if from_folder or options.get("remote") else tuple(offered)
    # The browser gives seeds a widget of their own that says what becomes of them after a run.
    control = bool(options.get("control_after_generate")) or (kind == "INT" and name in {"seed", "noise_seed"})
    return Input(
        name,
        kind,
        optional,
        kind in _WIDGETS and not options.get("forceInput"),
        control,
        upload,
        choices,
        {key: options[key] for key in _KEPT if options.get(key) is not None},
    )
