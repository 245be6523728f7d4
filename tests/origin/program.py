"""The engine as a process of its own, for tests that kill it."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import background
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.engine import LOCK
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.request import Wanted
from ansible_collections.wanmetal.comfyui.tests.origin.house import House


@cache
def packed() -> bytes:
    """Build the program once."""
    return background.build()


def start(house: House, wanted: Sequence[Wanted], **changes: Any) -> subprocess.Popen[bytes]:
    """Start a run, as the service does."""
    job = {
        "files": [{**vars(item), "urls": list(item.urls)} for item in wanted],
        "dest": str(house.root),
        "state_dir": str(house.state),
        "list": "models",
        "connections": 4,
        "parallel": 4,
        "limit": "",
        "reserve": "",
        "tries": 6,
        "pause": 0.01,
        "prune": False,
        "allow_unverified": False,
        "verify": "state",
        "wait": 20,
        **{key: value for key, value in changes.items() if key in {"connections", "parallel", "tries"}},
    }
    folder = house.state.parent
    order = folder / f"job-{secrets.token_hex(4)}.json"
    order.write_text(json.dumps(job), encoding="utf-8")
    (folder / "wanmetal-models").write_bytes(packed())
    return subprocess.Popen(
        [sys.executable, folder / "wanmetal-models", "run", order],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def children(house: House) -> list[int]:
    """The processes called aria2c that hold the lock of this house."""
    lock = house.state / LOCK
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "comm").read_text().strip() == "aria2c" and any(
                handle.readlink() == lock for handle in (entry / "fd").iterdir()
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    return found
