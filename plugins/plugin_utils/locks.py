"""The pinned sources and versions under files/locks, or an operator's own."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

SHIPPED = Path(__file__).resolve().parents[2] / "files" / "locks"

# The catalogue of models takes libyaml a tenth of the time, and not every PyYAML has it.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NAME = re.compile(r"[a-z0-9_-]+(/[A-Za-z0-9_.-]+)*")


class LockError(Exception):
    """A lock that cannot be found or read."""


def find(name: str, own_dir: str = "") -> Path:
    """Return the file of a lock: the operator's own where there is one, else the shipped one."""
    if not _NAME.fullmatch(name) or ".." in name.split("/"):
        raise LockError(f"{name!r} is no name of a lock. Name one like upstream or python/base-cu128.txt")
    file = name if name.endswith(".txt") else f"{name}.yml"
    folders = [SHIPPED]
    if own_dir:
        own = Path(own_dir).expanduser()
        if not os.path.isdir(own):  # noqa: PTH112 (a Path raises where a name is too long)
            raise LockError(f"wanmetal_locks_dir names {own_dir}, which is no folder on the controller")
        folders.insert(0, own)
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
    raise LockError(
        f"there is no lock {file} in {' or '.join(str(folder) for folder in folders)}. "
        "Make it with playbooks/lock.yml, or choose a variant, CUDA version and Python version that has one"
    )


def load(name: str, own_dir: str = "") -> dict[str, Any]:
    """Return the data of a YAML lock."""
    path = find(name, own_dir)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 (both are the safe one)
    except (ValueError, yaml.YAMLError) as error:
        raise LockError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise LockError(f"{path} must hold a mapping, found {type(data).__name__}")
    return data
