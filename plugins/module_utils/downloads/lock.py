"""One download at a time on a host."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

NAME = "lock"


class BusyError(Exception):
    """Another download holds the lock; the text says which."""


@contextlib.contextmanager
def exclusive(state_dir: Path, wait_s: float = 0.0) -> Iterator[int]:
    """Hold the lock of a state folder; yield its handle."""
    handle = os.open(state_dir / NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + wait_s
        while not _taken(handle):
            if time.monotonic() >= deadline:
                raise BusyError(holder(handle))
            time.sleep(min(1.0, max(0.05, deadline - time.monotonic())))
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"pid": os.getpid(), "since": int(time.time())}).encode(), 0)
        yield handle
    finally:
        os.close(handle)


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(handle: int) -> str:
    """Say who wrote into the lock."""
    try:
        data = json.loads(os.pread(handle, 200, 0))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(data["since"]))
        return f"process {data['pid']}, since {since}"
    except (ValueError, KeyError, TypeError):
        return "an unknown process"
