"""Folders as a node pack may leave them, which tests cannot make with paths alone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def deep(folder: Path, name: str, levels: int = 1200) -> Iterator[None]:
    """Folders in folders, more than Python calls itself and than a path may be long, with a file in the last."""
    handle = os.open(folder, os.O_RDONLY)
    for _unused in range(levels):
        os.mkdir("deep", dir_fd=handle)
        inner = os.open("deep", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=handle))
    os.close(handle)
    try:
        yield
    finally:  # which shutil cannot remove
        subprocess.run(["rm", "-r", str(folder / "deep")], check=True)
