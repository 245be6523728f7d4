"""One plain stream, for sources that aria2c must not or cannot fetch: a token's own host, and file:// mirrors."""

from __future__ import annotations

import errno
import http.client
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import errors
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.errors import Problem, from_any, from_os
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.sources import Source, path_of, send

_CHUNK = 1024 * 1024


class Stream(threading.Thread):
    """Copies a source to a file, going on where the file ends."""

    def __init__(
        self,
        source: Source,
        path: Path,
        done: Callable[[Stream, Problem | None], None],
        *,
        limit: int,
        timeout_s: float,
        version: str = "",
    ) -> None:
        super().__init__(daemon=True)
        self._source = source
        self._path = path
        self._report = done
        self._limit = limit
        self._timeout_s = timeout_s
        self._version = version
        self._stopped = False
        self.moved = path.stat().st_size if path.exists() else 0

    def stop(self) -> None:
        """Give up; nothing is reported."""
        self._stopped = True

    def run(self) -> None:
        """Copy; see the class."""
        problem: Problem | None = None
        try:
            self._copy()
        except (OSError, http.client.HTTPException) as error:
            here = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
            problem = from_os(error) if here else errors.from_exception(error, self._source.host)  # type: ignore[arg-type]
        except Exception as error:  # a thread that does not report would be waited for, for ever
            problem = from_any(error)
        if not self._stopped:
            self._report(self, problem)

    def _copy(self) -> None:
        if not self._source.ranges:
            self._path.unlink(missing_ok=True)
            self.moved = 0
        if self._source.size is not None and self.moved > self._source.size:
            raise Problem("restart", "more was fetched than the file holds", another_try=True)
        if self.moved == self._source.size:
            return
        if self._source.url.startswith("file:"):
            # Not one to wait for: what was a regular file a moment ago may be a pipe now.
            with os.fdopen(os.open(path_of(self._source.url), os.O_RDONLY | os.O_NONBLOCK), "rb") as body:
                body.seek(self.moved)
                self._write(body)
            return
        source = self._source
        with send(source.url, source.token, self.moved, None, self._timeout_s, version=self._version) as (
            status,
            headers,
            body,
        ):
            if status not in {200, 206}:
                # A redirect that was not there when the host was asked is not followed: it would take the token along.
                raise errors.from_status(status, self._source.host, first_hop=True, had_token=True)
            if status == 200 and self.moved:
                self._path.unlink(missing_ok=True)
                self.moved = 0
            part = re.match(r"bytes ([0-9]+)-", headers.get("Content-Range") or "", re.IGNORECASE)
            if status == 206 and part and int(part[1]) != self.moved:
                raise Problem("restart", f"{source.host} sends another part of the file than it was asked for")
            self._write(body)

    def _write(self, body: IO[bytes]) -> None:
        start, begun = time.monotonic(), self.moved
        with self._path.open("ab") as out:
            while not self._stopped:
                data = body.read(_CHUNK)
                if not data:
                    break
                out.write(data)
                self.moved += len(data)
                if self._limit:
                    ahead = (self.moved - begun) / self._limit - (time.monotonic() - start)
                    time.sleep(max(0.0, ahead))
        if not self._stopped and self._source.size is not None and self.moved != self._source.size:
            raise Problem("network", f"{self._source.host} ended the transfer early")
