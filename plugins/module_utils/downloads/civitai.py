"""CivitAI: from the id of a model version to a file with its name, folder, size and sha256."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.errors import Problem
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.request import Wanted, check_file_name

FOLDERS = {
    "checkpoint": "checkpoints",
    "lora": "loras",
    "locon": "loras",
    "dora": "loras",
    "textualinversion": "embeddings",
    "embedding": "embeddings",
    "vae": "vae",
    "controlnet": "controlnet",
    "upscaler": "upscale_models",
    "motionmodule": "animatediff_models",
    "hypernetwork": "hypernetworks",
}


def version_url(api: str, version: int) -> str:
    """Return the address of the metadata of a version."""
    return f"{api.rstrip('/')}/api/v1/model-versions/{version}"


def ask(wanted: Wanted, api: str, fetch: Callable[[str], Mapping[str, Any]]) -> Wanted:
    """Ask what a version holds; the id of a model is often taken for that of a version."""
    try:
        return describe(wanted, fetch(version_url(api, wanted.civitai or 0)), api)
    except Problem as problem:
        if problem.kind != "not_found":
            raise
        versions = _versions_of_model(wanted.civitai or 0, api, fetch)
        if not versions:
            raise
        raise Problem(
            "not_found", f"{wanted.civitai} is the id of a model of CivitAI, not of one of its versions: {versions}"
        ) from problem


def _versions_of_model(model: int, api: str, fetch: Callable[[str], Mapping[str, Any]]) -> str:
    try:
        listed = fetch(f"{api.rstrip('/')}/api/v1/models/{model}").get("modelVersions")
    except Problem:
        return ""
    versions = [_mapping(version) for version in (listed if isinstance(listed, list) else [])[:5]]
    return ", ".join(f"{version.get('id')} ({_text(version.get('name'))})" for version in versions)


def describe(wanted: Wanted, data: Mapping[str, Any], api: str) -> Wanted:
    """Fill in what the metadata of a version says."""
    file = _file(wanted, data)
    name = PurePosixPath(_text(file.get("name")).replace("\\", "/")).name
    if not wanted.name and not check_file_name(name):
        raise Problem("local", f"CivitAI names the file {name!r}, which is no plain file name; give it one as name")
    sha256 = _text(_mapping(file.get("hashes")).get("SHA256")).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        sha256 = ""
    return replace(
        wanted,
        name=wanted.name or name,
        folder=wanted.folder or _folder(data),
        # fp=, format= and the like may miss the file that fileId names.
        urls=(f"{api.rstrip('/')}/api/download/models/{wanted.civitai}?fileId={file['id']}",),
        # sizeKB is rounded, so it is good for plans only.
        about_bytes=_about_bytes(file.get("sizeKB")),
        sha256=wanted.sha256 or sha256 or None,
    )


def _file(wanted: Wanted, data: Mapping[str, Any]) -> Mapping[str, Any]:
    listed = data.get("files")
    files = [
        {**file, "id": int(str(file["id"]))}
        for file in (listed if isinstance(listed, list) else [])
        if isinstance(file, Mapping) and re.fullmatch(r"[1-9][0-9]{0,17}", str(file.get("id")))
    ]
    if not files:
        raise Problem("not_found", f"CivitAI version {wanted.civitai} holds no file (an archived model)")
    if wanted.file_id is not None:
        chosen = [file for file in files if file["id"] == wanted.file_id]
        if not chosen:
            known = ", ".join(f"{file['id']} ({file.get('name')})" for file in files)
            raise Problem("not_found", f"CivitAI version {wanted.civitai} has no file {wanted.file_id}; it has {known}")
    else:
        chosen = [file for file in files if file.get("primary")] or files[:1]
    return chosen[0]


def _folder(data: Mapping[str, Any]) -> str:
    kind = _text(_mapping(data.get("model")).get("type"))
    if not kind:
        # urn:air:<base>:<type>:civitai:<model>@<version>
        parts = _text(data.get("air")).split(":")
        kind = parts[3] if len(parts) > 3 else ""
    folder = FOLDERS.get(kind.lower())
    if folder is None:
        raise Problem(
            "local", f"CivitAI calls this a {kind or 'file without a type'}, which has no folder; name one as folder"
        )
    return folder


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _about_bytes(kib: object) -> int | None:
    good = isinstance(kib, (int, float)) and not isinstance(kib, bool) and 0 < kib < 2**40
    return max(1, round(kib * 1024)) if good else None  # type: ignore[operator]
