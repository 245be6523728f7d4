"""What a host shows of why something does not work. Changes nothing.

Root reads here what services could have put there, so folders and files of theirs are opened without following links.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import re
import shlex
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.host import gpu as gpu_info
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host import state
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import (
    read_regular,
    readable,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.models import models, regular_files
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.redact import GONE, known_values, redact, redact_all

UNITS = ("comfyui*", "jupyterlab*", "wanmetal-*", "nvidia-persistenced*")
_SHOWN = (
    *("Id", "ActiveState", "SubState", "LoadState", "Result", "NRestarts", "ExecMainStatus", "UnitFileState"),
    *("NeedDaemonReload", "DropInPaths", "MemoryCurrent", "MemoryMax"),
    *("ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic"),
)
_MOST_TEXT = 400_000
_MOST_LINES = 3000
_MINERS = re.compile(
    r"xmrig|stratum\+(?:tcp|ssl)|nbminer|lolminer|t-rex|phoenixminer|ethminer|kdevtmpfsi|kinsing|minerd|cpuminer|gminer|"
    r"srbminer|--donate-level|--coin[ =]",
    re.IGNORECASE,
)


@dataclass
class Place:
    """Where things are on the host; ``top`` is another than / in tests."""

    root: Path
    data: Path
    cache: Path
    config: Path
    user: str
    top: Path = field(default=Path("/"))

    def at(self, path: Path | str) -> Path:
        """The path below ``top``."""
        return self.top / str(path).lstrip("/")


def evidence(place: Place, addresses: Mapping[str, str], ask: Any) -> dict[str, Any]:
    """All that diagnoses look at (``facts``), and texts for a support bundle (``files``), both without secrets.

    ``ask`` tells why an address does not answer, or gives an empty string.
    """
    settings = list(_settings(place))
    known = known_values(settings)
    run = gpu_info.runner(place.top)
    units = _units(run)
    # Before they are split: a secret may have several lines.
    journal = redact(_journal(run, *(f"--unit={unit}" for unit in UNITS), "--since=-2d"), known)
    kernel = redact(_journal(run, "--dmesg") or run(["dmesg"])[1], known)
    facts = {
        **_system(place, run),
        "gpu": gpu_info.gpu_info(place.top),
        "units": units,
        "answers": {unit: ask(url) for unit, url in addresses.items()},
        "journal": journal.splitlines()[-_MOST_LINES:],
        "kernel_log": kernel.splitlines()[-_MOST_LINES:],
        "processes": list(_processes(place)),
        "locks": {path.name: holder for path in _locks(place) if (holder := _holder(path))},
        **_releases(place),
        **_data(place),
    }
    files = {
        "journal.txt": journal,
        "kernel.txt": kernel,
        "systemctl.txt": run(["systemctl", "--no-pager", "status", *UNITS])[1] if units else "",
        "units.txt": run(["systemctl", "--no-pager", "cat", *units])[1] if units else "",
        "gpu.txt": run(["nvidia-smi", "-q"])[1] or run(["nvidia-smi"])[1],
        "disk.txt": run(["df", "-hT"])[1] + run(["df", "-hi"])[1] + run(["lsblk"])[1],
        "memory.txt": run(["free", "-m"])[1],
        "settings.txt": "".join(f"{name}={GONE}\n" for name, _value in settings),
        "config.txt": "".join(f"== {path}\n{_read(path)}\n" for path in _config_files(place)),
        "models.txt": "".join(f"{one['bytes']:>14} {one['path']}\n" for one in facts["models"]),
    }
    told = redact_all(facts, known)
    short = {key: value for key, value in told.items() if key not in {"journal", "kernel_log", "models"}}
    texts = {name: redact(text[-_MOST_TEXT:], known) for name, text in files.items() if text}
    return {"facts": told, "files": {**texts, "facts.json": json.dumps(short, indent=1, sort_keys=True, default=str)}}


# -- secrets that the host has


def _settings(place: Place) -> Iterator[tuple[str, str]]:
    """Names and values of all that the host's services are told, and of what root has for downloads."""
    texts = [_read(path) for path in sorted(_list(place.at(place.config))) if path.suffix in {".env", ".conf", ".json"}]
    units = [
        path
        for path in _list(place.at("etc/systemd/system"))
        if path.name.startswith(("comfyui", "wanmetal", "jupyter"))
    ]
    drops = [drop for path in units if path.suffix == ".d" for drop in _list(path)]
    for line in re.findall(r"(?m)^Environment=(.*)$", "\n".join(_read(path) for path in (*units, *drops))):
        with contextlib.suppress(ValueError):
            texts.append("\n".join(shlex.split(line)))
    for text in texts:
        for name, value in re.findall(r"(?m)^\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*)$", text):
            yield name, value
        with contextlib.suppress(ValueError):
            yield from _leaves("", json.loads(text))
    with contextlib.suppress(ValueError):
        job = json.loads(_read(place.at(place.data) / "models-state/job.json"))
        yield from (("token", value) for _name, value in _leaves("", job.get("tokens") or {}))
    for name in ("root/.netrc", "root/.git-credentials", "root/.cache/huggingface/token", "root/.config/pip/pip.conf"):
        text = _read(place.at(name))
        yield from (
            ("password", word) for word in re.findall(r"password\s+(\S+)|://[^\s:@]*:([^\s@]+)@", text) for word in word
        )
        if name.endswith("/token"):
            yield "token", text


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(str(key), inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(name, inner)


def _config_files(place: Place) -> list[Path]:
    """Of /etc/wanmetal, what has no secrets by its purpose; it is redacted all the same."""
    return [path for path in sorted(_list(place.at(place.config))) if path.suffix in {".yaml", ".nft", ".generation"}]


# -- the system


def _system(place: Place, run: gpu_info.Run) -> dict[str, Any]:
    proc = place.at("proc")
    release = state.os_release(_read(place.at("etc/os-release")) or _read(place.at("usr/lib/os-release")))
    container = state.in_container(place.at("run"), proc)
    folders = {str(path): place.at(path) for path in (place.root, place.data, place.cache, "/var/log")}
    memory = re.search(r"MemAvailable:\s+(\d+) kB", _read(proc / "meminfo"))
    swap = re.search(r"SwapTotal:\s+(\d+) kB", _read(proc / "meminfo"))
    return {
        "taken": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "os": {"id": release.get("ID", ""), "version": release.get("VERSION_ID", "")},
        "architecture": os.uname().machine,
        "container": container,
        "systemd": _systemd(run),
        "synchronised": state.synchronised(state.clock_error_us(), container),
        "memory_mb": state.memory_mb(proc, place.at("sys/fs/cgroup")),
        "memory_free_mb": int(memory[1]) // 1024 if memory else None,
        "swap_mb": int(swap[1]) // 1024 if swap else 0,
        "filesystems": {
            name: {**state.filesystem(str(path)), "type": _type(proc, str(path))} for name, path in folders.items()
        },
        "listeners": state.listeners(proc),
    }


def _systemd(run: gpu_info.Run) -> dict[str, Any]:
    status, shown = run(["systemctl", "show", "--property=Version,SystemState"])
    values = dict(line.partition("=")[::2] for line in shown.splitlines()) if not status else {}
    return {"version": values.get("Version"), "state": values.get("SystemState")}


def _type(proc: Path, path: str) -> str:
    """The type of the filesystem that a path is on."""
    mounts = [line.split()[1:3] for line in _read(proc / "self/mounts").splitlines() if len(line.split()) > 2]
    on = [(mount, kind) for mount, kind in mounts if f"{path}/".startswith(f"{mount.rstrip('/')}/")]
    return max(on, key=lambda one: len(one[0]))[1] if on else ""


def _units(run: gpu_info.Run) -> dict[str, dict[str, str]]:
    status, shown = run(["systemctl", "show", "--all", f"--property={','.join(_SHOWN)}", *UNITS])
    if status:
        return {}
    blocks = [dict(line.partition("=")[::2] for line in block.splitlines()) for block in shown.split("\n\n")]
    return {block["Id"]: block for block in blocks if block.get("Id")}


def _journal(run: gpu_info.Run, *wanted: str) -> str:
    command = ["journalctl", "--no-pager", "--quiet", "--output=short-iso", f"--lines={_MOST_LINES}", *wanted]
    status, text = run(command)
    return "" if status else text


def _processes(place: Place) -> Iterator[dict[str, Any]]:
    """Programs that mine, and those of ComfyUI's user that belong to none of its services."""
    user = next((entry.pw_uid for entry in pwd.getpwall() if entry.pw_name == place.user), None)
    for entry in place.at("proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            unit, owner = state.unit_of(_read(entry / "cgroup")), entry.stat().st_uid
        except OSError:
            continue
        miner = bool(_MINERS.search(command))
        stray = owner == user and unit and not unit.startswith(("comfyui", "wanmetal", "jupyter", "user@"))
        if miner or stray:
            yield {"pid": int(entry.name), "command": command[:200], "unit": unit, "miner": miner}


# -- what is ours


def _locks(place: Place) -> Iterator[Path]:
    root = place.at(place.root)
    yield root / ".switch.lock"
    yield from (root / folder / ".lock" for folder in ("releases", "environments"))
    yield place.at(place.cache) / "git/.lock"


def _holder(path: Path) -> str:
    """Who holds a lock, from the kernel's list: to try it would take it."""
    try:
        found = path.lstat()
    except OSError:
        return ""
    inode = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    held = [line.split() for line in _read(Path("/proc/locks")).splitlines()]
    return next(
        (f"process {words[4]}" for words in held if len(words) > 5 and words[5] == inode and words[1] != "->"), ""
    )


def _releases(place: Place) -> dict[str, Any]:
    root = place.at(place.root)
    found = state.releases(root)
    verified = root / "verified.json"
    record = _json(verified)
    since = verified.stat().st_mtime if record else 0.0
    units = [
        path
        for path in _list(place.at("etc/systemd/system"))
        if re.fullmatch(r"comfyui(@|-workers)?\.service", path.name)
    ]
    config = [place.at(place.config) / name for name in ("comfyui.env", "network.nft", "extra_model_paths.yaml")]
    return {
        **found,
        "there": root.is_dir(),
        "drafts": sorted(
            path.name for path in _list(root / "releases") if path.is_dir() and not (path / "release.json").exists()
        ),
        "broken_links": [
            name for name in ("current", "previous") if (root / name).is_symlink() and not (root / name).exists()
        ],
        "verified": record,
        "release": _json(root / "current/release.json"),
        "packages": _packages(root / "current/venv"),
        "changed_since": sorted(
            str(path) for path in (*units, *config) if since and path.is_file() and path.stat().st_mtime > since + 120
        ),
        "python_h": bool(list(place.at("usr/include").glob("python3*/Python.h"))),
    }


def _packages(venv: Path) -> dict[str, list[str]]:
    """Versions of packages that break others, by the folders that say what is installed."""
    found: dict[str, list[str]] = {}
    for path in sorted(venv.glob("lib/python*/site-packages/*.dist-info")):
        name, _unused, version = path.name.removesuffix(".dist-info").partition("-")
        if name.lower() in {"torch", "torchvision", "numpy", "triton", "sageattention", "transformers"}:
            found.setdefault(name.lower(), []).append(version)
    return found


def _data(place: Place) -> dict[str, Any]:
    """Models with what is wrong with them, folders that ComfyUI cannot write to, and videos in folders of their own."""
    data = place.at(place.data)
    closed = [
        str(place.data / name)
        for name in ("home", "input", "output", "temp", "user")
        if _closed(data / name, place.user)
    ]
    below = [
        readable(path.relative_to(data))
        for path, _info in regular_files(data / "output")
        if len(path.relative_to(data).parts) > 2
    ]
    return {"models": models(data), "closed": closed, "outputs_below": below[:10], "data_there": data.is_dir()}


def _closed(folder: Path, user: str) -> bool:
    """Whether a folder is there and its user cannot write to it."""
    try:
        info, entry = folder.lstat(), pwd.getpwnam(user)
    except (OSError, KeyError):
        return False
    groups = {entry.pw_gid, *(one.gr_gid for one in grp.getgrall() if user in one.gr_mem)}
    if not stat.S_ISDIR(info.st_mode):
        return True
    if info.st_uid == entry.pw_uid:
        return not info.st_mode & stat.S_IWUSR
    return not info.st_mode & (stat.S_IWGRP if info.st_gid in groups else stat.S_IWOTH)


# -- files


def _list(folder: Path) -> Sequence[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _read(path: Path) -> str:
    """A file of ours or of the kernel's. Whatever else has its name is not opened."""
    try:
        return read_regular(path, 2**20).decode(errors="replace")
    except OSError:
        return ""


def _json(path: Path) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        found = json.loads(_read(path))
        return found if isinstance(found, dict) else {}
    return {}
