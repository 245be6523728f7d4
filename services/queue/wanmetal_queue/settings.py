"""What the environment of the service says."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Networks(tuple[Network, ...]):
    """Networks, from a text with blanks between them."""

    def __new__(cls, text: str = "") -> Networks:
        """Read them, and fail where one is none."""
        return super().__new__(cls, map(ipaddress.ip_network, text.split()))


_NO_NETWORKS = Networks()


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
    webhook_allow: Networks = _NO_NETWORKS  # besides the public internet

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Settings:
        """Read them. What is empty has its default."""
        given: dict[str, Any] = {}
        for field in fields(cls):
            if text := environment.get(f"QUEUE_{field.name.upper()}"):
                given[field.name] = type(getattr(cls, field.name))(text)
        return cls(**given)
