"""The download without Ansible: the program that a service runs, how it comes to a host, and how it is started."""

from __future__ import annotations

import io
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TextIO

from ansible_collections.wanmetal.comfyui.plugins.module_utils import downloads
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads import progress
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.engine import LOCK, Engine
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.record import Record, reread
from ansible_collections.wanmetal.comfyui.plugins.module_utils.downloads.request import Request, parse
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host import files, units
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import (
    BusyError,
    as_user,
    exclusive,
    read_regular,
    write_whole,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import duration
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import size as human

JOB = "job.json"
USAGE = "usage: wanmetal-models run JOB.json | verify STATE_DIR | status STATE_DIR"
INTERRUPTED = 75
"""What was asked for is not done, and nothing is wrong."""
_EVERY_S = 30.0
_MAIN = f"import sys\nfrom {__name__} import main\nsys.exit(main(sys.argv[1:]))\n"
# The same sources make the same bytes.
_DATE = (2020, 1, 1, 0, 0, 0)
# What the program reads; the rest is for the module.
_OPTIONS = (
    *("files", "dest", "state_dir", "list", "tokens", "peers", "civitai_api", "connections", "parallel", "limit"),
    *("reserve", "tries", "pause", "verify", "prune", "allow_unverified"),
)
_LONG_S = 7 * 24 * 3600


def _say(text: str, stream: TextIO | None = None) -> None:
    (stream or sys.stdout).write(f"{text}\n")
    (stream or sys.stdout).flush()


def main(arguments: list[str]) -> int:
    """Run one command; return the exit status."""
    if len(arguments) != 2 or arguments[0] not in {"run", "verify", "status"}:
        _say(USAGE, sys.stderr)
        return 2
    command, path = arguments[0], Path(arguments[1])
    if command == "run":
        return run(path)
    return verify(path) if command == "verify" else status(path)


class Reporter:
    """Reports to systemd each second, and to the journal now and then."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, state: dict[str, Any]) -> None:
        """Pass the progress on."""
        line = progress.line(state)
        notify(f"STATUS={line}")
        if time.monotonic() >= self._next or state["phase"] == "done":
            self._next = time.monotonic() + _EVERY_S
            _say(line)


def run(path: Path) -> int:
    """Fetch what a file asks for."""
    request = parse(json.loads(read_regular(path)))
    state_dir = request.settings.state_dir
    state_dir.mkdir(parents=True, exist_ok=True)
    try:
        with exclusive(state_dir / LOCK, request.wait_s) as lock:
            engine = Engine(request.wanted, request.settings, lock, Reporter())
            signal.signal(signal.SIGTERM, lambda *_unused: engine.stop())
            if request.read_again:
                engine.read_again()
            outcome = engine.run()
    except BusyError as busy:
        _say(f"another download runs on this host ({busy})", sys.stderr)
        return 1
    for failure in outcome.failed:
        _say(f"{failure['file']}: {failure['problem']}", sys.stderr)
    if outcome.interrupted:
        return INTERRUPTED
    if not outcome.failed:
        # It holds the tokens, and is not needed any longer.
        path.unlink(missing_ok=True)
        _say(f"all {len(outcome.files)} files are there; {human(outcome.fetched_bytes)} were fetched")
    return 1 if outcome.failed else 0


def verify(state_dir: Path) -> int:
    """Read everything again that was verified once. What is wrong is named, and verified or fetched anew next time."""
    begun = time.monotonic()
    with exclusive(state_dir / LOCK):
        record = Record(state_dir)
        wrong = reread(record, None, lambda done, total: notify(f"STATUS={human(done)} of {human(total)} read"))
        for item in wrong:
            record.forget(Path(item["path"]))
            _say(f"{item['path']}: sha256 is {item['found']}, it was {item['expected']}", sys.stderr)
    _say(f"{len(record.proofs)} files are as they were; read in {duration(time.monotonic() - begun)}")
    return 1 if wrong else 0


def status(state_dir: Path) -> int:
    """Show how far the download is."""
    state = progress.load(state_dir)
    _say(progress.line(state) if state else "no download has run here")
    return 0


def notify(text: str) -> None:
    """Tell systemd something, where it listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.connect("\0" + address[1:] if address.startswith("@") else address)
        out.send(text.encode())


# -- its way to a host


def build() -> bytes:
    """Pack this package and what it uses of others, whether they lie in a folder or in Ansible's own archive."""
    sources = {"__main__.py": _MAIN}
    own = [f"{downloads.__name__}.{module.name}" for module in pkgutil.iter_modules(downloads.__path__)]
    for name in [*own, files.__name__, units.__name__]:
        package, _unused, module_name = name.rpartition(".")
        folders = package.split(".")
        for depth in range(len(folders)):
            sources["/".join([*folders[: depth + 1], "__init__.py"])] = ""
        data = pkgutil.get_data(package, f"{module_name}.py") or b""
        sources[f"{'/'.join(folders)}/{module_name}.py"] = data.decode()
    packed = io.BytesIO()
    packed.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as out:
        for name, text in sorted(sources.items()):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            out.writestr(entry, text)
    return packed.getvalue()


# -- the service


class ServiceError(Exception):
    """systemd did not do what it was asked."""


def state(path: str | None) -> str:
    """Say whether the program in its place is missing, outdated or current; empty without a place."""
    if not path:
        return ""
    try:
        return "current" if read_regular(Path(path)) == build() else "outdated"
    except OSError:
        return "missing"


def install(path: str) -> None:
    """Put the program in its place."""
    write_whole(Path(path), build(), 0o755)


def start(unit: str, request: Request, params: Mapping[str, Any]) -> bool:
    """Write down what is asked for and start the service; say whether that changed anything."""
    job, user = request.settings.state_dir / JOB, request.user
    # The service waits for a run that holds the lock, however long it takes.
    text = json.dumps({**{key: params[key] for key in _OPTIONS}, "wait": _LONG_S}, indent=1, sort_keys=True) + "\n"
    try:
        same = read_regular(job) == text.encode()
    except OSError:
        same = False
    if not same:
        # It holds the tokens: only the user that fetches may read it.
        with as_user(user) if user else nullcontext():
            write_whole(job, text, 0o600)
    active = _systemctl("show", "--property=ActiveState", "--value", unit)
    if same and active in {"active", "activating"}:
        return False
    _systemctl("restart", "--no-block", unit)
    return True


def _systemctl(*arguments: str) -> str:
    # pylint: disable-next=ansible-bad-function
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServiceError(f"systemctl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()
