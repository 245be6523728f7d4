#!/usr/bin/env python3
"""A slow, long link for machines whose kernel has no netem: two tap devices, and between them delay and a rate.

python link.py NAME NAME SECONDS BYTES_PER_SECOND makes both devices, and carries their frames until it is killed.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

_TUNSETIFF, _TAP, _NO_PI = 0x400454CA, 0x0002, 0x1000
_LONGEST_QUEUE = 16 * 1024 * 1024
_FRAME = 65536
_AT_ONCE = 64


def tap(name: str) -> int:
    """Make a tap device; return its handle."""
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH", name.encode(), _TAP | _NO_PI))
    return handle


class Way:
    """One direction of the link."""

    def __init__(self, source: int, target: int, delay_s: float, rate: float) -> None:
        self._source = source
        self._target = target
        self._delay_s = delay_s
        self._rate = rate
        self._free_at = 0.0
        self._queued = 0
        self._frames: deque[tuple[float, bytes]] = deque()

    def take(self) -> None:
        """Read what has come, and say when it arrives at the other end."""
        for _ in range(_AT_ONCE):
            try:
                frame = os.read(self._source, _FRAME)
            except (BlockingIOError, OSError):
                return
            if self._queued + len(frame) > _LONGEST_QUEUE:
                continue
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + len(frame) / self._rate
            self._queued += len(frame)
            self._frames.append((self._free_at + self._delay_s, frame))

    def give(self) -> float | None:
        """Write what has arrived; return when the next frame does."""
        while self._frames:
            due, frame = self._frames[0]
            if due > time.monotonic():
                return due
            self._frames.popleft()
            self._queued -= len(frame)
            try:
                os.write(self._target, frame)
            except OSError:
                # The device is down; a network loses frames.
                continue
        return None


def main() -> None:
    """Carry frames."""
    one, other = tap(sys.argv[1]), tap(sys.argv[2])
    delay_s, rate = float(sys.argv[3]), float(sys.argv[4])
    ways = [Way(one, other, delay_s, rate), Way(other, one, delay_s, rate)]
    if os.sched_getscheduler(0) == os.SCHED_RR:
        # A real link waits for nobody.
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(2))
    print("ready", flush=True)
    while True:
        due = [when for way in ways if (when := way.give()) is not None]
        wait = max(0.0, min(due) - time.monotonic()) if due else 1.0
        ready, _, _ = select.select([one, other], [], [], wait)
        for handle, way in zip((one, other), ways, strict=True):
            if handle in ready:
                way.take()


if __name__ == "__main__":
    main()
