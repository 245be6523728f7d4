"""What a host is like, read from the kernel's and systemd's own files. Changes nothing."""

from __future__ import annotations

import contextlib
import ctypes
import grp
import os
import pwd
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.host import gpu as gpu_info

_DISTRIBUTIONS = {"debian": "Debian", "ubuntu": "Ubuntu"}
_LISTENING = "0A"
_WORST_ERROR_US = 16_000_000
"""From this error on the kernel's clock counts as not synchronised, as timedatectl has it."""


def os_release(text: str) -> dict[str, str]:
    """Parse /etc/os-release."""
    pairs = re.findall(r"^([A-Z_]+)=(?:\"(.*)\"|'(.*)'|(.*))$", text, re.MULTILINE)
    return {name: double or single or bare for name, double, single, bare in pairs}


def distribution_facts(system: Mapping[str, str]) -> dict[str, str]:
    """The facts of ansible.builtin.setup that the roles ask for, for the distributions that they know."""
    name = _DISTRIBUTIONS.get(system["id"])
    if name is None:
        return {}
    major = system["version"].partition(".")[0]
    return {"ansible_distribution": name, "ansible_distribution_major_version": major}


def filesystem(path: str) -> dict[str, Any]:
    """The filesystem that a path is on, or will be on once it is made."""
    existing = Path(path)
    while not existing.exists():
        existing = existing.parent
    mount = existing.resolve()
    device = mount.stat().st_dev
    while mount != mount.parent and mount.parent.stat().st_dev == device:
        mount = mount.parent
    room = os.statvfs(existing)
    return {
        "mount": str(mount),
        "device": device,
        "free_bytes": room.f_bavail * room.f_frsize,
        # btrfs and others make inodes as they go.
        "free_inodes": room.f_favail if room.f_files else None,
        "read_only": bool(room.f_flag & os.ST_RDONLY),
    }


def memory_mb(proc: Path, cgroups: Path) -> int:
    """Memory of the host, or what its container may use of it."""
    total = int(re.findall(r"^MemTotal:\s+(\d+) kB", (proc / "meminfo").read_text(), re.MULTILINE)[0]) // 1024
    limit = _text(cgroups / "memory.max").strip()
    return min(total, int(limit) // 2**20) if limit.isdigit() else total


# -- listening sockets


def listening(table: str) -> dict[str, dict[str, Any]]:
    """Sockets that listen, by inode, from the text of /proc/net/tcp or tcp6."""
    found = {}
    for line in table.splitlines()[1:]:
        words = line.split()
        if words[3] == _LISTENING:
            address, _unused, port = words[1].partition(":")
            found[words[9]] = {"port": int(port, 16), "address": _address(address), "uid": int(words[7])}
    return found


def _address(text: str) -> str:
    # Words of four bytes, each in the byte order of the machine: little on all that is supported.
    packed = b"".join(bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8))
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def unit_of(cgroup: str) -> str:
    """The systemd unit in the text of /proc/PID/cgroup, or an empty string."""
    for line in cgroup.splitlines():
        _unused, controllers, path = line.split(":", 2)
        if controllers in {"", "name=systemd"}:
            units = re.findall(r"([^/]+\.(?:service|scope|socket))(?=/|$)", path)
            if units:
                return str(units[-1])
    return ""


def listeners(proc: Path) -> list[dict[str, Any]]:
    """Who listens on which TCP port. The process is unknown to those who are not root."""
    sockets = {**listening(_text(proc / "net/tcp")), **listening(_text(proc / "net/tcp6"))}
    holders = _holders(proc, set(sockets))
    found = []
    for inode, entry in sockets.items():
        pid = holders.get(inode)
        found.append(
            {
                "port": entry["port"],
                "address": entry["address"],
                "user": _user(entry["uid"]),
                "pid": pid,
                "command": _text(proc / f"{pid}/comm").strip() if pid else "",
                "unit": unit_of(_text(proc / f"{pid}/cgroup")) if pid else "",
            }
        )
    return sorted(found, key=lambda entry: (entry["port"], entry["address"]))


def _holders(proc: Path, inodes: set[str]) -> dict[str, int]:
    """The lowest process that holds each socket: a parent before the workers that it made."""
    holders: dict[str, int] = {}
    for pid in sorted(int(entry.name) for entry in proc.iterdir() if entry.name.isdigit()):
        if len(holders) == len(inodes):
            break
        for inode in _sockets_of(proc / f"{pid}/fd"):
            if inode in inodes:
                holders.setdefault(inode, pid)
    return holders


def _sockets_of(folder: Path) -> Iterator[str]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            target = os.readlink(entry.path)  # noqa: PTH115 (thousands of them)
        except OSError:
            continue
        if target.startswith("socket:["):
            yield target[8:-1]


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# -- systemd and the clock


def systemd(run: Path = Path("/run")) -> dict[str, Any]:
    """Version of systemd and state of the system, both null where another init runs."""
    shown = ""
    if (run / "systemd/system").is_dir():
        # pylint: disable-next=ansible-bad-function
        shown = subprocess.run(
            ["systemctl", "show", "--property=Version,SystemState"], capture_output=True, text=True, check=False
        ).stdout
    values = dict(line.partition("=")[::2] for line in shown.splitlines())
    version = re.match(r"\d+", values.get("Version", ""))
    return {"version": int(version[0]) if version else None, "state": values.get("SystemState") or None}


def in_container(run: Path, proc: Path) -> bool:
    """Whether another kernel's owner keeps the clock."""
    return (run / "systemd/container").exists() or b"container=" in _bytes(proc / "1/environ")


def clock_error_us() -> int:
    """The kernel's estimate of how wrong its clock is, in microseconds."""
    timex = ctypes.create_string_buffer(512)
    if ctypes.CDLL(None, use_errno=True).adjtimex(timex) < 0:
        return _WORST_ERROR_US
    # struct timex: modes (padded), offset, freq, maxerror, each a long.
    return ctypes.c_long.from_buffer(timex, 3 * ctypes.sizeof(ctypes.c_long)).value


def synchronised(error_us: int, container: bool) -> bool | None:
    """Whether the time is kept in sync; null where that cannot be seen from inside."""
    if error_us < _WORST_ERROR_US:
        return True
    return None if container else False


# -- sources


def ask(urls: Sequence[str], seconds: float, fetch: Callable[[str, float], dict[str, Any]]) -> dict[str, Any]:
    """Ask all URLs at once. Whatever happens, this returns within about the time given."""
    answers: dict[str, Any] = {}

    def one(url: str) -> None:
        answers[url] = fetch(url, seconds)

    threads = [threading.Thread(target=one, args=(url,), daemon=True) for url in urls]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds + 0.5
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return {url: answers.get(url, _answer("timeout")) for url in urls}


def fetch_head(url: str, seconds: float) -> dict[str, Any]:
    """Whether a URL answers, with the environment's proxies and certificates."""
    # Only where sources are asked for: these imports take longer than all the rest.
    import ssl
    from http.client import HTTPException
    from urllib import error, parse, request

    try:
        parts = parse.urlsplit(url)
        if parts.scheme == "file":
            return _answer("" if Path(parse.unquote(parts.path)).exists() else "missing")
        if parts.scheme not in {"http", "https"}:
            return _answer("not asked")
        for method in ("HEAD", "GET"):
            headers = {"User-Agent": "wanmetal", "Range": "bytes=0-0"}
            question = request.Request(url, method=method, headers=headers)  # noqa: S310 (http and https only)
            try:
                with request.build_opener().open(question, timeout=seconds) as response:
                    answered, status = True, response.status
            except error.HTTPError as refusal:
                refusal.close()
                # An empty file has no first byte.
                answered, status = refusal.code == 416, refusal.code
            if answered:
                return _answer("", status)
            # Some servers know only GET.
            if method == "GET" or status not in {400, 403, 404, 405, 501}:
                return _answer("http", status)
    except (OSError, ValueError, HTTPException) as failure:
        reason = failure.reason if isinstance(failure, error.URLError) else failure
    kinds = (
        (socket.gaierror, "dns"),
        (ssl.SSLError, "tls"),
        (TimeoutError, "timeout"),
        (ConnectionRefusedError, "refused"),
    )
    return _answer(next((name for kind, name in kinds if isinstance(reason, kind)), "unreachable"))


def _answer(reason: str, status: int | None = None) -> dict[str, Any]:
    return {"ok": reason in {"", "not asked"}, "reason": reason, "status": status}


# -- what is ours: a deploy takes nothing over that it has not made, and an uninstall removes nothing else

_ACCOUNT = "wanmetal"
"""What the comments of our accounts begin with."""
_MARK = ".wanmetal"
"""A file in each of our folders."""
_NAMES = {
    *(_MARK, "lost+found"),
    *("git", "npm", "sageattention", "uv", "wheels"),
    *("handler", "home", "input", "models", "models-state", "output", "temp", "user"),
}
"""What older deploys and operators put into them beforehand: a cache that is kept, models that are brought along."""


def users(names: Sequence[str]) -> dict[str, Any]:
    """Accounts by name, null where there is none."""
    found: dict[str, Any] = dict.fromkeys(names)
    for name in names:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            found[name] = {
                "uid": entry.pw_uid,
                "home": entry.pw_dir,
                "shell": entry.pw_shell,
                "ours": _made(entry),
            }
    return found


def _made(entry: pwd.struct_passwd) -> bool:
    return entry.pw_uid != 0 and entry.pw_gecos.split(" ")[0] == _ACCOUNT


def groups(names: Sequence[str]) -> dict[str, Any]:
    """Groups by name, null where there is none. One is ours that is the first one of our accounts alone."""
    found: dict[str, Any] = dict.fromkeys(names)
    for name in names:
        with contextlib.suppress(KeyError):
            entry = grp.getgrnam(name)
            first = [user for user in pwd.getpwall() if user.pw_gid == entry.gr_gid]
            # Made and not yet used, where a deploy was cut off between the two.
            fresh = not first and not entry.gr_mem and name.startswith(_ACCOUNT)
            found[name] = {"gid": entry.gr_gid, "ours": fresh or (bool(first) and all(map(_made, first)))}
    return found


def folders(paths: Sequence[str], tmpfiles: Path = Path("/etc/tmpfiles.d/wanmetal.conf")) -> dict[str, Any]:
    """Folders by path, null where there is nothing yet."""
    declared = {line.split()[1] for line in _text(tmpfiles).splitlines() if line.startswith("d ")}
    found: dict[str, Any] = dict.fromkeys(paths)
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found[path] = _folder(Path(path), path in declared)
    return found


def _folder(path: Path, declared: bool) -> dict[str, Any]:
    try:
        entries = sorted(entry.name for entry in os.scandir(path))
    except FileNotFoundError:
        raise
    except OSError:  # a file, or links that lead in a circle
        return {"folder": False, "ours": False, "marked": False, "entries": []}
    mark = path / _MARK
    # A link, or another's file, may be made by whom the folder belongs to.
    marked = declared or (_MARK in entries and not mark.is_symlink() and mark.stat().st_uid == 0)
    return {"folder": True, "ours": marked or set(entries) <= _NAMES, "marked": marked, "entries": entries[:5]}


def units(folder: Path = Path("/etc/systemd/system")) -> dict[str, bool]:
    """The units that are there, templates among them, each with whether it is ours."""
    return {path.name: made_unit(path) for path in sorted(folder.glob("*.service"))}


def made_unit(path: Path) -> bool:
    """Whether a deploy has written a unit: it has our name in its own or in its text, or runs as one of our accounts.

    Others have services with the same names, such as comfyui.service or jupyterlab.service.
    """
    if not path.is_file():  # one that is masked is a link to a device
        return False
    text = _text(path)
    names = re.findall(r"(?m)^User=(\S+)", text)
    return _ACCOUNT in path.name + text or any((entry or {}).get("ours") for entry in users(names).values())


# -- what is installed


def pythons(folders: Sequence[Path] = (Path("/usr/bin"), Path("/usr/local/bin"))) -> dict[str, str]:
    """Interpreters on the path, by version."""
    found = {}
    for folder in reversed(folders):
        for path in folder.glob("python3.*"):
            if re.fullmatch(r"python3\.\d+", path.name):
                found[path.name.removeprefix("python")] = str(path)
    return found


def releases(root: Path) -> dict[str, Any]:
    """Releases that are built completely, and what the links name."""
    return {
        "installed": sorted(file.parent.name for file in root.glob("releases/[!.]*/release.json")),
        "current": _link(root / "current"),
        "previous": _link(root / "previous"),
    }


_BUILT = ("complete", "furnished", "program-complete")
"""What marks an environment of a service that is complete, by the role that builds it."""


def builds(root: Path) -> list[str]:
    """The marks of complete environments, as paths."""
    return sorted(str(mark) for name in _BUILT for mark in root.glob(f"environments/*/{name}"))


def _link(path: Path) -> str:
    return path.readlink().name if path.is_symlink() else ""


def _text(path: Path) -> str:
    return _bytes(path).decode(errors="replace")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def host_state(
    root: str, paths: Sequence[str], urls: Sequence[str], seconds: float, ours: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """All of it."""
    proc, run = Path("/proc"), Path("/run")
    release = os_release(_text(Path("/etc/os-release")))
    container = in_container(run, proc)
    there = units()
    return {
        "os": {
            "id": release.get("ID", ""),
            "version": release.get("VERSION_ID", ""),
            "name": release.get("PRETTY_NAME", ""),
        },
        "architecture": os.uname().machine,
        "container": container,
        "systemd": systemd(run),
        "memory_mb": memory_mb(proc, Path("/sys/fs/cgroup")),
        "filesystems": {path: filesystem(path) for path in paths},
        "listeners": listeners(proc),
        "synchronised": synchronised(clock_error_us(), container),
        "urls": ask(urls, seconds, fetch_head),
        "pythons": pythons(),
        "gpu": gpu_info.gpu_info(),
        "releases": releases(Path(root)),
        "builds": builds(Path(root)),
        "uid": os.geteuid(),
        "units": [name for name, ours in there.items() if ours],
        "strange_units": [name for name, ours in there.items() if not ours],
        "users": users(ours["users"]),
        "groups": groups(ours["groups"]),
        "folders": folders(ours["folders"]),
    }
