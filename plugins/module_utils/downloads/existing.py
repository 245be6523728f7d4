"""Files that a host has already, such as those of an earlier ComfyUI: found by size or name, verified, and linked."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.record import Record, sha256
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.request import Request, Wanted
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import (
    FileError,
    as_user,
    exclusive,
    opened_folder,
    opened_regular,
    sync_folder,
)

_FOR_ALL = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
_CANNOT_BE_LINKED = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES}


@dataclass(frozen=True)
class Candidate:
    """A file that may be a wanted one; its path has no links in it."""

    path: Path
    size: int
    device: int
    mode: int

    def linkable_to(self, device: int) -> bool:
        """Whether a second name costs no space, and all services can read what it names."""
        return self.device == device and self.mode & _FOR_ALL == _FOR_ALL


def below(folder: Path) -> Iterator[tuple[Path, Candidate]]:
    """Walk a folder, its links to files and folders included; yield names and what they lead to."""
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        top, folders = waiting.pop(), []
        # What is gone, leads in a circle or has too long a path is left out.
        with contextlib.suppress(OSError):
            found = top.stat()
            if (found.st_dev, found.st_ino) in seen:
                continue
            seen.add((found.st_dev, found.st_ino))
            for path in sorted(top.iterdir()):
                with contextlib.suppress(OSError):
                    about = path.stat()
                    if stat.S_ISDIR(about.st_mode):
                        folders.append(path)
                    elif stat.S_ISREG(about.st_mode) and about.st_size:
                        real = Path(os.path.realpath(path, strict=True))
                        yield path, Candidate(real, about.st_size, about.st_dev, about.st_mode)
        waiting += reversed(folders)


class Existing:
    """What lies in the folders that the settings name."""

    def __init__(self, folders: Sequence[str]) -> None:
        self._by_size: Mapping[int, list[tuple[str, Candidate]]] = defaultdict(list)
        self._by_name: Mapping[str, list[tuple[str, Candidate]]] = defaultdict(list)
        for folder in folders:
            for path, candidate in below(Path(folder)):
                self._by_size[candidate.size].append((path.name, candidate))
                self._by_name[path.name].append((path.name, candidate))

    def candidates(self, wanted: Wanted) -> list[Candidate]:
        """Files that may be this one, those of its name first. Without a known sha256 none can be told to be."""
        if not wanted.sha256 or not wanted.placed:
            return []
        found = self._by_size[wanted.bytes] if wanted.bytes else self._by_name[wanted.name]
        ordered = sorted(found, key=lambda one: one[0] != wanted.name)
        return list(dict.fromkeys(candidate for _name, candidate in ordered))


def take_over(request: Request, wanted: Sequence[Wanted], lock: Path) -> dict[str, str]:
    """Give those of the files that are there their names; return how each came, by its path.

    Root reads and links, since the files are other people's; what lies in the folders of models is their user's.
    """
    if not wanted:
        return {}
    taken: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        with _rights(request):
            stack.enter_context(exclusive(lock, request.wait_s))
            record = Record(request.settings.state_dir)
        existing = Existing(request.settings.existing)
        hashes: dict[Path, str] = {}
        for item in wanted:
            place = request.settings.root / item.path
            for candidate in existing.candidates(item):
                # A file that has changed or gone since it was listed is fetched instead.
                with contextlib.suppress(FileNotFoundError, FileError), opened_regular(candidate.path) as handle:
                    opened = Path(f"/proc/self/fd/{handle}")
                    digest = hashes[candidate.path] = hashes.get(candidate.path) or sha256(opened)
                    if digest != item.sha256 or place.exists():
                        continue
                    with _rights(request):
                        place.parent.mkdir(parents=True, exist_ok=True)
                    how = "linked" if _linked(candidate, opened, place) else "copied"
                    with _rights(request):
                        if how == "copied":
                            _copy(handle, place)
                        sync_folder(place.parent)
                        list_ = request.settings.owner_list
                        record.add(place, id_=item.id, owner_list=list_, sha256=digest, by="catalogue")
                    taken[str(place)] = f"{item.path} is {how} from {candidate.path}"
                    break
    return taken


def _rights(request: Request) -> contextlib.AbstractContextManager[None]:
    return as_user(request.user) if request.user else contextlib.nullcontext()


def _linked(candidate: Candidate, opened: Path, place: Path) -> bool:
    with opened_folder(place.parent) as folder:
        if not candidate.linkable_to(os.fstat(folder).st_dev):
            return False
        try:
            # The very file that was hashed, whatever has its name by now.
            os.link(opened, place.name, dst_dir_fd=folder, follow_symlinks=True)
        except OSError as error:
            if error.errno in _CANNOT_BE_LINKED:
                return False
            raise
    return True


def _copy(handle: int, place: Path) -> None:
    os.lseek(handle, 0, os.SEEK_SET)
    draft = place.with_name(f".{place.name}.{secrets.token_hex(4)}.part")
    try:
        with os.fdopen(handle, "rb", closefd=False) as source, draft.open("xb") as target:
            shutil.copyfileobj(source, target, 16 * 1024 * 1024)
            target.flush()
            os.fsync(target.fileno())
        draft.chmod(0o644)
        draft.rename(place)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
