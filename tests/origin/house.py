"""A models folder and an origin, for tests of the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.engine import LOCK, Engine, Outcome
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.request import Settings, Wanted
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import exclusive
from ansible_collections.wanmetal.comfyui.tests.origin.origin import Blob, Origin

KB = 1024
MB = 1024 * 1024


class House:
    """Runs the engine against an origin, and looks at what it left."""

    def __init__(self, root: Path, origin: Origin) -> None:
        self.root = root / "models"
        self.state = root / "state"
        self.state.mkdir(parents=True, exist_ok=True)
        self.origin = origin

    def blob(self, name: str, size: int = 300 * KB, token: str = "") -> Blob:
        """Put a file into the origin."""
        return self.origin.add(Blob(name, size), token)

    def want(self, blob: Blob, **known: Any) -> Wanted:
        """Ask for a blob, by default with its size and sha256 known."""
        fields: dict[str, Any] = {
            "id": blob.name,
            "folder": "loras",
            "name": blob.name,
            "urls": (self.origin.hub_url(blob.name),),
            "bytes": blob.size,
            "sha256": blob.sha256,
        }
        return Wanted(**{**fields, **known})

    def settings(self, **changes: Any) -> Settings:
        """Impatient settings."""
        fields: dict[str, Any] = {
            "root": self.root,
            "state_dir": self.state,
            "pause_s": 0.01,
            "timeout_s": 5.0,
            "stall_s": 2.0,
            # So small that both ways of parting a file are seen.
            "split_from": MB,
            "follow_from": 2 * MB,
        }
        return Settings(**{**fields, **changes})

    def run(self, wanted: Sequence[Wanted], *, full: bool = False, **changes: Any) -> Outcome:
        """Fetch."""
        with exclusive(self.state / LOCK) as lock:
            engine = Engine(wanted, self.settings(**changes), lock)
            if full:
                engine.read_again()
            return engine.run()

    def path(self, blob: Blob) -> Path:
        """Where a blob belongs."""
        return self.root / "loras" / blob.name

    def right(self, blob: Blob) -> bool:
        """Whether a blob has its name, and is itself."""
        return self.path(blob).exists() and sha256(self.path(blob)) == blob.sha256

    def wrong_names(self) -> list[str]:
        """Files that carry a final name without being what the origin has under it."""
        return [
            path.name
            for path in self.root.rglob("*")
            if path.is_file()
            and not path.name.startswith(".")
            and not path.name.endswith(".rejected")
            and sha256(path) != self.origin.blobs[path.name].sha256
        ]

    def leftovers(self) -> list[str]:
        """Temporary files."""
        return sorted(path.name for path in self.root.rglob(".*") if path.is_file())


def sha256(path: Path) -> str:
    """Hash a file of a test."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
