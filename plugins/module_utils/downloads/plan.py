"""What a host has of the wanted files, and what a run would do and cost. Nothing is changed, nothing is hashed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.errors import from_any
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.existing import Existing
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.record import Record
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.request import Request, Settings, Wanted
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.sources import ask
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import size

PART = ".part"
REJECTED = ".rejected"
_TAG = 8


@dataclass
class Found:
    """One wanted file as it is now."""

    id: str
    path: str
    status: str
    """``verified``, ``unverified`` (there, but never hashed, or touched since), ``existing`` (in a folder that the
    settings name, to be verified), ``partial`` or ``missing``."""
    bytes: int | None
    present: int = 0
    """Bytes of it that are on the disk."""
    source: str = ""
    """Where an ``existing`` one lies."""
    written: int = 0
    """Bytes that a copy of it takes; a link takes none."""

    @property
    def missing(self) -> int:
        """Bytes to fetch, as far as the size is known."""
        there = self.status in {"verified", "unverified", "existing"}
        return 0 if there else max(0, (self.bytes or 0) - self.present)


def look_at(wanted: Wanted, root: Path, record: Record, owner_list: str) -> Found:
    """Look at one file."""
    members = record.of(wanted.id, owner_list)
    known = all(proof.archive or wanted.name in {"", path.name} for path, proof in members)
    if members and known and (not wanted.placed or all(proof.archive for _path, proof in members)):
        # A CivitAI version is known by its id; an archive by what came out of it.
        same = all(record.untouched(path) for path, _proof in members)
        pinned = not wanted.sha256 or any(wanted.sha256 in {proof.sha256, proof.archive} for _path, proof in members)
        if same and pinned:
            size = sum(proof.size for _path, proof in members)
            return Found(wanted.id, str(members[0][0]), "verified", size, size)
    path = root / wanted.path
    if not wanted.placed:
        return Found(wanted.id, str(root / wanted.folder), "missing", wanted.guess or None)
    proof = record.untouched(path)
    if proof and still_valid(proof.sha256, proof.by, wanted):
        return Found(wanted.id, str(path), "verified", proof.size, proof.size)
    if path.exists():
        return Found(wanted.id, str(path), "unverified", path.stat().st_size, path.stat().st_size)
    have = sum(allocated(part) for part in parts(path))
    return Found(wanted.id, str(path), "partial" if have else "missing", wanted.guess or None, have)


def still_valid(sha256: str, by: str, wanted: Wanted) -> bool:
    """Say whether a remembered proof is what the entry asks for today."""
    return sha256 == wanted.sha256 if wanted.sha256 else by in {"catalogue", "host", "size"}


def parts(path: Path) -> Iterator[Path]:
    """Find what broken downloads have left of a file."""
    front = f".{path.name}."
    length = len(front) + _TAG + len(PART)
    try:
        for entry in os.scandir(path.parent):
            if entry.name.startswith(front) and entry.name.endswith(PART) and len(entry.name) == length:
                yield Path(entry.path)
    except OSError:
        return


def tag(sha256: str | None, size: int | None, version: str = "") -> str:
    """Return the part of a temporary name that ties it to these very bytes."""
    if version and not sha256:
        sha256 = hashlib.sha256(f"{size} {version}".encode()).hexdigest()
    return (sha256 or f"s{size or 0:07x}")[:_TAG]


def allocated(path: Path) -> int:
    """Return the bytes that a file takes on the disk; its length says nothing while it has holes."""
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


def standing(path: Path) -> Path:
    """Return the nearest folder that exists."""
    while not path.exists():
        path = path.parent
    return path


def free(path: Path) -> int:
    """Return the bytes that may be written where a path is or will be."""
    stat = os.statvfs(standing(path))
    return stat.f_bavail * stat.f_frsize


def disks(found: Sequence[Found], reserve: int, free_at: Callable[[Path], int] = free) -> list[dict[str, Any]]:
    """Sum up by file system: bytes needed, temporary ones and the reserve included, and bytes free."""
    by_device: dict[int, dict[str, Any]] = {}
    for item in found:
        folder = standing(Path(item.path).parent)
        device = folder.stat().st_dev
        disk = by_device.setdefault(device, {"path": str(folder), "needed": 0, "free": free_at(folder)})
        # An archive is unpacked beside itself.
        disk["needed"] += item.missing * (2 if item.path.endswith(".zip") else 1) + item.written
    for disk in by_device.values():
        disk["reserve"] = reserve
        disk["left"] = disk["free"] - disk["needed"] - reserve
        disk["enough"] = disk["needed"] == 0 or disk["left"] >= 0
    return sorted(by_device.values(), key=lambda disk: str(disk["path"]))


def unwanted(wanted: Sequence[Wanted], root: Path, record: Record, owner_list: str) -> list[dict[str, Any]]:
    """List what this list once fetched, and what broken downloads left, that nothing asks for any longer."""
    ids = {item.id for item in wanted}
    paths = {str(root / item.path) for item in wanted if item.name}
    gone: list[dict[str, Any]] = []
    for path, proof in sorted(record.proofs.items()):
        if proof.owner_list == owner_list and proof.id not in ids and path not in paths and Path(path).exists():
            gone.append({"path": path, "bytes": proof.size})
    return gone


def summary(found: Sequence[Found], reserve: int, rate: float | None) -> dict[str, Any]:
    """Put a plan into numbers."""
    total = sum(item.bytes or 0 for item in found)
    missing = sum(item.missing for item in found)
    unknown = [item.id for item in found if item.bytes is None]
    by_disk = disks(found, reserve)
    return {
        "files": [{**asdict(item), "missing": item.missing} for item in found],
        "bytes_total": total,
        "bytes_missing": missing,
        "unknown_sizes": unknown,
        "disks": by_disk,
        "enough": all(disk["enough"] for disk in by_disk),
        "rate": rate,
    }


def look(request: Request, record: Record) -> list[Found]:
    """Look at all files, and for those that are missing in the folders that the settings name."""
    settings = request.settings
    found = [look_at(item, settings.root, record, settings.owner_list) for item in request.wanted]
    if settings.existing and any(item.status in {"missing", "partial"} for item in found):
        existing = Existing(settings.existing)
        for index, (wanted, item) in enumerate(zip(request.wanted, found, strict=True)):
            candidates = existing.candidates(wanted) if item.status in {"missing", "partial"} else []
            if candidates:
                one = candidates[0]
                linked = one.linkable_to(standing(Path(item.path).parent).stat().st_dev)
                found[index] = Found(
                    item.id, item.path, "existing", one.size, one.size, str(one.path), 0 if linked else one.size
                )
    return found


def make(request: Request) -> dict[str, Any]:
    """Look at the host, and ask for sizes that nobody has estimated."""
    settings = request.settings
    record = Record(settings.state_dir)
    found = look(request, record)
    notes = [
        f"there is no folder {path} with existing models here" for path in settings.existing if not Path(path).is_dir()
    ]
    unknown = [index for index, item in enumerate(found) if item.bytes is None and item.status == "missing"]
    if unknown:
        quick = replace(settings, timeout_s=min(10.0, settings.timeout_s), allow_unverified=True)
        with ThreadPoolExecutor(max_workers=8) as pool:
            sizes = pool.map(lambda index: _size(request.wanted[index], quick), unknown)
            for index, (path, size, problem) in zip(unknown, sizes, strict=True):
                found[index].bytes = size
                found[index].path = path or found[index].path
                if problem:
                    notes.append(f"{found[index].id}: {request.settings.tokens.hide(problem)}")
                named = [item.id for item in found if path and item.path == path]
                if len(named) > 1:
                    notes.append(f"{' and '.join(named)} would all be {path}; give each another name")
    gone = unwanted(request.wanted, settings.root, record, settings.owner_list)
    removed = [item["path"] for item in gone] if settings.prune else []
    coming = [item for item in summary(found, 0, None)["files"] if item["status"] in {"missing", "partial", "existing"}]
    return {
        **summary(found, settings.reserve, record.rate),
        "changed": bool(coming or removed),
        "unwanted": [] if settings.prune else gone,
        "removed": removed,
        "aria2c": shutil.which("aria2c") is not None,
        "notes": notes,
        "diff": diff(coming, removed),
    }


def _size(wanted: Wanted, settings: Settings) -> tuple[str, int | None, str]:
    """Ask for a size. A plan is made without it, too; what another attempt would not change is said already."""
    try:
        answer = ask(wanted, settings, peers=False)
    except Exception as error:
        problem = from_any(error)
        return "", None, str(problem) if problem.lasting else ""
    return str(settings.root / answer.wanted.path), answer.size, ""


def diff(coming: Sequence[Mapping[str, Any]], removed: Sequence[str]) -> dict[str, str]:
    """Show the files that come and go as a diff."""
    after = [f"{item['path']} {size(item['bytes'] or 0) if item['bytes'] else 'of unknown size'}" for item in coming]
    return {
        "before": "".join(f"{path}\n" for path in removed),
        "after": "".join(f"{line}\n" for line in after),
    }
