"""What the environment of the service says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .addresses import NO_NETWORKS, Networks


@dataclass(frozen=True)
class Settings:
    """Named as in the environment, in small letters and without QUEUE_."""

    database: str = ""  # empty is the database of the user's name, on the socket of this host
    listen: str = "127.0.0.1"
    port: int = 8390
    waiting: int = 10_000  # jobs of one queue that may wait
    keep_hours: float = 24.0
    body_mb: float = 20.0
    job_timeout: float = 1800.0
    ttl: float = 86_400.0
    attempts: int = 3  # so often a worker may be lost with a job
    lost_after: float = 8.0  # seconds without a poll
    webhook_allow: Networks = NO_NETWORKS  # besides the public internet

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Settings:
        """Read them. What is empty has its default."""
        given: dict[str, Any] = {}
        for field in fields(cls):
            if text := environment.get(f"QUEUE_{field.name.upper()}"):
                given[field.name] = type(getattr(cls, field.name))(text)
        return cls(**given)
