"""What a run works with: its settings, a file on its way, and what came out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import civitai
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.files import Wanted
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.hashing import Follower
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.problems import Problem
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.resolve import Source, Tokens
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.stream import Stream

MIB = 1024 * 1024


@dataclass(frozen=True)
class Settings:
    """How to fetch."""

    root: Path
    state_dir: Path
    owner_list: str = "models"
    tokens: Tokens = field(default_factory=lambda: Tokens({}))
    peers: tuple[str, ...] = ()
    civitai_api: str = civitai.API
    connections: int = 8
    parallel: int = 4
    split_from: int = 20 * MIB
    """Files of less than twice this get one connection."""
    follow_from: int = 256 * MIB
    """Files of this size are hashed while they come."""
    limit: int = 0
    """Bytes a second for all transfers together; 0 is no limit."""
    tries: int = 6
    """Attempts without progress before a file is given up."""
    pause_s: float = 2.0
    longest_wait_s: float = 900.0
    timeout_s: float = 30.0
    stall_s: float = 60.0
    reserve: int = 0
    prune: bool = False
    allow_unproven: bool = False


@dataclass(frozen=True)
class Answer:
    """What the hosts say of a file."""

    wanted: Wanted
    sources: tuple[Source, ...]
    size: int | None
    expected: str | None
    by: str
    """``catalogue``, ``host`` or ``size``: what will prove it."""
    from_peers: bool = False


@dataclass(eq=False)
class Job:
    """One file on its way."""

    wanted: Wanted
    connections: int
    step: str = "ask"
    """ask, asking, ready, moving, proving, resting, done or failed"""
    there: Path | None = None
    """A file that has the name already and has to be proven."""
    answer: Answer | None = None
    part: Path = field(default_factory=Path)
    size: int | None = None
    done: int = 0
    before: int = 0
    """Bytes when the attempt began."""
    attempt: int = 0
    until: float = 0.0
    peers_failed: bool = False
    gid: str = ""
    follower: Follower | None = None
    stream: Stream | None = None
    mark: tuple[float, int, int] = (0.0, 0, 0)
    """When the speed was looked at last, the bytes then, and the best growth so far."""
    reread: bool = False
    rejected: int = 0
    problem: Problem | None = None
    digest: str = ""
    by: str = "catalogue"
    note: str = ""

    @property
    def label(self) -> str:
        """Name for people."""
        return self.wanted.name or self.wanted.id

    @property
    def moved(self) -> int:
        """Bytes that are there."""
        return self.stream.moved if self.stream else self.done


@dataclass
class Outcome:
    """What a run did."""

    files: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    unwanted: list[dict[str, Any]] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)
    changed: bool = False
    interrupted: bool = False
    fetched_bytes: int = 0
    seconds: float = 0.0
    restarts: int = 0
