"""From settings to the list of model files, and from what a host has to a plan that people can read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any
from urllib.parse import quote

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import request
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import duration
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import size as human
from ansible_collections.wanmetal.comfyui.plugins.module_utils.locks.mirrors import rewrite

PROFILES = ("small", "fp8", "full")
# In MiB, with some room: cards of 24 and 40 GB report a little less, above all with ECC.
_FP8_FROM = 22 * 1024
_FULL_FROM = 38 * 1024
_HUB = "https://huggingface.co"
_ASSUMED_RATE = 100_000_000

_REPO = re.compile(r"[^/\s?#:]+/[^/\s?#:]+")
_KEYS = {"id", "name", "folder", "url", "urls", "bytes", "about_bytes", "sha256", "civitai", "file_id"}
_HUB_KEYS = {"repo", "path", "revision"}
_FOR_THE_MODULE = ("name", "folder", "urls", "bytes", "about_bytes", "sha256", "civitai", "file_id")


def choose_profile(wanted: str, vram_mb: Sequence[int], *, cpu: bool) -> tuple[str, str]:
    """Return a profile and why: by the smallest card, since any of them may get the job."""
    if wanted != "auto":
        if wanted not in PROFILES:
            raise ValueError(f"wan_models_profile must be auto, {', '.join(PROFILES)}, found {wanted!r}")
        return wanted, "as set"
    if vram_mb:
        least = min(vram_mb)
        profile = "small" if least < _FP8_FROM else "fp8" if least < _FULL_FROM else "full"
        return profile, f"{least / 1024:.0f} GB of VRAM"
    if cpu:
        return "small", "no GPU is used"
    return "fp8", "the driver does not answer yet; a card of 24 GB is assumed"


def version_ids(name: str, value: object) -> list[int]:
    """Read CivitAI version ids from a list, or from text with commas."""
    entries = value if isinstance(value, list) else str(value if value is not None else "").split(",")
    ids: list[int] = []
    for entry in entries:
        text = str(entry).strip()
        if not text:
            continue
        if not re.fullmatch(r"[1-9][0-9]{0,17}", text):
            raise ValueError(f"{name} must list CivitAI version ids, which are numbers; found {text!r}")
        ids.append(int(text))
    return ids


def plan(
    catalogue: Mapping[str, Any],
    *,
    sets: Sequence[str] = (),
    files: Sequence[Any] = (),
    checkpoints: object = (),
    loras: object = (),
    versions: object = (),
    profile: str = "auto",
    vram_mb: Sequence[int] = (),
    cpu: bool = False,
    variant: str = "wan",
    mirrors: Sequence[Mapping[str, str]] = (),
    workflows: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Put the list of files together; each is there once, whoever wants it."""
    chosen, why = choose_profile(profile, vram_mb, cpu=cpu)
    names = list(dict.fromkeys(_texts("wan_models_sets", sets)))
    wanted: dict[str, dict[str, Any]] = {}
    table: list[dict[str, Any]] = []
    notes: list[str] = []
    for name in names:
        ids = files_of_set(catalogue, name, chosen, variant)
        own = _own(catalogue, name, chosen, variant)
        if not own:
            notes.append(f"the set {name} holds nothing for the profile {chosen}")
            continue
        table.append({"set": name, "ids": ids})
        for id_ in ids:
            wanted.setdefault(id_, {"id": id_, **catalogue["files"][id_]})
    extra = [
        *(_entry(catalogue, f"wan_models_files[{index}]", entry) for index, entry in enumerate(files)),
        *_versions("wan_models_checkpoints", checkpoints, "checkpoints"),
        *_versions("wan_models_loras", loras, "loras"),
        *_versions("id", versions, ""),
    ]
    for entry in extra:
        other = wanted.setdefault(entry["id"], entry)
        if any(other.get(key) != entry.get(key) for key in ("urls", "sha256", "civitai", "file_id")):
            raise ValueError(
                f"wan_models_files: two different files are both {entry['id']}; give one of them another name"
            )
    if extra:
        table.append({"set": "further files", "ids": [entry["id"] for entry in extra]})
    for workflow in workflows:
        ids = _of_workflow(catalogue, workflow, wanted, notes)
        table.append({"set": workflow["name"].rpartition("/")[2], "ids": ids})
    listed = [_for_module(entry, mirrors) for entry in wanted.values()]
    request.parse_files(listed)
    return {"profile": chosen, "profile_reason": why, "files": listed, "sets": table, "notes": notes}


def _of_workflow(
    catalogue: Mapping[str, Any], workflow: Mapping[str, Any], wanted: dict[str, dict[str, Any]], notes: list[str]
) -> list[str]:
    """Add what a workflow names; files of the operator's own go before those of its addresses."""
    name = workflow["name"]
    ids = list(workflow["ids"])
    for id_ in ids:
        wanted.setdefault(id_, {"id": id_, **catalogue["files"][id_]})
    for entry in workflow["entries"]:
        url = str(entry["url"])
        if not url.startswith(("https://", "http://")):
            raise ValueError(f"wan_models_workflows: {name}: the address of {entry['name']} must begin with https://")
        own = _entry(catalogue, f"wan_models_workflows: {name}", entry)
        place = f"{own['folder']}/{own['name']}"
        here = [id_ for id_, one in wanted.items() if f"{one.get('folder')}/{one.get('name')}" == place]
        wanted.setdefault(here[0] if here else own["id"], own)
        ids.append(here[0] if here else own["id"])
    there = {str(one.get("name")) for one in wanted.values()}
    strange = [model for model in workflow["unknown"] if model.replace("\\", "/").rpartition("/")[2] not in there]
    if strange:
        notes.append(
            f"{name} needs {', '.join(strange)}, whose address neither the catalogue nor the file knows: add an entry "
            "for each to wan_models_files, with name, folder and url, or place it on the host by other ways"
        )
    return list(dict.fromkeys(ids))


def _texts(name: str, values: Sequence[str]) -> list[str]:
    if isinstance(values, str) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{name} must be a list of names, found {values!r}")
    return list(values)


def _own(catalogue: Mapping[str, Any], name: str, profile: str, variant: str) -> list[str]:
    entry = catalogue["sets"].get(name)
    if entry is None:
        known = ", ".join(sorted(catalogue["sets"]))
        closest = _closest(name, catalogue["sets"])
        raise ValueError(f"wan_models_sets: there is no set {name!r}; there are {known}{closest}")
    further = entry.get("variants", {}).get(variant, {})
    return [*entry.get("files", []), *entry.get("profiles", {}).get(profile, []), *further.get(profile, [])]


def _closest(name: str, known: Iterable[str]) -> str:
    found = get_close_matches(name.lower(), known, 1)
    return f"; did you mean {found[0]}?" if found else ""


def files_of_set(catalogue: Mapping[str, Any], name: str, profile: str, variant: str = "wan") -> list[str]:
    """Return the files of a set and of all sets that it stands on, its own first."""
    ids = _own(catalogue, name, profile, variant)
    for needed in catalogue["sets"][name].get("needs", []):
        ids += files_of_set(catalogue, needed, profile, variant)
    return list(dict.fromkeys(ids))


def _entry(catalogue: Mapping[str, Any], where: str, entry: object) -> dict[str, Any]:
    """Turn an operator's own file into the catalogue's shape."""
    if isinstance(entry, str):
        if "/" in entry:
            raise ValueError(f"{where}: an address belongs in a mapping with name, folder and url")
        if entry not in catalogue["files"]:
            raise ValueError(f"{where}: the catalogue has no file {entry!r}{_closest(entry, catalogue['files'])}")
        return {"id": entry, **catalogue["files"][entry]}
    if not isinstance(entry, Mapping):
        raise TypeError(f"{where} must be the id of a catalogue file, or a mapping, found {type(entry).__name__}")
    unknown = sorted(map(str, set(entry) - _KEYS - _HUB_KEYS))
    if unknown:
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(sorted(_KEYS | _HUB_KEYS))}")
    own = {key: value for key, value in entry.items() if key in _KEYS and key != "url"}
    given = entry.get("urls") or []
    urls = list(given) if isinstance(given, list | tuple) else [given]
    if "url" in entry:
        urls.insert(0, entry["url"])
    if "repo" in entry or "path" in entry:
        repo, path = (str(entry.get(key) or "").strip().strip("/") for key in ("repo", "path"))
        if not (repo and path):
            raise ValueError(f"{where}: repo and path belong together")
        if {".", ".."}.intersection([*repo.split("/"), *path.split("/")]):
            raise ValueError(f"{where}: repo and path must lead down, found {repo}/{path}")
        if not _REPO.fullmatch(repo):
            raise ValueError(f"{where}: repo must be the owner and the name of a repository, like me/my-models")
        revision = quote(str(entry.get("revision") or "main"), safe="")
        urls.insert(0, f"{_HUB}/{quote(repo)}/resolve/{revision}/{quote(path)}")
        own.setdefault("name", path.rpartition("/")[2])
    own["urls"] = urls
    version, file_id = own.get("civitai"), own.get("file_id")
    fallback = (
        f"civitai-{version}{f'-{file_id}' if file_id else ''}" if version else f"{own.get('folder')}/{own.get('name')}"
    )
    own["id"] = str(own.get("id") or fallback)
    try:
        request.parse_file(own)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return own


def _versions(name: str, value: object, folder: str) -> Iterator[dict[str, Any]]:
    for version in version_ids(name, value or []):
        yield {"id": f"civitai-{version}", "civitai": version, "folder": folder, "urls": []}


def _for_module(entry: Mapping[str, Any], mirrors: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    listed = {"id": entry["id"], **{key: entry[key] for key in _FOR_THE_MODULE if entry.get(key) is not None}}
    listed["urls"] = [rewrite(url, mirrors) for url in entry.get("urls") or []]
    return listed


# -- what a host has of it


def on_host(planned: Mapping[str, Any], state: Mapping[str, Any], models_dir: str, rate: float = 0) -> dict[str, Any]:
    """Join a plan with what a host has, for people and for preflight's plan."""
    joined = with_state(planned, state, rate)
    return {**joined, "lines": lines(joined), "part": part(joined, models_dir)}


def with_state(planned: Mapping[str, Any], state: Mapping[str, Any], rate: float = 0) -> dict[str, Any]:
    """Join the plan with what the module found on the host."""
    found = {item["id"]: item for item in state["files"]}
    counted: set[str] = set()
    table = []
    for row in planned["sets"]:
        new = [id_ for id_ in row["ids"] if id_ not in counted]
        counted.update(new)
        table.append(
            {
                "set": row["set"],
                "files": len(row["ids"]),
                "bytes": sum(_bytes(found, id_) for id_ in row["ids"]),
                "shared": sum(_bytes(found, id_) for id_ in row["ids"] if id_ not in new),
                "missing": sum(found[id_]["missing"] for id_ in new if id_ in found),
            }
        )
    measured = rate or state.get("rate") or 0
    missing = state["bytes_missing"]
    return {
        **planned,
        "sets": table,
        "state": state["files"],
        "bytes_total": state["bytes_total"],
        "bytes_missing": missing,
        "bytes_written": sum(disk["needed"] for disk in state["disks"]),
        "notes": [*planned["notes"], *state.get("notes", [])],
        "missing": [item["id"] for item in state["files"] if item["status"] != "verified"],
        "unknown_sizes": state["unknown_sizes"],
        "disks": state["disks"],
        "enough": state["enough"],
        "aria2c": state.get("aria2c", True),
        "program": state.get("program", ""),
        "unwanted": state["unwanted"],
        "rate": measured or _ASSUMED_RATE,
        "rate_measured": bool(measured),
        "seconds": round(missing / (measured or _ASSUMED_RATE)) if missing else 0,
    }


def _bytes(found: Mapping[str, Mapping[str, Any]], id_: str) -> int:
    return int((found.get(id_) or {}).get("bytes") or 0)


def lines(plan_: Mapping[str, Any]) -> list[str]:
    """Write a plan with state for a terminal."""
    if not plan_["files"]:
        return ["no model files are asked for"]
    text = [f"profile {plan_['profile']} ({plan_['profile_reason']})"]
    rows = [
        (row["set"], str(row["files"]), human(row["bytes"]), human(row["shared"]), human(row["missing"]))
        for row in plan_["sets"]
    ]
    rows.append(("in all", str(len(plan_["files"])), human(plan_["bytes_total"]), "", human(plan_["bytes_missing"])))
    head = ("set", "files", "size", "shared", "to fetch")
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        text.append("  ".join(cells).rstrip())
    if plan_["bytes_missing"]:
        basis = "as measured on this host" if plan_["rate_measured"] else "assumed; nothing was measured here yet"
        text.append(f"about {duration(plan_['seconds'])} at {human(plan_['rate'])}/s ({basis})")
    for disk in plan_["disks"]:
        if disk["needed"]:
            after = f"{human(disk['left'])} after, besides {human(disk['reserve'])} in reserve"
            text.append(
                f"disk of {disk['path']}: {human(disk['free'])} free, {human(disk['needed'])} needed, "
                + (after if disk["enough"] else f"{human(-disk['left'])} too little")
            )
    unverified = [item["id"] for item in plan_["state"] if item["status"] == "unverified"]
    if unverified:
        text.append(f"there, and still to be verified: {', '.join(unverified)}")
    for item in plan_["state"]:
        if item["status"] == "existing":
            how = "copied" if item["written"] else "linked"
            text.append(f"{item['id']} is there, to be verified and {how}: {item['source']}")
    if plan_["unknown_sizes"]:
        text.append(f"of unknown size, not counted: {', '.join(plan_['unknown_sizes'])}")
    if plan_["unwanted"]:
        size = human(sum(item["bytes"] for item in plan_["unwanted"]))
        paths = ", ".join(item["path"] for item in plan_["unwanted"])
        text.append(f"no longer asked for, {size} (wan_models_prune: true removes them): {paths}")
    return [*text, *plan_["notes"]]


def part(plan_: Mapping[str, Any], models_dir: str) -> dict[str, Any]:
    """Return the part of preflight's plan."""
    existing = {item["id"] for item in plan_["state"] if item["status"] == "existing"}
    missing = set(plan_["missing"]) - existing
    entries = [entry for entry in plan_["files"] if entry["id"] in missing]
    first: dict[str, str] = {}
    for entry in entries:
        for url in entry["urls"][:1]:
            first.setdefault(re.sub(r"^(\w+://[^/]*).*", r"\1", url), url)
    sets = ", ".join(row["set"] for row in plan_["sets"] if row["missing"])
    what = f"{len(entries)} model files{f' of {sets}' if sets else ''}"
    fetch = [{"what": what, "url": "", "bytes": plan_["bytes_missing"]}] if entries else []
    return {
        "fetch": fetch,
        "disk": [{"path": models_dir, "bytes": plan_["bytes_written"], "why": "models", "files": len(entries)}],
        "urls": sorted(first.values()),
    }
