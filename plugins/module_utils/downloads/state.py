"""The record of what was proven, so that an unchanged file is never read again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

NAME = "proven.json"
_VERSION = 1


@dataclass(frozen=True)
class Proof:
    """One proven file: what it was like then, and by what it was proven."""

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

    def fits(self, stat: os.stat_result) -> bool:
        """Say whether the file is untouched since."""
        return (stat.st_size, stat.st_mtime_ns, stat.st_ino) == (self.size, self.mtime_ns, self.inode)


class Record:
    """All proofs of a host, by absolute path, and what was measured."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / NAME
        self.proofs: dict[str, Proof] = {}
        self.rate: float | None = None
        try:
            data = json.loads(self._file.read_text(encoding="utf-8"))
            if data["version"] == _VERSION:
                self.proofs = {path: Proof(**proof) for path, proof in data["files"].items()}
                self.rate = data["rate"]
        except (OSError, ValueError, KeyError, TypeError):
            # Without a readable record everything is proven anew, which is slow and right.
            self.proofs = {}

    def untouched(self, path: Path) -> Proof | None:
        """Return the proof of a file that is as it was when it was proven."""
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
        """Remember a proven file, at once and for good."""
        stat = path.stat()
        self.proofs[str(path)] = Proof(
            id_, owner_list, stat.st_size, stat.st_mtime_ns, stat.st_ino, sha256, by, archive
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


def write_whole(path: Path, text: str, mode: int = 0o644, *, sync: bool = True) -> None:
    """Replace a file by one that is complete."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
        if sync:
            stream.flush()
            os.fsync(stream.fileno())
    new.replace(path)
