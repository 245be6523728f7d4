"""The node packs of a release, as the lock and the operator name them, and what each means to others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.locks.mirrors import rewrite

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REQUIREMENTS_FILE = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*\.txt")
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_REPOSITORY = re.compile(r"(https?|ssh|git)://[^\s/?#]+(?<!:)/\S+|file:///\S+")
_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9._, -]*\])?\s*([<>=!~;@(].*)?")  # no option of pip's
_PACKAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HEADER = re.compile(r"^# Node packs: (.+)$", re.MULTILINE)

_PACK: dict[str, Any] = {
    "repository": "",
    "commit": "",
    "licence": "",
    "requirements": [],
    "packages": [],
    "without": [],
    "folders": {},
    "models": [],
    "node_types": [],
    "accepted": [],
}


class PackError(Exception):
    """What is wrong with the packs, with what to do."""


def wrong_entry(entry: Mapping[str, Any], shipped: Sequence[str] = ()) -> str:
    """What is wrong with a pack of an operator, or an empty text."""
    name, commit = str(entry.get("name", "")), str(entry.get("commit", ""))
    if not _NAME.fullmatch(name) or name.startswith("websocket_image_save"):
        return f"the name {name!r}, which is no folder name of letters, digits, '.', '_' and '-'"
    if name in shipped:
        return f"{name}, which the variant has already"
    if not _COMMIT.fullmatch(commit):
        return f"{name} at commit {commit!r}, which is not the 40 hexadecimal digits of one"
    if not _REPOSITORY.fullmatch(str(entry.get("repository", ""))):
        return f"{name} from {str(entry.get('repository', ''))!r}, which is no address of a repository"
    if re.match(r"\w+://[^/]*:[^/]*@", str(entry.get("repository"))):
        return f"{name} from an address with a password (not shown)"
    kinds = [kind for kind in (entry.get("folders") or {}).values() if kind not in ("models", "cache")]
    if kinds:
        return f"{name} with a folder of the kind {kinds[0]!r}, which is neither models nor cache"
    folders = list(entry.get("folders") or {})
    for folder in folders:
        inside = any(folder != other and folder.startswith(f"{other}/") for other in folders)
        if inside or not _FOLDER.fullmatch(str(folder)):
            return f"{name} with the folder {folder!r}, which is no folder in it, or lies in another one of them"
    files = [file for file in entry.get("requirements") or [] if not _REQUIREMENTS_FILE.fullmatch(file) or ".." in file]
    if files:
        return f"{name} with the requirements {files[0]!r}, which is no *.txt file in it"
    for option, form in (("packages", _PACKAGE), ("without", _PACKAGE_NAME), ("node_types", re.compile(r".*\S.*"))):
        if strange := [one for one in entry.get(option) or [] if not form.fullmatch(str(one))]:
            return f"{name} with {strange[0]!r} under {option}, which is the name of none"
    return ""


def packs(
    lock: Mapping[str, Any],
    variant: str,
    extra: Sequence[Mapping[str, Any]] = (),
    mirrors: object = (),
    folder: str = "",
) -> list[dict[str, Any]]:
    """Return the packs of a variant and those of the operator; paths are below ``folder``."""
    variants = lock["variants"]
    if variant not in variants:
        raise PackError(f"there is no variant {variant!r}; there are: {', '.join(variants)}")
    shipped = variants[variant]
    entries = [{"name": name, **lock["packs"][name]} for name in shipped]
    for entry in extra:
        if wrong := wrong_entry(entry, [one["name"] for one in entries]):
            raise PackError(f"custom_nodes_extra holds {wrong}")
        entries.append(dict(entry))
    return [_pack({**_PACK, **entry}, mirrors, folder) for entry in entries]


def _pack(entry: Mapping[str, Any], mirrors: object, folder: str) -> dict[str, Any]:
    name, commit = entry["name"], entry["commit"]
    url = rewrite(entry["repository"], mirrors)
    dest = f"{folder}/{name}"
    return {
        "name": name,
        "origin": url,
        "label": label(name, commit),
        "release": {"commit": commit, "node_types": sorted(entry["node_types"])},
        "checkout": {"name": name, "repository": url, "commit": commit, "dest": dest, "submodules": True},
        "accepted": [dict(one) for one in entry["accepted"]],
        "folders": [
            {"link": f"{dest}/{inside}", "kind": kind, "pack": name, "cache": f"{name}/{inside}"}
            for inside, kind in sorted(entry["folders"].items())
        ],
        "sources": [
            {
                "name": name if number == 0 else f"{name}-{number + 1}",
                **({"file": f"{dest}/{file}"} if file else {}),
                "requirements": entry["packages"] if number == 0 else [],
                "leave_out": entry["without"],
            }
            for number, file in enumerate(entry["requirements"] or ([""] if entry["packages"] else []))
        ],
    }


def label(name: str, commit: str) -> str:
    """A pack, as the header of a lock names it."""
    return f"{name} {commit[:12]}"


def lock_problem(text: str, wanted: Sequence[str]) -> str:
    """How the packs that a Python lock was made with differ from those of a release, or an empty text."""
    match = _HEADER.search(text)
    made_with = match[1].split(", ") if match else []
    lacks = [one for one in wanted if one not in made_with]
    strange = [one for one in made_with if one not in wanted]
    return "; ".join(
        f"{what} {', '.join(found)}" for what, found in (("made without", lacks), ("made with", strange)) if found
    )


def untried(found: Sequence[Mapping[str, Any]], report: Mapping[str, Any], comfyui: str) -> list[Any]:
    """The packs that the gate has not tried at their commit, on this commit of ComfyUI, with what is accepted."""
    tried = report.get("packs", {})

    def known(pack: Mapping[str, Any]) -> bool:
        one = tried.get(pack["name"], {})
        reasons = [*one.get("reasons", ()), *one.get("accepted", ())]
        accepted = {why["accepted"] for why in reasons if "accepted" in why}
        return (
            one.get("commit") == pack["release"]["commit"]
            and one.get("comfyui") == comfyui
            and accepted == {why["why"] for why in pack["accepted"]}
        )

    return [pack for pack in found if not known(pack)]


def gate_notes(report: Mapping[str, Any], extra: Sequence[Mapping[str, Any]], comfyui: str) -> list[str]:
    """What the gate found for each pack of an operator, for people."""
    notes = []
    for entry in extra:
        name = str(entry.get("name"))
        found = report.get("packs", {}).get(name, {})
        if found.get("commit") != entry.get("commit"):
            said = "this commit was not tried by the gate of node packs: run playbooks/lock.yml with this inventory"
        elif found["verdict"] == "passes":
            said = "the gate of node packs found nothing that refuses it"
            said += (
                f"; accepted: {', '.join(one['accepted'] for one in found['accepted'])}" if found["accepted"] else ""
            )
        else:
            said = f"the gate of node packs refuses it, and it is installed since you name it: it {found['why']}"
        if found.get("commit") == entry.get("commit") and found.get("comfyui") != comfyui:
            said += " (tried on another commit of ComfyUI)"
        notes.append(f"custom_nodes_extra: {name}: {said}")
    return notes
