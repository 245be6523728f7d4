"""The identity of a release."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

RECIPE = 2
"""Raised when releases are built in another way, so that hosts build theirs anew."""


def release_id(inputs: Mapping[str, Any], version: str) -> str:
    """Name of the release that is made from ``inputs``: the version that people know, and a hash of all inputs."""
    empty = sorted(name for name, value in inputs.items() if value is None or value == "")
    if empty:
        raise ValueError(f"inputs of the release are empty: {', '.join(empty)}")
    text = json.dumps({"recipe": RECIPE, **inputs}, sort_keys=True, separators=(",", ":"))
    return f"{version}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
