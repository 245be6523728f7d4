"""The model files of a host, each with what is wrong with it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import content
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import opened_folder, opened_regular

_MODELS = (content.SAFE, ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx")
_MOST_FILES = 5000


def models(data: Path) -> list[dict[str, Any]]:
    """Models below a folder of data, each with path, bytes and problem."""
    return [
        {"path": str(path.relative_to(data)), "bytes": info.st_size, "problem": _problem(path, info.st_size)}
        for path, info in regular_files(data / "models")
        if path.suffix.lower() in _MODELS or ".part" in path.name
    ]


def regular_files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Find the regular files below a folder of a service's, with no link followed."""
    count = 0
    try:
        with opened_folder(folder) as handle:
            for inner, _folders, names, opened in os.fwalk(".", dir_fd=handle):
                for name in names:
                    count += 1
                    if count > _MOST_FILES:
                        return
                    with contextlib.suppress(OSError):
                        info = os.stat(name, dir_fd=opened, follow_symlinks=False)
                        if stat.S_ISREG(info.st_mode):
                            yield folder / inner / name, info
    except OSError:
        return


def _problem(path: Path, size: int) -> str:
    """Why a file cannot be a model; empty where it may be one."""
    if ".part" in path.name:
        return "unfinished"
    try:
        with opened_regular(path) as handle, os.fdopen(handle, "rb", closefd=False) as stream:
            why = content.problem(stream, size, path.name, hashed=False)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return why and f"it is {why}"
