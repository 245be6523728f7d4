"""CivitAI: from the id of a model version to a file with its name, folder, size and sha256."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.files import Wanted, check_name
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.problems import Problem

API = "https://civitai.com"
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


def describe(wanted: Wanted, data: Mapping[str, Any], api: str) -> Wanted:
    """Fill in what the metadata of a version says."""
    file = _file(wanted, data)
    name = PurePosixPath(str(file.get("name") or "").replace("\\", "/")).name
    if not check_name(name):
        raise Problem("local", f"CivitAI names the file {name!r}, which is no plain file name")
    sha256 = str((file.get("hashes") or {}).get("SHA256") or "").lower()
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        sha256 = ""
    size = file.get("sizeKB")
    return replace(
        wanted,
        name=wanted.name or name,
        folder=wanted.folder or _folder(data),
        # fp=, format= and the like may miss the file that fileId names.
        urls=(f"{api.rstrip('/')}/api/download/models/{wanted.civitai}?fileId={int(file['id'])}",),
        # sizeKB is rounded, so it is good for plans only.
        about_bytes=round(size * 1024) if isinstance(size, (int, float)) else None,
        sha256=wanted.sha256 or sha256 or None,
    )


def _file(wanted: Wanted, data: Mapping[str, Any]) -> Mapping[str, Any]:
    files = [file for file in data.get("files") or [] if isinstance(file, Mapping) and file.get("id")]
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
    kind = str((data.get("model") or {}).get("type") or "")
    if not kind:
        # urn:air:<base>:<type>:civitai:<model>@<version>
        parts = str(data.get("air") or "").split(":")
        kind = parts[3] if len(parts) > 3 else ""
    folder = FOLDERS.get(kind.lower())
    if folder is None:
        raise Problem(
            "local", f"CivitAI calls this a {kind or 'file without a type'}, which has no folder; name one as folder"
        )
    return folder
