"""Node packs as a running ComfyUI has them: which node types it lacks of those that its release promises, and why.

ComfyUI starts without packs, and without node types, that it cannot load, and says so in its log alone.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.client import ComfyUIClient, ComfyUIError

_IMPORT_TIME = re.compile(r"^\s*([0-9.]+) seconds( \(IMPORT FAILED\))?: (\S.*)$")
_CANNOT_IMPORT = re.compile(
    r"^(?:(?:Cannot import|Skip) (\S.*?) module for custom nodes(?:: | due to )"
    r"|Error while calling comfy_entrypoint in (\S.*?): )(.*)$"
)
_NO_INFORMATION = re.compile(r"An error occurred while retrieving information for the '(.+)' node\.")
# What packs that load their nodes one by one say of those that they leave out.
_LEFT_OUT = re.compile(r"(?:Failed to import module \S+ because|not available due to error).*", re.IGNORECASE)
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Warning|Exit)?(?::.*)?$")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_SHOWN = 5
_NO_MORE = "its log says no more"
OBJECT_INFO_S = 60.0
"""With many packs and slow disks, ComfyUI takes its time to list all files of all models."""


@dataclass
class Startup:
    """What a log tells of packs, by the names of their folders, and of node types."""

    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Packs that could not be imported, with the reason."""
    types: dict[str, str] = field(default_factory=dict)
    """Node types that cannot tell their inputs, with the reason."""
    left_out: list[str] = field(default_factory=list)
    """What packs say of nodes that they left out themselves."""


def parse_log(text: str) -> Startup:
    """Read the log of a start of ComfyUI."""
    found = Startup()
    lines = [_COLOUR.sub("", line).rstrip() for line in text.splitlines()]
    for number, line in enumerate(lines):
        if match := _IMPORT_TIME.match(line):
            pack = PurePosixPath(match[3]).name
            found.seconds[pack] = float(match[1])
            if match[2]:
                found.failed.setdefault(pack, _NO_MORE)
        elif match := _CANNOT_IMPORT.match(line):
            reason = _exception(lines, number) or match[3] or _NO_MORE
            found.failed[PurePosixPath(match[1] or match[2]).name] = reason
        elif match := _NO_INFORMATION.search(line):
            found.types[match[1]] = _last_of_traceback(lines[number + 1 :])
        elif match := _LEFT_OUT.search(line):
            found.left_out.append(line.strip())
    return found


def _exception(lines: Sequence[str], number: int) -> str:
    """The last line of the traceback just above a line, which names the exception, unlike ComfyUI's own words."""
    above = next((line for line in reversed(lines[:number]) if line.strip()), "")
    return above if _EXCEPTION.match(above) and ":" in above else ""


def _last_of_traceback(lines: Sequence[str]) -> str:
    inside = False
    for line in lines:
        if line.startswith("Traceback"):
            inside = True
        elif inside and line and not line.startswith(" "):
            return line
        elif not inside and line:
            break
    return _NO_MORE


def recorded(release_dir: Path) -> dict[str, dict[str, Any]]:
    """The packs of a release, each with its ``commit`` and the ``node_types`` that it promises."""
    try:
        record = json.loads((release_dir / "release.json").read_text(encoding="utf-8"))
        found: dict[str, dict[str, Any]] = record.get("custom_nodes", {})  # none in one that was built before
    except (OSError, ValueError):
        return {}
    return found


def problems(packs: Mapping[str, Sequence[str]], known: Collection[str], startup: Startup) -> list[str]:
    """What is wrong with the packs of a release: one text for each pack that is not whole."""
    found = []
    for pack, types in packs.items():
        missing = [name for name in types if name not in known]
        if pack in startup.failed:
            found.append(f"node pack {pack} could not be imported: {startup.failed[pack]}")
        elif missing:
            found.append(f"node pack {pack} lacks {_named(missing)}: {_reason(missing, startup)}")
    return found


def _named(types: Sequence[str]) -> str:
    more = f" and {len(types) - _SHOWN} more" if len(types) > _SHOWN else ""
    return f"node type{'' if len(types) == 1 else 's'} {', '.join(types[:_SHOWN])}{more}"


def _reason(missing: Sequence[str], startup: Startup) -> str:
    reasons = list(dict.fromkeys(startup.types[name] for name in missing if name in startup.types))
    if reasons:
        return (
            f"{'; '.join(reasons[:_SHOWN])} (while ComfyUI asked for {'their' if len(missing) > 1 else 'its'} inputs). "
            "Pack and ComfyUI may be of different times"
        )
    if startup.left_out:
        return f"the log says: {'; '.join(startup.left_out[:_SHOWN])}"
    return "the log gives no reason. The pack at this commit may not have it: compare its commit with what is promised"


def read_log(unit: str) -> str:
    """What a unit has said since it was started last."""
    invocation = _output(["systemctl", "show", unit, "--property=InvocationID", "--value"]).strip()
    if not invocation:
        return ""
    _output(["journalctl", "--sync"])
    return _output(["journalctl", f"_SYSTEMD_INVOCATION_ID={invocation}", "--no-pager", "--output=cat", "--quiet"])


def _output(command: Sequence[str]) -> str:
    try:
        # pylint: disable-next=ansible-bad-function
        return subprocess.run(command, capture_output=True, text=True, check=False, errors="replace").stdout
    except FileNotFoundError:
        return ""


@dataclass
class Look:
    """What a look at the packs of a running release finds."""

    packs: dict[str, dict[str, Any]]
    """Each with its commit and the seconds of its import, where the log tells them."""
    problems: list[str]


def look_at_packs(release_dir: Path, client: ComfyUIClient, unit: str) -> Look:
    """Compare what a running ComfyUI offers with what its release promises."""
    packs = recorded(release_dir)
    if not packs:
        return Look({}, [])
    slow = ComfyUIClient(client.url, OBJECT_INFO_S)
    try:
        known = slow.object_info()
    except ComfyUIError as error:
        return Look({}, [f"the node types cannot be read: {error}"])
    startup = parse_log(read_log(unit))  # after the question, whose own errors are in it, too
    promised = {name: pack["node_types"] for name, pack in packs.items()}
    told = {name: {"commit": pack["commit"], "seconds": startup.seconds.get(name)} for name, pack in packs.items()}
    return Look(told, problems(promised, known, startup))
