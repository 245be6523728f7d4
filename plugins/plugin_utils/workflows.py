"""The shipped workflows and those of operators: what they need, whether they are right, and what a host gets."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import size as human
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.user_files import BROWSER, GALLERY, pack
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import check as workflow_check
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import schemas as workflow_schemas
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.browser import to_browser
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import (
    ConversionError,
    is_group_node,
    to_api,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.replace import Replacement, replace
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.replace import table as replacements
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.schemas import CORE, NodeType, Schemas
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import workflow_files
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.models import PROFILES, files_of_set
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.problems import told

_FILES = Path(__file__).resolve().parents[2] / "files" / "workflows"
FOLDER = _FILES / "ui"
INDEX = _FILES / "index.json"
PACKS = _FILES / "packs.json"
PICTURES = _FILES / "pictures"
FIRST = (
    "Wan22-TextToVideo",
    "Wan22-ImageToVideo",
    "Wan22-5B",
    "Native-TextToVideo-1.3B",
    "Native-TextToVideo",
    "Native-ImageToVideo",
)
"""What the browser page begins with: the first of these whose models the host has, or else any."""

BACKSLASH = "on Linux, ComfyUI knows no name with a backslash; write {} in the workflow, and save it again"
_MODEL_FILE = re.compile(r".+\.(safetensors|sft|pth|pt|ckpt|bin|onnx|gguf)", re.IGNORECASE)


@dataclass(frozen=True)
class Needs:
    """What a workflow needs of its host: sets, and the ids of files that no set brings without much else.

    ``unknown`` are model files that the catalogue does not have.
    """

    packs: tuple[str, ...]
    models: tuple[str, ...]
    unknown: tuple[str, ...]
    sets: tuple[str, ...]
    ids: tuple[str, ...]
    bytes: int
    vram_gb: float | None


def index() -> dict[str, dict[str, Any]]:
    """Return what is said of the shipped workflows: packs, models with stand-ins, settings."""
    return dict(json.loads(INDEX.read_text(encoding="utf-8")))


def load(name: str) -> dict[str, Any]:
    """Return a shipped workflow as the browser opens it."""
    file = FOLDER / f"{name}.json"
    if not file.is_file():
        raise ValueError(f"there is no workflow {name!r}; there are {', '.join(index())}")
    return dict(json.loads(file.read_text(encoding="utf-8")))


def load_api(name: str) -> dict[str, Any]:
    """Return a shipped workflow in the format of the API."""
    return to_api(load(name), workflow_schemas.recorded())


def model_name(entry: Mapping[str, Any]) -> str:
    """The name under which ComfyUI lists a file: its path below the folder of its kind."""
    folder = str(entry["folder"])
    if folder.startswith("node_ckpts/"):
        return str(entry["name"])
    return "/".join([*folder.split("/")[1:], str(entry["name"])])


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
    advice = min((advise(ids, catalogue, profile) for profile in PROFILES), key=lambda a: (len(a.ids), len(a.sets)))
    vram = [entry["vram_gb"] for entry in entries if entry.get("vram_gb")]
    return Needs(
        tuple(sorted(packs)),
        tuple(ids),
        tuple(dict.fromkeys(unknown)),
        advice.sets,
        advice.ids,
        sum(entry.get("bytes") or entry.get("about_bytes") or 0 for entry in entries),
        max(vram, default=None),
    )


def _model_names(node: Mapping[str, Any], known: NodeType | None, names: Mapping[str, str]) -> Iterator[str]:
    for name, value in node["inputs"].items():
        one = known.input(name) if known else None
        from_folder = one is None or (one.type == "COMBO" and not one.upload)
        # rows, such as those of rgthree's Power Lora Loader, say whether they are on
        rows = value.values() if isinstance(value, Mapping) and value.get("on") is not False else [value]
        for text in rows:
            if isinstance(text, str) and (text in names or (from_folder and _MODEL_FILE.fullmatch(text))):
                yield text


_BESIDES = 5_000_000_000
"""Bytes that a set may bring besides what is needed, if that itself is not half as many."""


@dataclass(frozen=True)
class Advice:
    """How to get model files of the catalogue: sets that bring little else, and ids of the files that are left."""

    sets: tuple[str, ...]
    ids: tuple[str, ...]


def advise(ids: Iterable[str], catalogue: Mapping[str, Any], profile: str, here: Iterable[str] = ()) -> Advice:
    """Return what to add to the settings of a host with a profile, and with some files."""
    sizes = {id_: entry.get("bytes") or entry.get("about_bytes") or 0 for id_, entry in catalogue["files"].items()}
    left, there, chosen = list(dict.fromkeys(ids)), set(here), []
    offered = {name: set(files_of_set(catalogue, name, profile)) - there for name in catalogue["sets"]}
    own = {
        name: {*entry.get("files", []), *entry.get("profiles", {}).get(profile, [])}
        for name, entry in catalogue["sets"].items()
    }
    while left:
        ways: list[tuple[int, int, str]] = []
        for name, files in offered.items():
            useful = files.intersection(left)
            besides = sum(sizes[id_] for id_ in files - useful)
            if useful & own[name] and besides <= max(_BESIDES, 2 * sum(sizes[id_] for id_ in useful)):
                ways.append((len(useful), -besides, name))
        if not ways:
            break
        best = max(ways)[2]
        chosen.append(best)
        left = [id_ for id_ in left if id_ not in offered[best]]
        offered = {name: files - offered[best] for name, files in offered.items()}
    return Advice(tuple(sorted(chosen)), tuple(left))


def table(found: Mapping[str, Needs]) -> list[list[str]]:
    """Return a row for each workflow, with a head: packs, sets, size and VRAM."""
    rows = [["workflow", "packs", "sets", "size", "VRAM"]]
    for name, one in found.items():
        vram = f"{one.vram_gb:g} GB" if one.vram_gb else ""
        sets = [*one.sets, *(f"the file {id_}" for id_ in one.ids)]
        rows.append([name, ", ".join(one.packs), ", ".join(sets), human(one.bytes), vram])
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
    any_checkpoint = any(str(file.get("folder", "")).partition("/")[0] in ("checkpoints", "") for file in files)
    replaced: dict[str, str] = {}
    missing: list[str] = []
    for stands_for, *others in entry["models"]:
        first = catalogue["files"].get(stands_for)
        if first is None:  # an operator's own catalogue, without what this workflow needs
            missing.append(stands_for)
            continue
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


def for_host(
    files: Sequence[Mapping[str, Any]],
    packs: Mapping[str, Mapping[str, Any]],
    catalogue: Mapping[str, Any],
    extra: Mapping[str, str],
    *,
    comfyui: str = "",
    profile: str = "fp8",
    locks_dir: str = "",
) -> dict[str, Any]:
    """Return the files that a host gets, packed, what it does not get, with the reason, and what is wrong with them."""
    choices = [choose(entry, name, files, list(packs), catalogue) for name, entry in index().items()]
    release = Release.of(packs, comfyui, locks_dir)
    given = {one.name: with_models(load(one.name), one.replaced) for one in choices if one.fits}
    older = {name: kinds for name, workflow in given.items() if (kinds := release.lacks(workflow))}
    given = {name: workflow for name, workflow in given.items() if name not in older}
    texts = {f"{name}.json": written(workflow) for name, workflow in given.items()}
    own = {f"{Path(path).stem}.json": path for path in extra}
    problems: list[dict[str, str]] = []
    notes: list[str] = []
    for name, path in own.items():
        texts[name], replaced = _own(path, extra[path], release)
        if replaced:
            changes = "; ".join(dict.fromkeys(f"{one.old} → {' + '.join(one.new) or 'nothing'}" for one in replaced))
            notes.append(
                f"{name}: node types that this host does not have are replaced, as a note in it says: {changes}"
            )
    for name, text in texts.items():
        brings = Brings.of(text if name in own else "")
        api, found = _looked_at(text, release, brings)
        problems += [
            {
                "kind": "workflows",
                "what": f"workflow {own.get(name, name)}",
                "found": told(what),
                "needed": needed,
                "fix": fix if name in own else _OURS,
            }
            for what, needed, fix in found
        ]
        if name in own and not found:
            lacking = [*_unknown(name, api, release), *_lacks(name, api, files, catalogue, profile, brings)]
            notes += lacking or [f"{name} opens, and nothing that it needs is known to be missing"]
    placed = {f"{BROWSER}/{name}": text.encode() for name, text in texts.items()}
    placed |= gallery(texts, [*(name for name in FIRST if name in given), *given, *(Path(name).stem for name in own)])
    if given:
        placed |= {f"input/{file.name}": file.read_bytes() for file in sorted((_FILES / "input").iterdir())}
    return {
        "names": list(given),
        "left_out": {one.name: _why_not(one) for one in choices if not one.fits}
        | {name: f"needs {', '.join(kinds)}, which this older ComfyUI does not have" for name, kinds in older.items()},
        "archive": pack(placed),
        "problems": [{key: _plain(text) for key, text in one.items()} for one in problems],
        "notes": [_plain(note) for note in notes],
    }


def gallery(texts: Mapping[str, str], order: Sequence[str]) -> dict[str, bytes]:
    """Return the templates of workflows with their pictures, and which of them the page begins with.

    Their names differ from those of the files in the browser's list: a tab with the name of a file would save over it.
    """
    files: dict[str, bytes] = {}
    for name, text in texts.items():
        stem = Path(name).stem
        title = f"{GALLERY}/{stem.replace('-', ' ')}" if "-" in stem else f"{GALLERY}/{stem} template"
        files[f"{title}.json"] = text.encode()
        if (picture := PICTURES / f"{stem}.jpg").is_file():
            files[f"{title}.jpg"] = picture.read_bytes()
        if stem == next(iter(order), None):
            files[f"{GALLERY}/first.txt"] = f"{Path(title).name}\n".encode()
    return files


@dataclass(frozen=True)
class Brings:
    """What a file of the browser says itself: of node types their pack, of models where they are and go."""

    packs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """By node type the repository and the commit, where that is known."""
    models: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """By name the address and the folder."""

    @classmethod
    def of(cls, text: str) -> Brings:
        """Read them. A stranger may have written the file, so only what looks like one is taken."""
        packs: dict[str, tuple[str, str]] = {}
        models: dict[str, tuple[str, str]] = {}
        try:
            whole = json.loads(text)
            inner = (whole.get("definitions") or {}).get("subgraphs") or []
            nodes = [node for graph in [whole, *inner] for node in graph.get("nodes") or []]
        except (ValueError, RecursionError, AttributeError, TypeError):
            return cls()
        for node in nodes:
            about = node.get("properties") if isinstance(node, Mapping) else None
            if not isinstance(about, Mapping):
                continue
            repository, commit = str(about.get("aux_id")), str(about.get("ver"))
            if _REPOSITORY.fullmatch(repository):
                known = commit if _COMMIT.fullmatch(commit) else ""
                packs.setdefault(str(node.get("type")), (f"{_GITHUB}{repository.removesuffix('.git')}.git", known))
            for model in about["models"] if isinstance(about.get("models"), list) else []:
                parts = (
                    [str(model.get(key)) for key in ("name", "url", "directory")] if isinstance(model, Mapping) else []
                )
                if parts and _ADDRESS.fullmatch(parts[1]) and _FOLDER.fullmatch(parts[2]):
                    models.setdefault(parts[0].rpartition("/")[2], (parts[1].partition("?")[0], parts[2]))
        return cls(packs, models)

    def pack(self, kind: str) -> tuple[str, str] | None:
        """The repository of a node type's pack, by our own map or by the file, and the commit by the file."""
        entry = replacements().get(kind)
        if (ours := _pack_addresses().get(entry["pack"]) if entry else None) is not None:
            told_here, commit = self.packs.get(kind, ("", ""))
            return ours, commit if told_here == ours else ""
        return self.packs.get(kind)


_GITHUB = "https://github.com/"
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,38}/[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ADDRESS = re.compile(r"https://[A-Za-z0-9.-]+/[A-Za-z0-9._~/%+-]+(\?[A-Za-z0-9=&_.-]*)?")
_FOLDER = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")


@cache
def _pack_addresses() -> dict[str, str]:
    """The repositories of packs whose node types can be replaced, by the names of the packs."""
    return dict(json.loads(PACKS.read_text(encoding="utf-8")))


def _own(path: str, text: str, release: Release) -> tuple[str, list[Replacement]]:
    """The file that is placed for a workflow of the operator's, and what was replaced in it."""
    try:
        graph, where = workflow_files.read(text.encode())
    except ValueError as error:
        raise ValueError(f"workflows_extra names {path}: {error}") from error
    try:
        graph, replaced = replace(graph, release.recorded, release.kinds)
        if "nodes" not in graph:
            graph = to_browser(graph, release.recorded)
        elif not replaced and not where:
            return text.removeprefix("\ufeff"), []
    except ConversionError as error:
        raise ValueError(f"workflows_extra names {path}: {error}") from error
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError):
        return json.dumps(graph), []  # the check says what is wrong with it
    return written(graph), replaced


def _why_not(choice: Choice) -> str:
    reasons = [f"the node pack {', '.join(choice.packs)}"] if choice.packs else []
    reasons += [f"the model {', '.join(choice.missing)}"] if choice.missing else []
    return "lacks " + " and ".join(reasons)


# -- whether what a host gets is right

_NEEDED = "a workflow that the pinned ComfyUI and node packs take"
_REMOVE = "remove it from workflows_extra"
_SAVE = f"fix it in the browser and save it again, or {_REMOVE}"
_OURS = "it comes with wanmetal, so please report it; preflight_skip: [workflows] goes on"
_SHOWN = 5
_TEMPLATE = re.compile(r"\{(?=[{%#])")


@dataclass(frozen=True)
class Release:
    """The node types of a release: those that are known by its commits, and those that it is trusted to have.

    Of ``silent`` packs nothing is known: they may have any type.
    """

    schemas: Schemas
    trusted: frozenset[str]
    silent: tuple[str, ...]
    recorded: Schemas
    """What is recorded, of packs that are not here, too."""
    packs: tuple[str, ...] = ()

    @property
    def kinds(self) -> frozenset[str]:
        """All node types that it has or may have."""
        of_packs = {kind for kind, entry in replacements().items() if entry["pack"] in self.packs}
        return frozenset({*self.schemas, *self.trusted, *of_packs})

    @classmethod
    def of(cls, packs: Mapping[str, Mapping[str, Any]], comfyui: str, locks_dir: str = "") -> Release:
        """Take what is recorded of these commits. Of others it is known which types there are, and no more."""
        folder = workflow_schemas.recorded_in(comfyui, locks_dir)
        recorded, commits = workflow_schemas.recorded(folder), workflow_schemas.commits(folder)
        here = {CORE: comfyui, **{name: str(pack["commit"]) for name, pack in packs.items()}}
        same = {pack for pack, commit in here.items() if commits.get(pack) == commit}
        promised = {kind for pack, entry in packs.items() if pack not in same for kind in entry["node_types"]}
        others = {kind for kind, one in recorded.items() if one.pack in here.keys() - same}
        silent = tuple(pack for pack, entry in packs.items() if pack not in same and not entry["node_types"])
        schemas = {kind: one for kind, one in recorded.items() if one.pack in same}
        return cls(
            schemas, frozenset(promised | others), silent, {**workflow_schemas.recorded(), **recorded}, tuple(packs)
        )

    def lacks(self, workflow: Mapping[str, Any]) -> list[str]:
        """Node types of ComfyUI that a workflow needs, and that an older one does not have."""
        known = {*self.schemas, *self.trusted}
        api = workflow_check.read(workflow, self.recorded)
        return [
            kind
            for kind in workflow_check.unknown_types(api, known)
            if kind in self.recorded and self.recorded[kind].pack == CORE
        ]


def _looked_at(text: str, release: Release, brings: Brings) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """A workflow in API format, and what is wrong with it: what is found, what is needed and how to fix it."""
    api: dict[str, Any] = {}
    try:
        api = workflow_check.read(json.loads(text), release.recorded)
        found = list(_wrong(api, release, brings))
    except (ValueError, ConversionError) as error:
        found = [(str(error), _NEEDED, _SAVE)]
    if len(found) > _SHOWN:
        more = len(found) - _SHOWN + 1
        found[_SHOWN - 1 :] = [(f"{more} further things", _NEEDED, _SAVE)]
    return api, found


def _wrong(api: Mapping[str, Any], release: Release, brings: Brings) -> Iterator[tuple[str, str, str]]:
    """What is found, what is needed and how to fix it."""
    recorded = release.recorded
    strange: set[str] = set()
    packs: set[str] = set()
    for id_, node in api.items():
        kind = str(node["class_type"])
        if kind in release.schemas or kind in release.trusted or kind in strange or is_group_node(kind):
            continue
        strange.add(kind)
        found = f"{workflow_check.named(id_, node)}: the node type {kind}"
        if kind not in recorded and (known := brings.pack(kind)) and not release.silent:
            repository, commit = known
            if repository not in packs:
                packs.add(repository)
                yield found, f"the node pack {repository}, which has it", _to_add(api, repository, commit, brings)
        elif kind not in recorded:
            fix = f"name its pack in custom_nodes_extra, with {kind} under node_types, or {_REMOVE}"
            if not release.silent:
                yield found, "a node type of ComfyUI, or of a node pack of this host", fix
        elif (name := recorded[kind].pack) not in packs:
            packs.add(name)
            yield found, f"the node pack {name}, which has it", f"set wanmetal_variant: wan, or {_REMOVE}"
    for line in workflow_check.problems(api, release.schemas, {*release.trusted, *strange}):
        yield line, _NEEDED, _SAVE


def _to_add(api: Mapping[str, Any], repository: str, commit: str, brings: Brings) -> str:
    """What adds a pack with the node types of it that a workflow has."""
    kinds = dict.fromkeys(str(node["class_type"]) for node in api.values())
    entry = {
        "name": repository.rpartition("/")[2].removesuffix(".git"),
        "repository": repository,
        "commit": commit or "the 40 digits of one",
        "node_types": [one for one in kinds if (brings.pack(one) or ("",))[0] == repository],
    }
    return f"add {json.dumps(entry, ensure_ascii=False)} to custom_nodes_extra, if you trust it, or {_REMOVE}"


def _unknown(name: str, api: Mapping[str, Any], release: Release) -> Iterator[str]:
    """Node types that a pack may have which does not say what it has."""
    known = {*release.recorded, *release.trusted}
    if kinds := workflow_check.unknown_types(api, known):
        yield (
            f"{name} needs the node type {', '.join(kinds)}, which may be of {', '.join(release.silent)}: "
            "name it under node_types there, and a deploy sees to it"
        )


def _lacks(
    name: str,
    api: Mapping[str, Any],
    files: Sequence[Mapping[str, Any]],
    catalogue: Mapping[str, Any],
    profile: str,
    brings: Brings,
) -> Iterator[str]:
    """Models of a workflow that nothing fetches. They may be on the host all the same."""
    needed = needs(api, workflow_schemas.recorded(), catalogue)
    here = {model_name(file) for file in files if file.get("name")}
    known = [id_ for id_ in needed.models if model_name(catalogue["files"][id_]) not in here]
    # names of what CivitAI offers are known when it is fetched
    strange = [one for one in needed.unknown if one not in here] if all(file.get("name") for file in files) else []
    for one in [one for one in strange if "\\" in one]:
        strange.remove(one)
        yield f"{name} needs {one}: {BACKSLASH.format(one.replace(chr(92), '/'))}"
    if not known and not strange:
        return
    models = ", ".join([*(model_name(catalogue["files"][id_]) for id_ in known), *strange])
    advice = advise(known, catalogue, profile, [str(file["id"]) for file in files if file.get("id")])
    ways = [f"{', '.join(advice.sets)} to wan_models_sets"] if advice.sets else []
    ways += [f"the id {id_} to wan_models_files{_other_profile(id_, catalogue, profile)}" for id_ in advice.ids]
    for one in strange:
        base = one.rpartition("/")[2]
        url, folder = brings.models.get(base, ("", ""))
        entry = json.dumps({"name": base, "folder": folder, "url": url}) if url else f"an entry for {one}"
        ways.append(f"{entry} to wan_models_files")
    add = " and ".join(ways)
    yield f"{name} needs {models}, which nothing fetches: add {add}, unless the host has it by other ways"


def _other_profile(id_: str, catalogue: Mapping[str, Any], profile: str) -> str:
    """Say so where a set has this file for hosts of another profile."""
    for other in PROFILES:
        for name in catalogue["sets"]:
            if id_ in files_of_set(catalogue, name, other) and id_ not in files_of_set(catalogue, name, profile):
                return f" (the set {name} has a file of another precision in its place for the profile {profile})"
    return ""


def _plain(text: str) -> str:
    """A text that may be of a file that somebody else has made, and is no template."""
    return _TEMPLATE.sub("{ ", text)
