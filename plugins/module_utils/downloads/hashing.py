"""Hashing beside the transfer: a thread follows the complete front of a file."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

_CHUNK = 4 * 1024 * 1024


class Follower(threading.Thread):
    """Hashes a growing file as far as it is told that the file is complete."""

    def __init__(self, path: Path, done: Callable[[Follower, str | Exception], None]) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._done = done
        self._news = threading.Condition()
        self._limit = 0
        self._last = False
        self._stopped = False

    def reach(self, limit: int, *, last: bool = False) -> None:
        """Say how much of the front is complete, and whether that is all."""
        with self._news:
            if limit > self._limit or last:
                self._limit = max(limit, self._limit)
                self._last = self._last or last
                self._news.notify()

    def stop(self) -> None:
        """Give up; nothing is reported."""
        with self._news:
            self._stopped = True
            self._news.notify()

    def _wait(self, offset: int) -> int:
        with self._news:
            self._news.wait_for(lambda: self._stopped or self._last or self._limit > offset)
            return -1 if self._stopped else self._limit

    def run(self) -> None:
        """Follow the file; see the class."""
        try:
            result: str | Exception = self._hash()
        except Exception as error:  # a thread that does not report would be waited for, for ever
            result = error
        if not self._stopped:
            self._done(self, result)

    def _hash(self) -> str:
        digest = hashlib.sha256()
        offset = 0
        handle = -1
        try:
            while (limit := self._wait(offset)) >= 0:
                if handle < 0:
                    handle = os.open(self._path, os.O_RDONLY)
                while offset < limit and not self._stopped:
                    data = os.pread(handle, min(_CHUNK, limit - offset), offset)
                    if not data:
                        break
                    digest.update(data)
                    offset += len(data)
                if self._last and limit == self._limit:
                    # Proven bytes must outlive a power cut before they get their name.
                    os.fsync(handle)
                    break
        finally:
            if handle >= 0:
                os.close(handle)
        return digest.hexdigest()


def sha256(path: Path) -> str:
    """Hash a whole file."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while data := stream.read(_CHUNK):
            digest.update(data)
    return digest.hexdigest()
