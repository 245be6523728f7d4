"""Switching a host from one release to another, with proof, and with a way back.

A *generation* is a release together with the settings that it runs with. The host keeps which generation the
running process was started with (in its environment) and which one was last proven (in ``proven.json``); both are
compared with the wanted one, so that a deploy that was cut off anywhere is finished by the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import hashlib
import json
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

COMPLETE = "release.json"
"""Written last by a build: a release folder without it is incomplete."""


class SwitchError(Exception):
    """A switch that did not take place, with what to tell the operator."""


@dataclass(frozen=True)
class ConfigFile:
    """A file of settings: where it belongs, what is in it, and who owns it."""

    dest: Path
    content: bytes
    owner: str
    group: str
    mode: int
    secret: bool = False

    @property
    def stored(self) -> str:
        """Name of the copy that is kept with a proven release."""
        return self.dest.name


@dataclass(frozen=True)
class Target:
    """A generation that a host is to run."""

    release: str
    config: tuple[ConfigFile, ...]
    generation: str


@dataclass
class Outcome:
    """What a switch did."""

    changed: bool = False
    reasons: list[str] = field(default_factory=list)
    restart_needed: bool = False
    restarted: bool = False
    proven: bool = False
    previous: str = ""
    outage_s: float | None = None
    drained_s: float = 0.0
    cut_off: int = 0
    removed: list[str] = field(default_factory=list)
    diff: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Health:
    """Answer of a health probe."""

    ok: bool
    reason: str = ""


def generation_of(release: str, contents: dict[str, tuple[bytes, int]]) -> str:
    """Hash of a release id and of its settings: ``{destination: (content, mode)}``."""
    digest = hashlib.sha256(release.encode())
    for dest in sorted(contents):
        content, mode = contents[dest]
        digest.update(f"\0{dest}\0{mode:o}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def releases_to_remove(releases: dict[str, float], keep: int, needed: set[str]) -> list[str]:
    """Which releases go: the oldest beyond ``keep``, never one that is ``needed``.

    ``releases`` gives the time at which each was built.
    """
    newest_first = sorted(releases, key=lambda name: (releases[name], name), reverse=True)
    kept = [name for name in newest_first if name in needed]
    for name in newest_first:
        if name not in kept and len(kept) < keep:
            kept.append(name)
    return [name for name in reversed(newest_first) if name not in kept]


class Host:
    """Everything that a switch reads from or does to the machine."""

    def __init__(self, root: Path, config_dir: Path, unit: str) -> None:
        self.root = root
        self.unit = unit
        self.generation_file = config_dir / f"{unit.removesuffix('.service')}.generation"
        self.proven_file = root / "proven.json"

    # -- releases
    def release_dir(self, release: str) -> Path:
        return self.root / "releases" / release

    def is_complete(self, release: str) -> bool:
        return bool(release) and (self.release_dir(release) / COMPLETE).is_file()

    def link(self, name: str) -> str:
        """Release that ``current`` or ``previous`` points to, or an empty string."""
        path = self.root / name
        return path.readlink().name if path.is_symlink() else ""

    def set_link(self, name: str, release: str) -> None:
        path = self.root / name
        if not release:
            path.unlink(missing_ok=True)
            return
        temporary = self.root / f".{name}.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(Path("releases") / release)
        temporary.replace(path)

    def built_at(self) -> dict[str, float]:
        folder = self.root / "releases"
        if not folder.is_dir():
            return {}
        return {
            entry.name: (entry / COMPLETE).stat().st_mtime for entry in folder.iterdir() if (entry / COMPLETE).is_file()
        }

    def remove_release(self, release: str) -> None:
        shutil.rmtree(self.release_dir(release))

    # -- settings
    def proven(self) -> dict[str, str]:
        try:
            found = json.loads(self.proven_file.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def set_proven(self, target: Target) -> None:
        """Remember the target as proven, with copies of its settings beside the release."""
        folder = self.release_dir(target.release) / "config"
        folder.mkdir(mode=0o700, exist_ok=True)
        for item in target.config:
            self.write(folder / item.stored, item.content, "root", "root", 0o600)
        record = {"release": target.release, "generation": target.generation}
        self.write(self.proven_file, json.dumps(record).encode(), "root", "root", 0o644)

    def write(self, path: Path, content: bytes, owner: str, group: str, mode: int) -> None:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.chown(name, pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid)
            Path(name).chmod(mode)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def differs(self, item: ConfigFile) -> bool:
        try:
            found = item.dest.stat()
            return (
                item.dest.read_bytes() != item.content
                or (found.st_mode & 0o7777) != item.mode
                or found.st_uid != pwd.getpwnam(item.owner).pw_uid
                or found.st_gid != grp.getgrnam(item.group).gr_gid
            )
        except FileNotFoundError:
            return True

    def recorded_generation(self) -> str:
        return _environment_value(self._read_text(self.generation_file).split("\n"), "WANMETAL_GENERATION")

    def record_generation(self, target: Target) -> None:
        text = f"WANMETAL_RELEASE={target.release}\nWANMETAL_GENERATION={target.generation}\n"
        self.write(self.generation_file, text.encode(), "root", "root", 0o644)

    @staticmethod
    def _read_text(path: Path) -> str:
        try:
            return path.read_text()
        except OSError:
            return ""

    # -- the service
    def systemctl(self, *arguments: str) -> tuple[int, str]:
        return _run(["systemctl", *arguments])

    def unit_state(self) -> dict[str, str]:
        _, text = self.systemctl(
            "show",
            self.unit,
            "--property=ActiveState,SubState,UnitFileState,MainPID,NeedDaemonReload,NRestarts",
        )
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def running_generation(self, main_pid: str) -> str:
        try:
            environment = Path(f"/proc/{main_pid}/environ").read_bytes().decode(errors="replace")
        except OSError:
            return ""
        return _environment_value(environment.split("\0"), "WANMETAL_GENERATION")

    def verify_unit(self, content: bytes) -> str:
        """Complaints of ``systemd-analyze verify``, or an empty string."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.unit
            path.write_bytes(content)
            code, text = _run(["systemd-analyze", "verify", "--man=no", str(path)])
        return text if code else ""

    def journal(self, since: float) -> str:
        _, text = _run(
            [
                "journalctl",
                "--unit",
                self.unit,
                "--since",
                f"@{int(since)}",
                "--lines=40",
                "--no-pager",
                "--output=cat",
            ]
        )
        return text

    @staticmethod
    def now() -> float:
        return time.time()

    @staticmethod
    def sleep(seconds: float) -> None:
        time.sleep(seconds)


def _run(command: list[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    except FileNotFoundError:
        return 127, f"{command[0]} is not on this host"
    return done.returncode, (done.stdout + done.stderr).strip()


def _environment_value(lines: list[str], name: str) -> str:
    return next((line.partition("=")[2] for line in lines if line.startswith(f"{name}=")), "")


@contextlib.contextmanager
def exclusive(root: Path, wait_s: float) -> Iterator[None]:
    """Hold the host's switch lock, so that two deploys never switch at the same time."""
    with (root / ".switch.lock").open("w") as lock:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise SwitchError(
                        f"{root}/.switch.lock is held by another deploy since more than {wait_s:.0f} s. "
                        "Wait until that one has ended, then run this again."
                    ) from None
                time.sleep(0.5)
        yield


@dataclass
class Switch:
    """One switch of one host.

    ``probe`` tells whether the API answers now, ``prove`` renders a graph and looks at the result, ``busy`` counts
    the jobs that are queued or running.
    """

    host: Host
    probe: Callable[[], Health]
    prove: Callable[[], Health]
    busy: Callable[[], int]
    drain_timeout_s: float = 0.0

    def target(self, release: str, config: tuple[ConfigFile, ...]) -> Target:
        contents = {str(item.dest): (item.content, item.mode) for item in config}
        return Target(release, config, generation_of(release, contents))

    def stored_target(self, release: str, config: tuple[ConfigFile, ...]) -> Target | None:
        """The generation that a release was last proven with, or None where there is none."""
        folder = self.host.release_dir(release) / "config"
        if not release or not self.host.is_complete(release) or not folder.is_dir():
            return None
        stored = tuple(
            replace(item, content=(folder / item.stored).read_bytes())
            for item in config
            if (folder / item.stored).is_file()
        )
        return self.target(release, stored)

    def reasons(self, target: Target) -> tuple[list[str], bool]:
        """Why the host is not as wanted, and whether mending it takes a restart."""
        host = self.host
        state = host.unit_state()
        restart: list[str] = []
        if (current := host.link("current")) != target.release:
            restart.append(f"the running release is {current or 'none'}, wanted is {target.release}")
        restart.extend(f"{item.dest} differs" for item in target.config if host.differs(item))
        if state.get("ActiveState") != "active":
            restart.append(f"{host.unit} is {state.get('ActiveState') or 'unknown'}")
        elif host.running_generation(state.get("MainPID", "0")) != target.generation:
            restart.append("the running process was started with other settings")
        elif not restart and not (health := self.probe()).ok:
            restart.append(f"the API does not answer: {health.reason}")
        rest: list[str] = []
        if state.get("UnitFileState") != "enabled":
            rest.append(f"{host.unit} does not start at boot")
        if host.proven().get("generation") != target.generation:
            rest.append("this generation has not rendered anything yet")
        return restart + rest, bool(restart)

    def diff(self, target: Target) -> list[dict[str, str]]:
        result = [
            {
                "before_header": "current",
                "after_header": "current",
                "before": f"{self.host.link('current') or '(none)'}\n",
                "after": f"{target.release}\n",
            }
        ]
        for item in target.config:
            if item.secret or not self.host.differs(item):
                continue
            before = item.dest.read_text() if item.dest.exists() else ""
            header = str(item.dest)
            result.append(
                {
                    "before_header": header,
                    "after_header": header,
                    "before": before,
                    "after": item.content.decode(),
                }
            )
        return result

    def run(self, target: Target, check: bool = False) -> Outcome:
        """Bring the host to the target, or back to the generation that was proven last."""
        outcome = Outcome()
        outcome.reasons, outcome.restart_needed = self.reasons(target)
        outcome.changed = bool(outcome.reasons)
        if not outcome.changed:
            outcome.proven = True
            return outcome
        outcome.diff = self.diff(target)
        if check:
            return outcome
        self._refuse_broken_unit(target)
        fallback = self.stored_target(self.host.proven().get("release", ""), target.config)
        if outcome.restart_needed:
            self._drain(outcome)
        failure, log = self._bring_up(target, outcome.restart_needed, outcome)
        if not failure:
            self._record(target, fallback, outcome)
            return outcome
        raise SwitchError(
            f"Release {target.release} did not become healthy: {failure}. "
            f"{self._go_back(target, fallback)}\n"
            f"Last lines of {self.host.unit}:\n{log or '(the journal has none)'}"
        )

    def prune(self, keep: int) -> list[str]:
        """Remove the oldest releases beyond ``keep``; the running and the previous one stay."""
        needed = {
            self.host.link("current"),
            self.host.link("previous"),
            self.host.proven().get("release", ""),
        }
        gone = releases_to_remove(self.host.built_at(), keep, needed)
        for release in gone:
            self.host.remove_release(release)
        return gone

    def _record(self, target: Target, fallback: Target | None, outcome: Outcome) -> None:
        self.host.set_proven(target)
        outcome.proven = True
        if fallback is not None and fallback.release != target.release:
            self.host.set_link("previous", fallback.release)
        outcome.previous = self.host.link("previous")

    def _go_back(self, target: Target, fallback: Target | None) -> str:
        if fallback is None:
            self.host.systemctl("stop", self.host.unit)
            self.host.systemctl("reset-failed", self.host.unit)
            return f"There is no earlier release to go back to; {self.host.unit} is stopped."
        failure, _ = self._bring_up(fallback, True, Outcome())
        if failure:
            return f"Going back to {fallback.release} failed too: {failure}."
        what = "its earlier settings" if fallback.release == target.release else f"release {fallback.release}"
        return f"The host is back on {what} and serves again."

    def _bring_up(self, target: Target, restart: bool, outcome: Outcome) -> tuple[str, str]:
        """Install, restart and prove a target. Returns what failed and the journal, both empty on success."""
        host = self.host
        started = host.now()
        if restart:
            for item in target.config:
                if host.differs(item):
                    host.write(item.dest, item.content, item.owner, item.group, item.mode)
            host.record_generation(target)
            host.set_link("current", target.release)
            host.systemctl("daemon-reload")
            host.systemctl("reset-failed", host.unit)
            stopped = host.now()
            code, text = host.systemctl("restart", host.unit)
            outcome.restarted = True
            if code:
                return f"{host.unit} did not start ({text.splitlines()[0] if text else code})", host.journal(started)
            outcome.outage_s = round(host.now() - stopped, 2)
        host.systemctl("enable", "--quiet", host.unit)
        before = host.unit_state()
        health = self.prove()
        after = host.unit_state()
        if not health.ok:
            return health.reason, host.journal(started)
        if before.get("MainPID") != after.get("MainPID") or after.get("ActiveState") != "active":
            return "its process ended while it was being proven", host.journal(started)
        return "", ""

    def _refuse_broken_unit(self, target: Target) -> None:
        first = not self.host.link("current")
        if first:
            self.host.set_link("current", target.release)  # the unit names programs below it
        for item in target.config:
            if item.dest.name != self.host.unit or not (complaint := self.host.verify_unit(item.content)):
                continue
            if first:
                self.host.set_link("current", "")
            raise SwitchError(f"systemd-analyze verify refuses {item.dest}; nothing was changed. It says: {complaint}")

    def _drain(self, outcome: Outcome) -> None:
        """Wait for the jobs that are under way, within limits."""
        if self.host.unit_state().get("ActiveState") != "active":
            return
        begin = self.host.now()
        while (jobs := self.busy()) and self.host.now() - begin < self.drain_timeout_s:
            self.host.sleep(0.5)
        outcome.drained_s = round(self.host.now() - begin, 1)
        outcome.cut_off = jobs


def as_result(outcome: Outcome) -> dict[str, Any]:
    """The outcome as a module's return values, without the diff."""
    return {key: value for key, value in vars(outcome).items() if key != "diff"}
