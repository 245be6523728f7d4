"""Reading everything again that was proven once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.hashing import sha256
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.state import Proof, Record


def recheck(
    record: Record, owner_list: str | None, tell: Callable[[int, int], None] = lambda _done, _total: None
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
            tell(done, total)
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
