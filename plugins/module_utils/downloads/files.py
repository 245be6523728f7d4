"""The files that are wanted, and what is known of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.urls import check

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Wanted:
    """One file: where it belongs, where it can be had, what proves it."""

    id: str
    folder: str
    name: str = ""
    """Empty for a CivitAI version until its metadata is known."""
    urls: tuple[str, ...] = ()
    bytes: int | None = None
    about_bytes: int | None = None
    sha256: str | None = None
    civitai: int | None = None
    file_id: int | None = None

    @property
    def placed(self) -> bool:
        """Whether name and folder are known: a CivitAI version tells them later."""
        return bool(self.name and self.folder)

    @property
    def path(self) -> str:
        """Path below the models folder."""
        return str(PurePosixPath(self.folder) / self.name)

    @property
    def guess(self) -> int:
        """Size for plans: known, estimated, or 0."""
        return self.bytes or self.about_bytes or 0


def parse(entry: Mapping[str, Any]) -> Wanted:
    """Check an entry; an error names the file and the field."""
    where = f"file {entry.get('id') or entry.get('name') or entry.get('civitai') or 'without a name'}"
    civitai = entry.get("civitai")
    name = entry.get("name") or ""
    if not name and civitai is None:
        raise ValueError(f"{where}: name is missing")
    if name and not check_file_name(name):
        raise ValueError(f"{where}: name must be a plain file name, found {name!r}")
    folder = entry.get("folder") or ""
    parts = PurePosixPath(folder).parts
    if (not parts and civitai is None) or folder.startswith("/") or not all(check_name(p) for p in parts):
        raise ValueError(f"{where}: folder must be a path below the models folder, like loras, found {folder!r}")
    given = entry.get("urls") or ()
    try:
        urls = tuple(check(url) for url in ([given] if isinstance(given, str) else given))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not urls and civitai is None:
        raise ValueError(f"{where}: urls is missing, and there is no CivitAI version either")
    sha256 = entry.get("sha256")
    if sha256 is not None and not _SHA256.fullmatch(str(sha256).lower()):
        raise ValueError(f"{where}: sha256 must have 64 hexadecimal digits, found {sha256!r}")
    for key in ("bytes", "about_bytes", "civitai", "file_id"):
        value = entry.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value <= 0):
            raise ValueError(f"{where}: {key} must be a whole number above 0, found {value!r}")
    return Wanted(
        id=str(entry.get("id") or name or f"civitai-{civitai}"),
        folder=folder,
        name=name,
        urls=urls,
        bytes=entry.get("bytes"),
        about_bytes=entry.get("about_bytes"),
        sha256=str(sha256).lower() if sha256 else None,
        civitai=civitai,
        file_id=entry.get("file_id"),
    )


def parse_all(entries: Iterable[Mapping[str, Any]]) -> list[Wanted]:
    """Check a list; each place may be claimed once."""
    found = [parse(entry) for entry in entries]
    places: dict[str, str] = {}
    for item in found:
        key = item.path if item.placed else f"civitai {item.civitai}/{item.file_id}"
        if key in places:
            raise ValueError(f"files {places[key]} and {item.id} both claim {key}")
        places[key] = item.id
    return found


def check_file_name(name: str) -> bool:
    """Say whether a file may have this name; some endings are those of unfinished downloads."""
    return check_name(name) and not name.endswith((".rejected", ".part", ".aria2"))


def check_name(name: str) -> bool:
    """Say whether this is one plain, visible name of a path."""
    return bool(name) and not name.startswith(".") and "/" not in name and "\\" not in name and name.isprintable()
