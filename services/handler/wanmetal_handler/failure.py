"""Why a job gave nothing, in words that anybody may read."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

_PATH = re.compile(r"(?<![\w:/])(?:/[\w.+@~-]+)+/([\w.+@~-]+)")
_ADDRESS = re.compile(r"(https?://)(?:[^\s/@'\"]*@)?([^\s?#'\"]*)(?:[?#][^\s'\"]*)?")
_MOST, _MOST_READ = 500, 5000


class JobError(Exception):
    """A job that cannot be done. ``kind`` says whose fault it is; ``details`` are further facts."""

    def __init__(self, kind: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.kind, self.details = kind, details

    def output(self, secrets: Collection[str] = ()) -> dict[str, Any]:
        """What the caller gets."""
        message = harmless(str(self), secrets)
        details = {key: harmless(value, secrets) for key, value in self.details.items()}
        return {"error": message, "failure": {"kind": self.kind, "message": message, **details}}


class LostError(JobError):
    """A ComfyUI that has ended while it had the job, which another may do."""


def cancelled() -> JobError:
    """How a job ends whose end somebody asked for."""
    return JobError("cancelled", "the job was cancelled")


def harmless(said: Any, secrets: Collection[str] = ()) -> Any:
    """The first line of a text without folders, without what follows the ? of an address, and without secrets."""
    if not isinstance(said, str):
        return said
    line = next((line.strip() for line in said.splitlines() if line.strip()), "")
    for secret in filter(None, secrets):
        line = line.replace(secret, "***")
    line = _PATH.sub(r"\1", _ADDRESS.sub(r"\1\2", line[:_MOST_READ]))  # their time grows with the square of the length
    return line if len(line) <= _MOST else f"{line[:_MOST]}…"
