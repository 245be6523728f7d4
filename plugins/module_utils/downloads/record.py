"""The record of what was verified, so that an unchanged file is never read again; and the hashes that verify it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import read_regular, write_whole

NAME = "verified.json"
_OLD_NAME = "proven.json"
_VERSION = 1
_CHUNK = 4 * 1024 * 1024


@dataclass(frozen=True)
class Proof:
    """One verified file: what it was like then, and by what it was verified."""

    id: str
    owner_list: str
    size: int
    mtime_ns: int
    inode: int
    sha256: str
    by: str
    """``catalogue``: a sha256 known before; ``host``: one that the host states; ``size``: the size alone."""
    archive: str = ""
    """sha256 of the archive that the file came out of."""

    def __post_init__(self) -> None:
        """Refuse what is of another type: the record lies where others than root can write."""
        if any(type(getattr(self, one.name)).__name__ != one.type for one in fields(self)):
            raise TypeError("this is no record of a file")

    def fits(self, found: os.stat_result) -> bool:
        """Say whether the file is untouched since."""
        return (found.st_size, found.st_mtime_ns, found.st_ino) == (self.size, self.mtime_ns, self.inode)


class Record:
    """All proofs of a host, by absolute path, and what was measured."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / NAME
        self._old = folder / _OLD_NAME
        self.proofs: dict[str, Proof] = {}
        self.rate: float | None = None
        try:
            data = json.loads(self._text())
            if data["version"] == _VERSION:
                self.proofs = {path: Proof(**proof) for path, proof in data["files"].items()}
                self.rate = float(data["rate"]) if data["rate"] else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            # Without a readable record everything is verified anew, which is slow and right.
            self.proofs = {}

    def _text(self) -> bytes:
        try:
            return read_regular(self._file)
        except FileNotFoundError:
            return read_regular(self._old)

    def adopt(self) -> None:
        """Write the record under its name where an earlier version has left another."""
        if self.proofs and not self._file.exists():
            self.save()
            self._old.unlink(missing_ok=True)

    def untouched(self, path: Path) -> Proof | None:
        """Return the proof of a file that is as it was when it was verified."""
        proof = self.proofs.get(str(path))
        try:
            return proof if proof and proof.fits(path.stat()) else None
        except OSError:
            return None

    def of(self, id_: str, owner_list: str) -> list[tuple[Path, Proof]]:
        """Return the files that came from one entry."""
        return [
            (Path(path), proof)
            for path, proof in self.proofs.items()
            if proof.id == id_ and proof.owner_list == owner_list
        ]

    def add(self, path: Path, *, id_: str, owner_list: str, sha256: str, by: str, archive: str = "") -> None:
        """Remember a verified file, at once and for good."""
        found = path.stat()
        self.proofs[str(path)] = Proof(
            id_, owner_list, found.st_size, found.st_mtime_ns, found.st_ino, sha256, by, archive
        )
        self.save()

    def forget(self, path: Path) -> None:
        """Drop a file."""
        if self.proofs.pop(str(path), None):
            self.save()

    def save(self) -> None:
        """Write the record so that a crash leaves the old or the new one."""
        data: dict[str, Any] = {
            "version": _VERSION,
            "rate": self.rate,
            "files": {path: asdict(proof) for path, proof in sorted(self.proofs.items())},
        }
        write_whole(self._file, json.dumps(data, indent=1) + "\n")


def reread(
    record: Record, owner_list: str | None, report: Callable[[int, int], None] = lambda _done, _total: None
) -> list[dict[str, str]]:
    """Hash all recorded files of a list (or of all); return those that are not what they were."""
    files = [
        (Path(path), proof)
        for path, proof in record.proofs.items()
        if owner_list in {None, proof.owner_list} and Path(path).exists()
    ]
    total, done = sum(proof.size for _path, proof in files), 0
    wrong: list[dict[str, str]] = []
    with ThreadPoolExecutor(max_workers=2) as pool:
        for (path, proof), found in zip(files, pool.map(lambda item: _hash(item[0]), files), strict=True):
            done += proof.size
            report(done, total)
            if found != proof.sha256:
                wrong.append({"path": str(path), "found": found, "expected": proof.sha256})
            elif not record.untouched(path):
                # Touched, and the same bytes.
                record.add(path, **kept(proof))
    return wrong


def kept(proof: Proof) -> dict[str, str]:
    """Return what stays of a proof when the file is looked at again."""
    return {
        "id_": proof.id,
        "owner_list": proof.owner_list,
        "sha256": proof.sha256,
        "by": proof.by,
        "archive": proof.archive,
    }


def _hash(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        return f"unreadable ({error.strerror})"


class Follower(threading.Thread):
    """Hashes a growing file as far as it is told that the file is complete."""

    def __init__(self, path: Path, done: Callable[[Follower, str | Exception], None]) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._done = done
        self._news = threading.Condition()
        self._limit = 0
        self._last = False
        self._stopped = False

    def reach(self, limit: int, *, last: bool = False) -> None:
        """Say how much of the front is complete, and whether that is all."""
        with self._news:
            if limit > self._limit or last:
                self._limit = max(limit, self._limit)
                self._last = self._last or last
                self._news.notify()

    def stop(self) -> None:
        """Give up; nothing is reported."""
        with self._news:
            self._stopped = True
            self._news.notify()

    def _wait(self, offset: int) -> int:
        with self._news:
            self._news.wait_for(lambda: self._stopped or self._last or self._limit > offset)
            return -1 if self._stopped else self._limit

    def run(self) -> None:
        """Follow the file; see the class."""
        try:
            result: str | Exception = self._hash()
        except Exception as error:  # a thread that does not report would be waited for, for ever
            result = error
        if not self._stopped:
            self._done(self, result)

    def _hash(self) -> str:
        digest = hashlib.sha256()
        offset = 0
        handle = -1
        try:
            while (limit := self._wait(offset)) >= 0:
                if handle < 0:
                    handle = _opened(self._path)
                while offset < limit and not self._stopped:
                    data = os.pread(handle, min(_CHUNK, limit - offset), offset)
                    if not data:
                        break
                    digest.update(data)
                    offset += len(data)
                if self._last and limit == self._limit:
                    # Verified bytes must outlive a power cut before they get their name.
                    os.fsync(handle)
                    break
        finally:
            if handle >= 0:
                os.close(handle)
        return digest.hexdigest()


def sha256(path: Path) -> str:
    """Hash a whole file."""
    with os.fdopen(_opened(path), "rb") as stream:
        digest = hashlib.sha256()
        while data := stream.read(_CHUNK):
            digest.update(data)
    return digest.hexdigest()


def _opened(path: Path) -> int:
    """Open a file, and not a pipe, which would be waited for."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return handle
