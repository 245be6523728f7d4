"""The shipped workflows and those of operators: what they need, whether they are right, and what a host gets."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.progress import human
from ansible_collections.wanmetal.comfyui.plugins.module_utils.user_files import pack
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import workflow_convert
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.models import PROFILES, files_of_set
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.workflow_schemas import CORE, Input, NodeType, Schemas

FOLDER = Path(__file__).resolve().parents[2] / "files" / "workflows"
INDEX = FOLDER / "index.json"

_BROWSER = "user/default/workflows"
_MODEL_FILE = re.compile(r".+\.(safetensors|sft|pth|pt|ckpt|bin|onnx|gguf)", re.IGNORECASE)
_BROWSER_TYPES = {"*", "COMBO"}


@dataclass(frozen=True)
class Needs:
    """What a workflow needs of its host. ``unknown`` are model files that the catalogue does not have."""

    packs: tuple[str, ...]
    models: tuple[str, ...]
    unknown: tuple[str, ...]
    sets: tuple[str, ...]
    bytes: int
    vram_gb: float | None


def index() -> dict[str, dict[str, Any]]:
    """Return what is said of the shipped workflows: packs, models with stand-ins, settings."""
    return dict(json.loads(INDEX.read_text(encoding="utf-8")))


def load(name: str, kind: str) -> dict[str, Any]:
    """Return a shipped workflow, for the browser (ui) or for the API (api)."""
    file = FOLDER / kind / f"{name}.json"
    if not file.is_file():
        raise ValueError(f"there is no workflow {name!r}; there are {', '.join(index())}")
    return dict(json.loads(file.read_text(encoding="utf-8")))


def model_name(entry: Mapping[str, Any]) -> str:
    """The name under which ComfyUI lists a file: its path below the folder of its kind."""
    folder = str(entry["folder"])
    if folder.startswith("node_ckpts/"):
        return str(entry["name"])
    return "/".join([*folder.split("/")[1:], str(entry["name"])])


# -- validation


def problems(api: Mapping[str, Any], schemas: Schemas) -> list[str]:
    """Return what ComfyUI would refuse in a graph in API format, a line each."""
    found = [line for id_, node in api.items() for line in _node_problems(id_, node, api, schemas)]
    if not any(schemas[node["class_type"]].ends for node in api.values() if node["class_type"] in schemas):
        found.append("nothing is saved or shown at its end")
    return found


def _node_problems(id_: str, node: Mapping[str, Any], api: Mapping[str, Any], schemas: Schemas) -> Iterator[str]:
    kind = node["class_type"]
    who = f"node {id_} ({(node.get('_meta') or {}).get('title') or kind})"
    known = schemas.get(kind)
    if known is None:
        yield f"{who}: the node type {kind} is not known"
        return
    given = node["inputs"]
    for one in known.inputs:
        if one.name in given:
            yield from (f"{who}: {line}" for line in _input_problems(one, given[one.name], api, schemas))
        elif not one.optional:
            yield f"{who}: the input {one.name} is missing"
    dynamic = {name for one in known.inputs for name in _format_inputs(one, given)}
    strange = [name for name in given if known.input(name) is None and name not in dynamic]
    if strange:
        yield f"{who}: {kind} has no input {', '.join(strange)}"


def _format_inputs(one: Input, given: Mapping[str, Any]) -> Iterator[str]:
    chosen = given.get(one.name)
    offered = (one.options.get("formats") or {}).get(chosen) if isinstance(chosen, str) else None
    # a format that is a mapping changes no inputs
    for name, *_ in offered if isinstance(offered, list) else []:
        if isinstance(name, str):
            yield name


def _input_problems(one: Input, value: Any, api: Mapping[str, Any], schemas: Schemas) -> Iterator[str]:
    if isinstance(value, list):
        yield from _link_problems(one, value, api, schemas)
        return
    if not one.widget:
        yield f"{one.name} must be linked, found {value!r}"
    elif one.type in ("INT", "FLOAT"):
        yield from _number_problems(one, value)
    elif one.type == "BOOLEAN" and not isinstance(value, bool):
        yield f"{one.name} must be true or false, found {value!r}"
    elif one.type == "STRING" and not isinstance(value, str):
        yield f"{one.name} must be text, found {value!r}"
    elif one.type == "COMBO" and one.choices is not None and value not in one.choices:
        yield f"{one.name} must be one of {', '.join(map(str, one.choices))}, found {value!r}"


def _number_problems(one: Input, value: Any) -> Iterator[str]:
    right = isinstance(value, int if one.type == "INT" else int | float) and not isinstance(value, bool)
    if not right:
        yield f"{one.name} must be a number, found {value!r}"
        return
    least, most = one.options.get("min"), one.options.get("max")
    if (least is not None and value < least) or (most is not None and value > most):
        yield f"{one.name} must be {least} to {most}, found {value}"


def _link_problems(one: Input, value: list[Any], api: Mapping[str, Any], schemas: Schemas) -> Iterator[str]:
    if len(value) != 2 or not isinstance(value[0], str) or not isinstance(value[1], int):
        yield f"{one.name} is a list, and no link"
        return
    origin = api.get(value[0])
    if origin is None:
        yield f"{one.name} is linked to node {value[0]}, which is not there"
        return
    known = schemas.get(origin["class_type"])
    if known is None:
        return
    if not 0 <= value[1] < len(known.outputs):
        yield f"{one.name} is linked to output {value[1]} of {known.name}, which has {len(known.outputs)}"
        return
    kind = known.outputs[value[1]][0]
    if not set(kind.split(",")) & set(one.type.split(",")) and not {kind, one.type} & _BROWSER_TYPES:
        yield f"{one.name} wants {one.type}, and is linked to {kind} of {known.name}"


# -- needs


def needs(api: Mapping[str, Any], schemas: Schemas, catalogue: Mapping[str, Any]) -> Needs:
    """Return what a graph in API format needs."""
    names = {model_name(entry): id_ for id_, entry in catalogue["files"].items()}
    ids: list[str] = []
    unknown: list[str] = []
    packs: set[str] = set()
    for node in api.values():
        known = schemas.get(node["class_type"])
        if known and known.pack != CORE:
            packs.add(known.pack)
        for name in _model_names(node, known, names):
            if name in names:
                ids.append(names[name])
            else:
                unknown.append(name)
    ids = list(dict.fromkeys(ids))
    entries = [catalogue["files"][id_] for id_ in ids]
    vram = [entry["vram_gb"] for entry in entries if entry.get("vram_gb")]
    return Needs(
        tuple(sorted(packs)),
        tuple(ids),
        tuple(dict.fromkeys(unknown)),
        tuple(sets_for(ids, catalogue)),
        sum(entry.get("bytes") or entry.get("about_bytes") or 0 for entry in entries),
        max(vram, default=None),
    )


def _model_names(node: Mapping[str, Any], known: NodeType | None, names: Mapping[str, str]) -> Iterator[str]:
    for name, value in node["inputs"].items():
        if not isinstance(value, str):
            continue
        one = known.input(name) if known else None
        from_folder = one is None or (one.type == "COMBO" and not one.upload)
        plain = value.replace("\\", "/")
        if plain in names or (from_folder and _MODEL_FILE.fullmatch(plain)):
            yield plain


def sets_for(ids: Iterable[str], catalogue: Mapping[str, Any]) -> list[str]:
    """Return few sets that have the files together, in the profile that needs the fewest."""
    wanted = set(ids)
    best: list[str] | None = None
    best_key: tuple[int, int] = (0, 0)
    for profile in PROFILES:
        offered = {name: set(files_of_set(catalogue, name, profile)) for name in catalogue["sets"]}
        left, chosen = set(wanted), []
        while left:
            name = max(offered, key=lambda one: (len(offered[one] & left), -len(offered[one]), one))
            if not offered[name] & left:
                break
            chosen.append(name)
            left -= offered[name]
        key = (len(left), len(chosen))
        if best is None or key < best_key:
            best, best_key = chosen, key
    return sorted(best or [])


def table(found: Mapping[str, Needs]) -> list[list[str]]:
    """Return a row for each workflow, with a head: packs, sets, size and VRAM."""
    rows = [["workflow", "packs", "sets", "size", "VRAM"]]
    for name, one in found.items():
        vram = f"{one.vram_gb:g} GB" if one.vram_gb else ""
        rows.append([name, ", ".join(one.packs), ", ".join(one.sets), human(one.bytes), vram])
    return rows


# -- what a host gets


@dataclass(frozen=True)
class Choice:
    """A workflow for a host: the names of models that change in it, or what is missing."""

    name: str
    replaced: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    packs: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the host has all of it."""
        return not self.missing and not self.packs


def choose(
    entry: Mapping[str, Any],
    name: str,
    files: Sequence[Mapping[str, Any]],
    packs: Sequence[str],
    catalogue: Mapping[str, Any],
) -> Choice:
    """Choose the models of a workflow among the files that a host has or will have."""
    there = {str(file["id"]) for file in files}
    # a checkpoint is the operator's choice: any will do, and the browser lets people choose
    any_checkpoint = any(str(file.get("folder", "")).split("/")[0] in ("checkpoints", "") for file in files)
    replaced: dict[str, str] = {}
    missing: list[str] = []
    for stands_for, *others in entry["models"]:
        first = catalogue["files"][stands_for]
        found = next((id_ for id_ in (stands_for, *others) if id_ in there), None)
        if found is None and not (first["folder"] == "checkpoints" and any_checkpoint):
            missing.append(stands_for)
        elif found and found != stands_for:
            replaced[model_name(first)] = model_name(catalogue["files"][found])
    lacks = tuple(pack for pack in entry["packs"] if pack not in packs)
    return Choice(name, replaced, tuple(missing), lacks)


def with_models(workflow: Mapping[str, Any], replaced: Mapping[str, str]) -> dict[str, Any]:
    """Return a workflow, of either format, with the names of models replaced."""
    changed = copy.deepcopy(dict(workflow))
    for node in changed["nodes"] if "nodes" in changed else changed.values():
        held = node["widgets_values"] if "nodes" in changed else node["inputs"]
        for key, value in list(enumerate(held)) if isinstance(held, list) else list(held.items()):
            if isinstance(value, str) and value in replaced:
                held[key] = replaced[value]
    return changed


def written(workflow: Mapping[str, Any]) -> str:
    """A workflow as text, a node a line."""
    if "nodes" not in workflow:
        lines = [f"{json.dumps(id_)}: {json.dumps(node, ensure_ascii=False)}" for id_, node in workflow.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"
    rows = {
        key: "[\n" + ",\n".join(json.dumps(one, ensure_ascii=False) for one in value) + "\n]"
        if key in ("nodes", "links", "groups")
        else json.dumps(value, ensure_ascii=False)
        for key, value in workflow.items()
    }
    return "{\n" + ",\n".join(f'"{key}": {text}' for key, text in rows.items()) + "\n}\n"


def as_api(workflow: Mapping[str, Any], schemas: Schemas) -> dict[str, Any]:
    """Return a workflow in API format."""
    return workflow_convert.to_api(workflow, schemas)


def for_host(
    files: Sequence[Mapping[str, Any]], packs: Sequence[str], catalogue: Mapping[str, Any], extra: Mapping[str, str]
) -> dict[str, Any]:
    """Return the files that a host gets, packed, and what it does not get, with the reason."""
    choices = [choose(entry, name, files, packs, catalogue) for name, entry in index().items()]
    placed: dict[str, bytes] = {}
    for one in choices:
        if one.fits:
            text = written(with_models(load(one.name, "ui"), one.replaced))
            placed[f"{_BROWSER}/{one.name}.json"] = text.encode()
    if placed:
        placed |= {f"input/{file.name}": file.read_bytes() for file in sorted((FOLDER / "input").iterdir())}
    for path, text in extra.items():
        placed[f"{_BROWSER}/{Path(path).name}"] = _own(path, text).encode()
    return {
        "names": [one.name for one in choices if one.fits],
        "left_out": {one.name: _why_not(one) for one in choices if not one.fits},
        "archive": pack(placed),
    }


def _own(path: str, text: str) -> str:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"workflows_extra names {path}, which is no JSON: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("nodes"), list):
        raise ValueError(  # noqa: TRY004 (of a file, not of an argument)
            f"workflows_extra names {path}, which is not in the format in which the browser saves workflows"
        )
    return text


def _why_not(choice: Choice) -> str:
    reasons = [f"the node pack {', '.join(choice.packs)}"] if choice.packs else []
    reasons += [f"the model {', '.join(choice.missing)}"] if choice.missing else []
    return "lacks " + " and ".join(reasons)
