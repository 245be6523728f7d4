"""Handing a list to a systemd service."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import program
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.acting import acting_as
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.state import write_whole

# What the program reads from its job file; the rest is for the module.
_ORDER = (
    *("files", "dest", "state_dir", "list", "tokens", "peers", "civitai_api", "connections", "parallel", "limit"),
    *("reserve", "tries", "pause", "verify", "prune", "allow_unproven"),
)
_LONG_S = 7 * 24 * 3600


class ServiceError(Exception):
    """systemd did not do what it was asked."""


def state(path: str | None) -> str:
    """Say whether the program in its place is missing, outdated or current; empty without a place."""
    if not path:
        return ""
    if not Path(path).is_file():
        return "missing"
    return "current" if Path(path).read_bytes() == program.build() else "outdated"


def install(path: str) -> None:
    """Put the program in its place."""
    place = Path(path)
    new = place.with_name(f".{place.name}.new")
    new.write_bytes(program.build())
    new.chmod(0o755)
    new.replace(place)


def start(job: Path, unit: str, user: str, params: Mapping[str, Any]) -> bool:
    """Write the order and start the service; say whether that changed anything."""
    # The service waits for a run that holds the lock, however long it takes.
    text = json.dumps({**{key: params[key] for key in _ORDER}, "wait": _LONG_S}, indent=1, sort_keys=True) + "\n"
    same = job.is_file() and job.read_text(encoding="utf-8") == text
    if not same:
        # It holds the tokens: only the user that fetches may read it.
        with acting_as(user):
            write_whole(job, text, 0o600)
    active = _systemctl("show", "--property=ActiveState", "--value", unit)
    if same and active in {"active", "activating"}:
        return False
    _systemctl("restart", "--no-block", unit)
    return True


def _systemctl(*arguments: str) -> str:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServiceError(f"systemctl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()
