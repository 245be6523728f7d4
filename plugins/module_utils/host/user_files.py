"""Files that are placed for users, and that belong to them from the moment they change one."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import pwd
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import (
    FileError,
    as_user,
    read_regular,
    write_whole,
)

BROWSER = "user/default/workflows"
"""Where ComfyUI's browser page looks for workflows, below the data folder."""

GALLERY = "gallery"
"""Where it finds templates with their pictures, below the data folder."""


class UserFilesError(Exception):
    """What keeps files from being placed, with what to do."""


@dataclass
class Changes:
    """Paths by what is done with them. ``kept`` are users' own by now; nothing is done with them."""

    add: list[str] = field(default_factory=list)
    renew: list[str] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    @property
    def any(self) -> bool:
        """Whether anything is to be done."""
        return bool(self.add or self.renew or self.remove)


def pack(files: Mapping[str, bytes]) -> str:
    """Pack files by their paths into a text, the same contents once."""
    contents = list(dict.fromkeys(data for _unused, data in sorted(files.items())))
    places = {data: index for index, data in enumerate(contents)}
    listed = {
        "files": {path: places[data] for path, data in sorted(files.items())},
        "contents": [base64.b64encode(data).decode() for data in contents],
    }
    return base64.b64encode(zlib.compress(json.dumps(listed).encode(), 9)).decode()


def unpack(text: str) -> dict[str, bytes]:
    """Unpack what ``pack`` has made. Paths that lead elsewhere are refused."""
    if not text:
        return {}
    try:
        listed = json.loads(zlib.decompress(base64.b64decode(text, validate=True)))
        contents = [base64.b64decode(data, validate=True) for data in listed["contents"]]
        files = {str(path): contents[index] for path, index in listed["files"].items()}
    except (ValueError, zlib.error, AttributeError, KeyError, IndexError, TypeError) as error:
        raise UserFilesError(f"the archive cannot be read: {error}") from error
    for path in files:
        if path.startswith("/") or ".." in path.split("/"):
            raise UserFilesError(f"the archive holds {path!r}, which leads out of the folder")
    return files


def digest(data: bytes) -> str:
    """Return the hash by which a file is known again."""
    return hashlib.sha256(data).hexdigest()


def decide(wanted: Mapping[str, str], placed: Mapping[str, str], found: Mapping[str, str | None]) -> Changes:
    """Compare hashes: those that are wanted, those that were placed once, and those that are there."""
    changes = Changes()
    for path in sorted({*wanted, *placed}):
        new, old, here = wanted.get(path), placed.get(path), found.get(path)
        if here == new:
            continue
        if here is None:
            changes.add.append(path)
        elif here != old:
            if new is not None:
                changes.kept.append(path)
        elif new is None:
            changes.remove.append(path)
        else:
            changes.renew.append(path)
    return changes


def place(root: Path, archive: str, state: Path, user: str, *, check: bool) -> Changes:
    """Place files below ``root`` as ``user``, and remember in ``state`` which they were."""
    files = unpack(archive)
    placed = _remembered(state)
    if not files and not placed:
        return Changes()
    wanted = {path: digest(data) for path, data in files.items()}
    if check and not _exists(user):  # a host that a deploy has still to make
        return decide(wanted, placed, {})
    with as_user(user):
        found = {path: _hash(root / path) for path in {*wanted, *placed}}
    changes = decide(wanted, placed, found)
    if check:
        return changes
    with as_user(user):
        for path in [*changes.add, *changes.renew]:
            _write(root / path, files[path])
        for path in changes.remove:
            (root / path).unlink(missing_ok=True)
    # a file that a user has changed is known by what was placed, so that it counts as changed later, too
    now = {path: placed[path] if path in changes.kept and path in placed else hash_ for path, hash_ in wanted.items()}
    if now != placed:
        _remember(state, now)
    return changes


def untouched(root: Path, state: Path) -> dict[str, bytes]:
    """Return the files that are as they were placed, by their paths."""
    found = {}
    for path, hash_ in _remembered(state).items():
        with contextlib.suppress(OSError):
            if digest(data := read_regular(root / path)) == hash_:
                found[path] = data
    return found


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _remembered(state: Path) -> dict[str, str]:
    try:
        data = json.loads(read_regular(state))
        return {str(path): str(hash_) for path, hash_ in data["files"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserFilesError(
            f"{state} is damaged ({error}). Remove it; files that are there stay as they are"
        ) from error


def _remember(state: Path, files: Mapping[str, str]) -> None:
    if files:
        write_whole(state, json.dumps({"files": dict(sorted(files.items()))}, indent=1))
    else:
        state.unlink(missing_ok=True)


def _hash(path: Path) -> str | None:
    """Hash of a file; empty for what nobody but its user can have put there, and which is kept."""
    try:
        return digest(read_regular(path))
    except FileNotFoundError:
        return None
    except FileError:
        return ""
    except OSError as error:
        raise UserFilesError(f"{path} cannot be read: {error.strerror}") from error


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data, 0o640)
    except OSError as error:
        raise UserFilesError(f"{path} cannot be written: {error.strerror}") from error
