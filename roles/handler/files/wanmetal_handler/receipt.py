"""What a video was made with, so that it can be made again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .workflows import Graph, Workflow


@dataclass(frozen=True)
class Sources:
    """Where the host tells what it runs."""

    release: Path
    models: Path

    def release_id(self) -> str | None:
        """The release that runs, or None where the host has none."""
        found = _read(self.release).get("id")
        return str(found) if found else None

    def hashes(self, names: Sequence[str]) -> dict[str, str | None]:
        """Hashes of model files by the names that a graph has for them; None where nobody proved one."""
        files = _read(self.models).get("files", {}) if names else {}
        return {
            name: next(
                (proof.get("sha256") or None for path, proof in files.items() if path.endswith(f"/{name}")), None
            )
            for name in names
        }


def make(
    sources: Sources,
    workflow: Workflow,
    graph: Graph,
    images: Mapping[str, bytes],
    video: bytes,
    seconds: Mapping[str, float],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """Put the receipt together."""
    parameters = {name: value for name, value in workflow.values(graph).items() if name not in images}
    return {
        "workflow": workflow.name,
        "workflow_sha256": workflow.sha256,
        "release": sources.release_id(),
        "comfyui": machine.get("comfyui"),
        "gpu": machine.get("gpu"),
        "models": sources.hashes(workflow.models(graph)),
        "seed": parameters.get("seed"),
        "parameters": parameters,
        "images_sha256": {name: hashlib.sha256(data).hexdigest() for name, data in images.items()},
        "video_sha256": hashlib.sha256(video).hexdigest(),
        "video_bytes": len(video),
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # a host without models has no such file
    return data if isinstance(data, dict) else {}
