"""The options ``config`` and ``secret_contents`` of modules that install files of settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.switch import ConfigFile

OPTIONS: dict[str, Any] = {
    "config": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "dest": {"type": "path", "required": True},
            "content": {"type": "str", "default": ""},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "default": "root"},
            "mode": {"type": "str", "default": "0644"},
            "secret": {"type": "bool", "default": False, "no_log": False},
        },
    },
    # Ansible writes arguments to the host's log, and spares only those that are secret as a whole.
    "secret_contents": {"type": "dict", "default": {}, "no_log": True},
}


def config_files(params: Mapping[str, Any]) -> tuple[ConfigFile, ...]:
    """The files that the options name."""
    return tuple(
        ConfigFile(
            Path(entry["dest"]),
            (params["secret_contents"].get(entry["dest"], "") if entry["secret"] else entry["content"]).encode(),
            entry["owner"],
            entry["group"],
            int(entry["mode"], 8),
            entry["secret"],
        )
        for entry in params["config"]
    )
