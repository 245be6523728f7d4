"""What is asked for: the files, what each is known by, and how to fetch them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.urls import check, encoded, origin

CIVITAI = "https://civitai.com"
MIB = 1024 * 1024
_LONGEST_NAME = 230
"""What file systems take, less what is put around the name of a file while it is fetched."""
_SHA256 = re.compile(r"[0-9a-f]{64}")

_SIZE = re.compile(r"(\d+)([KMGT]?)")


@dataclass(frozen=True)
class Wanted:
    """One file: where it belongs, where it can be had, what verifies it."""

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


def parse_file(entry: Mapping[str, Any]) -> Wanted:
    """Check an entry; an error names the file and the field."""
    where = f"file {entry.get('id') or entry.get('name') or entry.get('civitai') or 'without a name'}"
    civitai = entry.get("civitai")
    for key in ("id", "name", "folder"):
        if not isinstance(entry.get(key) or "", str):
            raise ValueError(f"{where}: {key} must be a text, in quotes where it is a number, found {entry[key]!r}")  # noqa: TRY004
    name = entry.get("name") or ""
    if not name and civitai is None:
        raise ValueError(f"{where}: name is missing")
    if name and not check_file_name(name):
        raise ValueError(f"{where}: name must be a plain file name of {_LONGEST_NAME} bytes at most, found {name!r}")
    folder = entry.get("folder") or ""
    parts = PurePosixPath(folder).parts
    if (not parts and civitai is None) or folder.startswith("/") or not all(check_name(p) for p in parts):
        raise ValueError(f"{where}: folder must be a path below the models folder, like loras, found {folder!r}")
    given = entry.get("urls") or ()
    if not isinstance(given, str | list | tuple):
        raise ValueError(f"{where}: urls must be an address, or a list of them, found {given!r}")  # noqa: TRY004
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


def parse_files(entries: Iterable[Mapping[str, Any]]) -> list[Wanted]:
    """Check a list; each place may be claimed once."""
    found = [parse_file(entry) for entry in entries]
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
    plain = bool(name) and not name.startswith(".") and "/" not in name and "\\" not in name and name.isprintable()
    return plain and len(name.encode()) <= _LONGEST_NAME


class Tokens:
    """Tokens by host. A bare host name means https; ``http://host:port`` has to be written out."""

    def __init__(self, tokens: Mapping[str, str]) -> None:
        self._tokens: dict[str, str] = {}
        for host, given in tokens.items():
            # A vault's block of text ends with a line end.
            token = str(given or "").strip()
            if not (token.isascii() and token.isprintable()) or " " in token:
                raise ValueError(
                    f"the token of {host} (not shown) holds a line end, a space or a letter that HTTP cannot carry; "
                    "compare it with what the host showed when it was made"
                )
            try:
                key = origin(encoded(host if "://" in str(host) else f"https://{host}"))
            except ValueError as error:
                raise ValueError(f"tokens: {host!r} is no host: {error}") from None
            if token:
                self._tokens[key] = token

    def of(self, url: str) -> str:
        """Return the token for the host of a URL, or nothing."""
        return self._tokens.get(origin(url), "")

    def hide(self, text: str) -> str:
        """Take the tokens out of a text."""
        for token in self._tokens.values():
            text = text.replace(token, "********")
        return text


@dataclass(frozen=True)
class Settings:
    """How to fetch."""

    root: Path
    state_dir: Path
    owner_list: str = "models"
    tokens: Tokens = field(default_factory=lambda: Tokens({}))
    peers: tuple[str, ...] = ()
    existing: tuple[str, ...] = ()
    """Folders with files that may be wanted ones."""
    civitai_api: str = CIVITAI
    connections: int = 8
    parallel: int = 4
    split_from: int = 20 * MIB
    """Files of less than twice this get one connection."""
    follow_from: int = 256 * MIB
    """Files of this size are hashed while they come."""
    limit: int = 0
    """Bytes a second for all transfers together; 0 is no limit."""
    tries: int = 6
    """Attempts without progress before a file is given up."""
    pause_s: float = 2.0
    longest_wait_s: float = 900.0
    timeout_s: float = 30.0
    stall_s: float = 60.0
    reserve: int = 0
    prune: bool = False
    allow_unverified: bool = False


@dataclass(frozen=True)
class Request:
    """What to fetch, and how."""

    wanted: list[Wanted]
    settings: Settings
    read_again: bool
    wait_s: float
    user: str


def parse(params: Mapping[str, Any]) -> Request:
    """Check the parameters; an error names the one that is wrong."""
    for key, highest in (("connections", 16), ("parallel", 64)):
        if not 1 <= params[key] <= highest:
            raise ValueError(f"{key} must lie between 1 and {highest}, found {params[key]}")
    root = Path(params["dest"])
    settings = Settings(
        root=root,
        state_dir=Path(params["state_dir"]),
        owner_list=params["list"],
        tokens=Tokens(params.get("tokens") or {}),
        peers=tuple(params.get("peers") or ()),
        existing=tuple(params.get("existing") or ()),
        civitai_api=params.get("civitai_api") or CIVITAI,
        connections=params["connections"],
        parallel=params["parallel"],
        limit=size("limit", params["limit"]),
        tries=params["tries"],
        pause_s=params["pause"],
        reserve=size("reserve", params["reserve"]),
        prune=params["prune"],
        allow_unverified=params["allow_unverified"],
    )
    return Request(
        parse_files(params["files"]), settings, params["verify"] == "full", params["wait"], params.get("user") or ""
    )


def size(name: str, text: str) -> int:
    """Read a size like 50M (1024 based); empty is 0."""
    match = _SIZE.fullmatch(str(text or "0").upper())
    if not match:
        raise ValueError(f"{name} must be a number of bytes like 50M or 2G, found {text!r}")
    return int(match[1]) << 10 * " KMGT".index(match[2] or " ")
