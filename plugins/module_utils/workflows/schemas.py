"""What node types take and give: recorded for the pinned commits, or read from a running ComfyUI."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[3] / "files" / "locks" / "schemas"
CORE = "core"

PLAIN = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})
_DYNAMIC_COMBO, _DYNAMIC_SLOT = "COMFY_DYNAMICCOMBO_V3", "COMFY_DYNAMICSLOT_V3"
_AUTOGROW, MATCHTYPE = "COMFY_AUTOGROW_V3", "COMFY_MATCHTYPE_V3"
ANY = frozenset({"*", "COMBO", MATCHTYPE})
"""Types that fit every other one, or that only the browser compares."""
_WIDGETS = PLAIN | {
    _DYNAMIC_COMBO,
    "BOUNDING_BOX",
    "BOUNDING_BOXES",
    "CHART",
    "COLOR",
    "COLORS",
    "COMPOSITOR",
    "CURVE",
    "GALLERIA",
    "IMAGECOMPARE",
    "LIGHT_INFO_PREVIEW",
    "MARKDOWN",
    "PAINTER",
    "RANGE",
    "RESOLUTION_PREVIEW",
    "TEXTAREA",
    "VIDEO_EDIT",
    "WEBCAM",
}
_UPLOADS = ("image_upload", "video_upload", "audio_upload", "file_upload")
# VHS looks for these itself, in other folders than the one whose files it offers, too.
_ANY_FILE = ("audio", "directory", "video")
_KEPT = ("default", "min", "max", "step", "multiline", "multiselect", "formats", "image_folder", "dynamic")


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
    drawn: bool = False
    """The browser draws parts of the text by lot as it queues. It is known of a running ComfyUI alone."""
    choices: tuple[Any, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def brings(self, value: object) -> tuple[Input, ...]:
        """Return the further inputs that this value brings, such as those of a video format of VideoHelperSuite."""
        if (dynamic := self.options.get("dynamic")) is not None:
            sections = dynamic.get(_key(value)) or dynamic.get("*") or {}
            return tuple(_inputs(sections, "", f"{self.name}."))
        offered = (self.options.get("formats") or {}).get(value) if isinstance(value, str) else None
        # a format that is a mapping changes no inputs
        rows = [row for row in offered if isinstance(row[0], str)] if isinstance(offered, list) else []
        return tuple(replace(_input(row[0], row[1:], False, ""), optional=True, widget=True) for row in rows)


@dataclass(frozen=True)
class NodeType:
    """A node type, with its inputs in the order of the browser's widgets, and the pack that it is of."""

    name: str
    pack: str
    inputs: tuple[Input, ...]
    outputs: tuple[tuple[str, str], ...]
    ends: bool = False
    title: str = ""
    """What the browser calls it. It is known of a running ComfyUI alone."""

    def input(self, name: str) -> Input | None:
        """Return an input by its name."""
        return next((one for one in self.inputs if one.name == name), None)

    def given(self, values: Mapping[str, Any]) -> Iterator[Input]:
        """All inputs that a node has, with those that its values bring."""
        yield from _with_brought(self.inputs, values)


def _with_brought(inputs: Iterable[Input], values: Mapping[str, Any]) -> Iterator[Input]:
    for one in inputs:
        yield one
        if one.name in values:
            yield from _with_brought(one.brings(values[one.name]), values)


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


def recorded_in(comfyui: str, locks_dir: str = "") -> Path:
    """Return the folder of the schemas that were recorded with a commit of ComfyUI.

    The practice copy has its own, and so has a folder of locks that were moved to another commit.
    """
    folders = [FOLDER / "practice", *([Path(locks_dir).expanduser() / "schemas"] if locks_dir else [])]
    return next((folder for folder in folders if commits(folder).get(CORE) == comfyui), FOLDER)


def commits(folder: Path = FOLDER) -> dict[str, str]:
    """Return the commits that the schemas were recorded with, by pack."""
    return {file.stem: _commit(file) for file in sorted(folder.glob("*.json"))}


def _commit(file: Path) -> str:
    return str(json.loads(file.read_text(encoding="utf-8"))["commit"])


def from_object_info(info: Mapping[str, Any], marker: str = "") -> dict[str, NodeType]:
    """Read the answer of /object_info. Choices are not fixed where they are empty, or hold a file named ``marker``.

    Types that cannot be read are left out: a node pack may say anything of its own.
    """
    found = {}
    for name, entry in info.items():
        with suppress(AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError):
            kind = _freed(_node(name, entry, marker))
            _unfold(kind.inputs)
            found[name] = kind
    return found


def _unfold(inputs: Iterable[Input]) -> None:
    """Read what values of these inputs bring, too, so that it can be read later."""
    for one in inputs:
        for value in (*one.options.get("dynamic", ()), *(one.options.get("formats") or ())):
            _unfold(one.brings(value))


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
    inputs = _inputs(entry["input"], marker)
    module = str(entry.get("python_module", "")).split(".")
    pack = module[1] if module[0] == "custom_nodes" and len(module) > 1 else CORE
    names = entry.get("output_name") or entry["output"]
    outputs = tuple((_type(kind), str(label)) for kind, label in zip(entry["output"], names, strict=False))
    return NodeType(name, pack, tuple(inputs), outputs, bool(entry.get("output_node")), entry.get("display_name") or "")


def _inputs(sections: Mapping[str, Any], marker: str, prefix: str = "") -> Iterator[Input]:
    for section in ("required", "optional"):
        for name, spec in (sections.get(section) or {}).items():
            if isinstance(spec, list) and spec[0] == _AUTOGROW:
                yield from _grown(prefix + name, spec[1]["template"], marker)
            else:
                yield _input(prefix + name, spec, section == "optional", marker)


_MOST_GROWN = 1000
"""ComfyUI itself lets 100 grow."""


def _grown(name: str, template: Mapping[str, Any], marker: str) -> Iterator[Input]:
    """Every input that a growing list may have; the browser shows them one by one."""
    names = template.get("names") or [
        f"{template['prefix']}{index}" for index in range(min(template["max"], _MOST_GROWN))
    ]
    one, *_unused = _inputs(template["input"], marker)
    for index, end in enumerate(names):
        optional = one.optional or index >= template["min"]
        yield replace(one, name=f"{name}.{end}", optional=optional, widget=False)


def _key(value: object) -> object:
    return value if isinstance(value, str | int | float | bool | None) else "*"


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
    options = dict(listed[1]) if len(listed) > 1 and isinstance(listed[1], dict) else {}
    upload = next((True for key in _UPLOADS if options.get(key)), False)
    widget = options.get("widgetType", kind) in _WIDGETS and not options.get("forceInput")
    choices = None
    if kind == "COMBO":
        offered = listed[0] if isinstance(listed[0], list) else options.get("options") or []
        from_folder = not offered or upload or any(marker and marker in str(one) for one in offered)
        choices = None if from_folder or options.get("remote") else tuple(offered)
    elif kind == _DYNAMIC_COMBO:
        options["dynamic"] = {one["key"]: one["inputs"] for one in options["options"]}
        choices = tuple(options["dynamic"])
    elif kind == _DYNAMIC_SLOT:
        kind, options["dynamic"] = str(options["slotType"]), {"*": options["inputs"]}
    elif kind == MATCHTYPE:
        kind = str((options.get("template") or {}).get("allowed_types", "*"))
    # The browser gives seeds a widget of their own that says what becomes of them after a run.
    control = bool(options.get("control_after_generate")) or (kind == "INT" and name in {"seed", "noise_seed"})
    drawn = kind == "STRING" and options.get("dynamicPrompts") is True
    kept = {key: options[key] for key in _KEPT if options.get(key) is not None}
    return Input(name, kind, optional, widget, control, upload, drawn, choices, kept)
