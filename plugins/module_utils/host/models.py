"""The model files of a host, each with what is wrong with it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import content
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import listed, opened_regular, readable

_MODELS = (content.SAFE, ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx")
_MOST, _DEEPEST = 5000, 64
"""Of files and folders that are looked at, and of folders in folders: far above what is made on purpose."""


def models(data: Path) -> list[dict[str, Any]]:
    """Models below a folder of data, each with path, bytes and problem."""
    return [
        {"path": readable(path.relative_to(data)), "bytes": info.st_size, "problem": _problem(path, info.st_size)}
        for path, info in regular_files(data / "models")
        if path.suffix.lower() in _MODELS or ".part" in path.name
    ]


def regular_files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Find the regular files below a folder of a service's, with no link followed, however deep and many they are."""
    left, waiting = _MOST, [folder]
    while waiting:
        inner = waiting.pop()
        with contextlib.suppress(OSError), listed(inner) as entries:
            for entry in entries:
                left -= 1
                if left < 0:
                    return
                with contextlib.suppress(OSError):
                    info = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(info.st_mode):
                        yield inner / entry.name, info
                    elif stat.S_ISDIR(info.st_mode) and len(inner.parts) < _DEEPEST:
                        waiting.append(inner / entry.name)


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
