"""An order: the files and settings as a module or a job file gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import civitai
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.files import Wanted, parse_all
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.job import Settings
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.resolve import Tokens

_SIZE = re.compile(r"(\d+)([KMGT]?)")


@dataclass(frozen=True)
class Order:
    """What to fetch, and how."""

    wanted: list[Wanted]
    settings: Settings
    read_again: bool
    wait_s: float
    user: str


def parse(params: Mapping[str, Any]) -> Order:
    """Check the parameters; an error names the one that is wrong."""
    for key, highest in (("connections", 16), ("parallel", 64)):
        if not 1 <= params[key] <= highest:
            raise ValueError(f"{key} must lie between 1 and {highest}, found {params[key]}")
    root = Path(params["dest"])
    settings = Settings(
        root=root,
        state_dir=Path(params["state_dir"]),
        owner_list=params["list"],
        tokens=Tokens(params.get("tokens") or {}),
        peers=tuple(params.get("peers") or ()),
        civitai_api=params.get("civitai_api") or civitai.API,
        connections=params["connections"],
        parallel=params["parallel"],
        limit=size("limit", params["limit"]),
        tries=params["tries"],
        pause_s=params["pause"],
        reserve=size("reserve", params["reserve"]),
        prune=params["prune"],
        allow_unproven=params["allow_unproven"],
    )
    return Order(
        parse_all(params["files"]), settings, params["verify"] == "full", params["wait"], params.get("user") or ""
    )


def size(name: str, text: str) -> int:
    """Read a size like 50M (1024 based); empty is 0."""
    match = _SIZE.fullmatch(str(text or "0").upper())
    if not match:
        raise ValueError(f"{name} must be a number of bytes like 50M or 2G, found {text!r}")
    return int(match[1]) << 10 * " KMGT".index(match[2] or " ")
