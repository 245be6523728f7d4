"""Why a job did not give a video, in words that anybody may read."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

_PATH = re.compile(r"(?<![\w:/])(?:/[\w.+@~-]+)+/([\w.+@~-]+)")
_QUERY = re.compile(r"(https?://)(?:[^\s/@]*@)?([^\s?#'\"]+)[?#][^\s'\"]*")
_LONGEST = 500


class JobError(Exception):
    """A job that cannot be done. ``kind`` says whose fault it is; ``details`` are further facts."""

    def __init__(self, kind: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.kind = kind
        self.details = details

    def output(self, secrets: Collection[str] = ()) -> dict[str, Any]:
        """What the caller gets."""
        details = {key: harmless(value, secrets) for key, value in self.details.items()}
        message = harmless(str(self), secrets)
        return {"error": message, "failure": {"kind": self.kind, "message": message, **details}}


def harmless(text: object, secrets: Collection[str] = ()) -> Any:
    """Text without folders, without what follows the ? of an address, and without secrets; one line of it."""
    if isinstance(text, list | dict):
        return text
    line = next((line for line in str(text).splitlines() if line.strip()), "").strip()
    for secret in secrets:
        if secret:
            line = line.replace(secret, "***")
    line = _PATH.sub(r"\1", _QUERY.sub(r"\1\2", line))
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
