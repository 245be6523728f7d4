"""What the environment of the service says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .addresses import NO_NETWORKS, Networks


@dataclass(frozen=True)
class Settings:
    """Named as there, in small letters and without HANDLER_, which all but COMFYUI_URL and BUCKET_* begin with."""

    comfyui_url: str = "http://127.0.0.1:8188"  # or several, with blanks between them
    workflows: str = "workflows.json"
    record: str = "jobs.db"
    release: str = "/nonexistent"
    models: str = "/nonexistent"
    data: str = "/"  # what lies below this may be changed by ComfyUI
    folders: str = ""  # below it, where ComfyUI reads and writes for the handler, with colons between them
    concurrency: int = 1
    queue: int = 200
    keep_hours: float = 24.0
    keep_mb: float = 2000.0
    job_timeout: float = 1800.0
    image_timeout: float = 30.0
    image_mb: float = 20.0
    image_megapixels: float = 33.0
    video_mb: float = 50.0
    media_seconds: float = 120.0  # that a video or a sound may last
    image_allow: Networks = NO_NETWORKS  # besides the public internet
    raw_workflows: int = 0
    raw_nodes: str = ""  # node types that these may have, with blanks between them; without any, all
    warmup: str = ""  # the workflow that is rendered on each ComfyUI when it has started
    webhook_secret: str = ""
    inline_mb: float = 10.0
    link_hours: float = 168.0
    queue_url: str = ""  # of a fleet that jobs are taken from
    queue_token: str = ""
    queue_ca: str = ""  # file with the certificate that its own is checked by
    bucket_endpoint_url: str = ""  # without it there is no bucket
    bucket_access_key_id: str = ""
    bucket_secret_access_key: str = ""
    bucket_name: str = ""
    bucket_region: str = "us-east-1"

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Settings:
        """Read them. What is empty has its default."""
        given: dict[str, Any] = {}
        for field in fields(cls):
            name = field.name.upper()
            text = environment.get(name if name.startswith(("COMFYUI_URL", "BUCKET_")) else f"HANDLER_{name}")
            if text:
                given[field.name] = type(getattr(cls, field.name))(text)
        return cls(**given)

    @property
    def media_mb(self) -> float:
        """What all files of a request may have together, as they are given to ComfyUI."""
        return 6 * self.image_megapixels + 2 * self.video_mb

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown."""
        return self.bucket_secret_access_key, self.bucket_access_key_id, self.webhook_secret, self.queue_token
