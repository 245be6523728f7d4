"""Switching a host from one release to another, with verification, and with a way back.

A *generation* is a release together with the settings that it runs with. The host keeps which generation the
running process was started with (in its environment) and which one was last verified (in ``verified.json``); both are
compared with the wanted one, so that a deploy that was cut off anywhere is finished by the next.
"""

from __future__ import annotations

import base64
import contextlib
import grp
import hashlib
import json
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.boot import AtBoot
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import (
    BusyError,
    exclusive,
    sync_folder,
    write_whole,
)
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import duration
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release import environments
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.build import COMPLETE
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.checkouts import damaged

SETTINGS = "settings.json"
"""The settings that a release was last verified with, secrets included: in its folder, readable by root alone."""

SET_ASIDE = "wanmetal-back"
"""At the end of the names of files that lie ready for the way back."""

_ENVIRONMENTS = "comfyui"
"""What the names of the environments of releases begin with."""

LAST_LINES = 40
"""Of the journal, in the message of a failure."""

ABANDONED_S = 86400.0
"""Age at which an incomplete release folder is no longer a build that is under way."""


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


@dataclass(frozen=True)
class Worker:
    """A process that renders: its unit, and the address of its API."""

    unit: str
    url: str


@dataclass(frozen=True)
class Target:
    """A generation that a host is to run."""

    release: str
    config: tuple[ConfigFile, ...]
    generation: str
    workers: tuple[Worker, ...]


@dataclass
class Outcome:
    """What a switch did."""

    changed: bool = False
    reasons: list[str] = field(default_factory=list)
    restart_needed: bool = False
    restarted: bool = False
    verified: bool = False
    previous: str = ""
    outage_s: float | None = None
    drained_s: float = 0.0
    cut_off: int = 0
    silent: int = 0
    removed: list[str] = field(default_factory=list)
    diff: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Need:
    """What a host lacks, each with its reason: a restart, a verification, or a fix beside the running service."""

    restart: list[str] = field(default_factory=list)
    verification: list[str] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)

    @property
    def reasons(self) -> list[str]:
        """All of them, a sentence each."""
        return self.restart + self.verification + self.rest


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


def pack(config: tuple[ConfigFile, ...], workers: tuple[Worker, ...]) -> bytes:
    """Settings as they are kept with a verified release."""
    files = [
        {
            **vars(item),
            "dest": str(item.dest),
            "content": base64.b64encode(item.content).decode(),
        }
        for item in config
    ]
    return json.dumps({"config": files, "workers": [vars(worker) for worker in workers]}).encode()


def unpack(data: bytes) -> tuple[tuple[ConfigFile, ...], tuple[Worker, ...]]:
    """The settings that ``pack`` kept."""
    kept = json.loads(data)
    config = tuple(
        ConfigFile(**{**entry, "dest": Path(entry["dest"]), "content": base64.b64decode(entry["content"])})
        for entry in kept["config"]
    )
    return config, tuple(Worker(**entry) for entry in kept["workers"])


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

    _running = "--state=active,activating,reloading"

    def __init__(self, root: Path, config_dir: Path, unit: str, units: Path = Path("/etc/systemd/system")) -> None:
        self.root = root
        self.unit = unit
        self.units = units
        self.generation_file = config_dir / f"{unit.removesuffix('.service')}.generation"
        self.verified_file = root / "verified.json"

    # -- releases
    def release_dir(self, release: str) -> Path:
        """Folder of a release, whether it exists or not."""
        return self.root / "releases" / release

    def is_complete(self, release: str) -> bool:
        """Whether a release was built to its end."""
        return bool(release) and (self.release_dir(release) / COMPLETE).is_file()

    def link(self, name: str) -> str:
        """Release that ``current`` or ``previous`` points to, or an empty string."""
        path = self.root / name
        return path.readlink().name if path.is_symlink() else ""

    def set_link(self, name: str, release: str) -> None:
        """Point ``current`` or ``previous`` to a release in one step, or remove it where ``release`` is empty."""
        path = self.root / name
        if not release:
            path.unlink(missing_ok=True)
            return
        temporary = self.root / f".{name}.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(Path("releases") / release)
        temporary.replace(path)
        sync_folder(self.root)

    def built_at(self) -> dict[str, float]:
        """The complete releases, each with the time at which it was built."""
        return {folder.name: (folder / COMPLETE).stat().st_mtime for folder in self._folders(complete=True)}

    def abandoned(self) -> list[str]:
        """Folders that a build or a removal which was cut off has left."""
        before = self.now() - ABANDONED_S
        return sorted(folder.name for folder in self._folders(complete=False) if folder.stat().st_mtime < before)

    def _folders(self, complete: bool) -> list[Path]:
        folders = [path for path in (self.root / "releases").glob("*") if path.is_dir()]
        # A build gets its name last, so one that is hidden is none yet.
        return [path for path in folders if (path.name[0] != "." and (path / COMPLETE).is_file()) == complete]

    def unmark(self, folder: Path, mark: str) -> None:
        """Have the next deploy build a release or an environment anew."""
        (folder / mark).unlink(missing_ok=True)
        sync_folder(folder)

    def damaged(self, release: str) -> list[str]:
        """Files of a release that are not as they were built."""
        core = self.release_dir(release) / "ComfyUI"
        checkouts = [core, *(path for path in sorted((core / "custom_nodes").glob("*")) if path.is_dir())]
        return [str(folder.relative_to(core) / name) for folder in checkouts for name in damaged(folder)]

    # -- environments: each may serve several releases, which link to it
    def environment(self, release: str) -> Path | None:
        """The Python environment that a release links to, or None."""
        link = self.release_dir(release) / "venv"
        return self.root / "environments" / link.readlink().parent.name if link.is_symlink() else None

    def environments(self) -> list[str]:
        """The environments of releases that are complete."""
        folders = (self.root / "environments").glob(f"{_ENVIRONMENTS}-*")
        return sorted(
            path.name
            for path in folders
            if environments.prefix_of(path.name) == _ENVIRONMENTS and (path / environments.COMPLETE).is_file()
        )

    def unused_environments(self, without: Collection[str] = ()) -> list[str]:
        """Environments that no release but those in ``without`` links to, builds under way included."""
        return environments.unused(self.root / "environments", _ENVIRONMENTS, releases_without=without)

    def remove_environment(self, name: str) -> None:
        """Remove an environment by its name."""
        environments.remove(self.root / "environments" / name)

    def remove_release(self, release: str) -> None:
        """Remove a release, not its environment."""
        folder = self.release_dir(release)
        (folder / COMPLETE).unlink(missing_ok=True)  # first, or half a release would pass for a whole one
        shutil.rmtree(folder)

    @contextlib.contextmanager
    def removing(self) -> Iterator[bool]:
        """Keep builds away while things are removed; False where one is under way."""
        try:
            with contextlib.ExitStack() as held:
                for folder in ("releases", "environments"):
                    if (self.root / folder).is_dir():
                        held.enter_context(exclusive(self.root / folder / ".lock"))
                yield True
        except BusyError:
            yield False

    # -- settings
    def verified(self) -> dict[str, str]:
        """What was verified last: ``release``, ``generation``, ``previous``; empty where nothing was."""
        try:
            found = json.loads(self.verified_file.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def set_verified(self, target: Target, previous: str) -> None:
        """Remember the target as verified, its settings, and the release before it."""
        settings = pack(target.config, target.workers)
        self.write(self.release_dir(target.release) / SETTINGS, settings, "root", "root", 0o600)
        record = {"release": target.release, "generation": target.generation, "previous": previous}
        self.write(self.verified_file, json.dumps(record).encode(), "root", "root", 0o644)

    def verified_settings(self, release: str) -> tuple[tuple[ConfigFile, ...], tuple[Worker, ...]] | None:
        """The settings that a release was last verified with, or None where it never was."""
        try:
            return unpack((self.release_dir(release) / SETTINGS).read_bytes())
        except (OSError, ValueError, TypeError, LookupError):
            return None

    def write(self, path: Path, content: bytes, owner: str, group: str, mode: int) -> None:
        """Write a file as a whole or not at all."""
        path.parent.mkdir(exist_ok=True)  # of a unit's drop-in
        write_whole(path, content, mode, owner=owner, group=group)

    def differs(self, item: ConfigFile) -> bool:
        """Whether a file's content, mode, owner or group is not as wanted."""
        try:
            found = item.dest.stat()
            return (
                item.dest.read_bytes() != item.content
                or (found.st_mode & 0o7777) != item.mode
                or found.st_uid != pwd.getpwnam(item.owner).pw_uid
                or found.st_gid != grp.getgrnam(item.group).gr_gid
            )
        except (FileNotFoundError, KeyError):  # KeyError: check mode, and its owner is not made yet
            return True

    def record_generation(self, release: str, generation: str, to: Path | None = None) -> None:
        """Say what the next process is: it takes this into its environment."""
        text = f"WANMETAL_RELEASE={release}\nWANMETAL_GENERATION={generation}\n"
        self.write(to or self.generation_file, text.encode(), "root", "root", 0o644)

    def recorded_generation(self) -> str:
        """The generation that the next process will be."""
        try:
            return _environment_value(self.generation_file.read_text().splitlines(), "WANMETAL_GENERATION")
        except OSError:
            return ""

    # -- the way back: all of it is on disk before a switch, since a disk may be full when it is needed
    def set_aside(self, target: Target) -> None:
        """Lay ready what ``put_back`` puts into place."""
        for item in target.config:
            self.write(_aside(item.dest), item.content, item.owner, item.group, item.mode)
        self.record_generation("", "", _aside(self.generation_file, "none."))
        self.record_generation(target.release, target.generation, _aside(self.generation_file))
        self.set_link(_aside(self.root / "current").name, target.release)

    def put_back(self, path: Path, which: str = "") -> None:
        """Put into place what was set aside, unless it is there by now. Needs no room on the disk."""
        with contextlib.suppress(FileNotFoundError):
            _aside(path, which).replace(path)
            sync_folder(path.parent)

    def discard_set_aside(self, folders: set[Path]) -> None:
        """Remove what was set aside in these folders, and what would put it back at the next boot."""
        for path in (path for folder in folders for path in folder.glob(f".*.{SET_ASIDE}")):
            path.unlink(missing_ok=True)
        self.at_boot.remove()

    @property
    def at_boot(self) -> AtBoot:
        """What rolls a switch back where this host loses power before its end."""
        return AtBoot(self.unit, self.root / "services", self.units)

    def at_boot_call(self, function: Callable[[str, str, str, str], str], before: Iterable[str]) -> None:
        """Have the next boot call the function before it starts these units."""
        arguments = (str(self.root), str(self.generation_file.parent), self.unit, str(self.units))
        self.at_boot.set_up(function, arguments, before)

    # -- the service, and its workers where it has several: comfyui.service, and comfyui@0.service and so on
    @contextlib.contextmanager
    def guarded(self, otherwise: Callable[[], object]) -> Iterator[None]:
        """Have another process do ``otherwise`` where this one is killed before the end.

        That process holds the locks of this one, so a deploy that comes meanwhile waits for it.
        """
        waits, ends = os.pipe()
        guard = os.fork()
        if not guard:
            try:
                os.setsid()
                os.close(ends)
                null = os.open(os.devnull, os.O_RDWR)
                for stream in range(3):  # whoever started this process waits for their end
                    os.dup2(null, stream)
                if not os.read(waits, 1):
                    otherwise()
            finally:
                os._exit(0)
        os.close(waits)
        try:
            yield
            with contextlib.suppress(OSError):
                os.write(ends, b".")
        finally:
            os.close(ends)
            os.waitpid(guard, 0)

    def systemctl(self, *arguments: str) -> tuple[int, str]:
        """Exit status and output of systemctl."""
        return _run(["systemctl", *arguments])

    def run(self, command: list[str]) -> tuple[int, str]:
        """Exit status and output of another program."""
        return _run(command)

    def unit_state(self, unit: str) -> dict[str, str]:
        """ActiveState, UnitFileState and MainPID of a unit, as systemd gives them."""
        _unused, text = self.systemctl("show", unit, "--property=ActiveState,UnitFileState,MainPID")
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    @property
    def workers_pattern(self) -> str:
        """Pattern of the names of the workers' units."""
        return self.unit.replace(".service", "@*.service")

    def running_workers(self) -> list[str]:
        """Workers of the service that run, or are about to."""
        _unused, text = self.systemctl("list-units", self._running, "--plain", "--no-legend", self.workers_pattern)
        return [line.split()[0] for line in text.splitlines() if line.strip()]

    def running_generation(self, main_pid: str) -> str:
        """The generation that a process was started with, or an empty string."""
        try:
            environment = Path(f"/proc/{main_pid}/environ").read_bytes().decode(errors="replace")
        except OSError:
            return ""
        return _environment_value(environment.split("\0"), "WANMETAL_GENERATION")

    def verify_unit(self, name: str, content: bytes, programs: tuple[ConfigFile, ...]) -> str:
        """Complaints of ``systemd-analyze verify``, or an empty string.

        The unit may name ``programs`` that are not installed yet, and systemd refuses what is not there.
        """
        with tempfile.TemporaryDirectory() as folder:
            for number, program in enumerate(programs):
                stand_in = Path(folder) / f"program{number}"
                stand_in.write_bytes(program.content)
                stand_in.chmod(0o700)
                content = content.replace(str(program.dest).encode(), str(stand_in).encode())
            path = Path(folder) / name.replace("@.", "@0.")
            path.write_bytes(content)
            code, text = _run(["systemd-analyze", "verify", "--man=no", str(path)])
        return text if code else ""

    def journal(self, since: float) -> str:
        """Last lines of the service and its workers since a time (seconds of the epoch)."""
        _run(["journalctl", "--sync"])  # or the very last words, which matter most, may not be in it yet
        # With --since, --lines would give the first ones.
        units = ["--unit", self.unit, "--unit", self.workers_pattern]
        _unused, text = _run(["journalctl", *units, "--since", f"@{int(since)}", "--no-pager", "--output=cat"])
        return "\n".join(text.splitlines()[-LAST_LINES:])

    def now(self) -> float:
        """Seconds of the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds of a clock that nobody sets."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait for so many seconds."""
        time.sleep(seconds)


class BootingHost(Host):
    """A host at its boot: what systemd is going to start waits for the end of what asks here."""

    _running = "--all"

    def systemctl(self, *arguments: str) -> tuple[int, str]:
        """Ask, and do not wait."""
        return super().systemctl("--no-block", *arguments)


def _aside(path: Path, which: str = "") -> Path:
    return path.with_name(f".{path.name}.{which}{SET_ASIDE}")


def _run(command: list[str]) -> tuple[int, str]:
    try:
        # pylint: disable-next=ansible-bad-function
        done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    except FileNotFoundError:
        return 127, f"{command[0]} is not on this host"
    return done.returncode, (done.stdout + done.stderr).strip()


def _environment_value(lines: list[str], name: str) -> str:
    return next((line.partition("=")[2] for line in lines if line.startswith(f"{name}=")), "")


@contextlib.contextmanager
def switch_lock(root: Path, wait_s: float) -> Iterator[None]:
    """Hold the host's switch lock, so that two deploys never switch at the same time."""
    path = root / ".switch.lock"
    try:
        with exclusive(path, wait_s):
            yield
    except BusyError as holder:
        raise SwitchError(
            f"{path} is held by another deploy ({holder}), for more than {duration(wait_s)}. "
            "Wait until that one has ended, then run this again."
        ) from None


@dataclass
class Switch:
    """One switch of one host.

    Of a worker, ``probe`` tells whether its API answers now, ``verify`` renders a graph and looks at the result, and
    ``busy`` counts the jobs that are queued or running, or is None where the worker does not say.
    """

    host: Host
    probe: Callable[[Worker], Health]
    verify: Callable[[Worker], Health]
    busy: Callable[[Worker], int | None]
    drain_timeout_s: float = 0.0

    def target(self, release: str, config: tuple[ConfigFile, ...], workers: tuple[Worker, ...]) -> Target:
        """A release with its settings and workers, under the hash of them."""
        contents = {str(item.dest): (item.content, item.mode) for item in config}
        return Target(release, config, generation_of(release, contents), workers)

    def stored_target(self, release: str) -> Target | None:
        """The generation that a release was last verified with, or None where there is none."""
        if not self.host.is_complete(release):
            return None
        settings = self.host.verified_settings(release)
        return None if settings is None else self.target(release, *settings)

    def need(self, target: Target) -> Need:
        """What the host lacks of the target."""
        host = self.host
        states = {unit: host.unit_state(unit) for unit in self._units(target)}
        verified = host.verified()
        need = Need()
        if (current := host.link("current")) != target.release:
            need.restart.append(f"the running release is {current or 'none'}, wanted is {target.release}")
        need.restart.extend(f"{item.dest} differs" for item in target.config if host.differs(item))
        need.restart.extend(f"{unit} runs, and is not wanted" for unit in self._strangers(target))
        stopped = [unit for unit, state in states.items() if state.get("ActiveState") != "active"]
        if stopped:
            need.restart.extend(f"{unit} is {states[unit].get('ActiveState') or 'unknown'}" for unit in stopped)
        elif any(host.running_generation(s.get("MainPID", "0")) != target.generation for s in states.values()):
            need.restart.append("the running process was started with other settings")
        elif not need.restart and (reason := self._first_failure(self.probe, target)):
            need.restart.append(f"the API does not answer: {reason}")
        if verified.get("generation") != target.generation:
            need.verification.append("this generation has not rendered anything yet")
        elif host.verified_settings(target.release) is None:
            need.rest.append("the release was built anew, without the settings that it was verified with")
        if states[host.unit].get("UnitFileState") != "enabled":
            need.rest.append(f"{host.unit} does not start at boot")
        if host.at_boot.is_set_up():
            need.rest.append("an earlier switch was cut off")
        if (previous := verified.get("previous", "")) and host.link("previous") != previous:
            need.rest.append(f"the link to the previous release, {previous}, is not in place")
        return need

    def _units(self, target: Target) -> list[str]:
        """The service, and its workers where these are units of their own."""
        return list(dict.fromkeys([self.host.unit, *(worker.unit for worker in target.workers)]))

    def _strangers(self, target: Target) -> list[str]:
        return [unit for unit in self.host.running_workers() if unit not in self._units(target)]

    def _first_failure(self, look: Callable[[Worker], Health], target: Target) -> str:
        """Why the first worker that does not pass does not, or an empty string."""
        for worker in target.workers:
            if not (health := look(worker)).ok:
                return health.reason if len(target.workers) == 1 else f"{worker.unit}: {health.reason}"
        return ""

    def diff(self, target: Target) -> list[dict[str, str]]:
        """What a switch to the target would change, for ``--diff``: the release and every file that is no secret."""
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
        """Bring the host to the target, or back to the generation that was verified last."""
        need = self.need(target)
        outcome = Outcome(changed=bool(need.reasons), reasons=need.reasons, restart_needed=bool(need.restart))
        if outcome.changed:
            outcome.diff = self.diff(target)
        if check:
            return outcome
        if need.restart or need.verification:
            self._verify(target, outcome)
        elif outcome.changed:
            self._record(target)
            self.host.discard_set_aside(self._folders(target))
        outcome.verified = True
        outcome.previous = self.host.link("previous")
        return outcome

    def prune(self, keep: int, check: bool = False) -> list[str]:
        """Remove the oldest releases beyond ``keep``, what builds that were cut off have left, and unused environments.

        The running, the verified and the previous release stay.
        """
        needed = {
            self.host.link("current"),
            self.host.link("previous"),
            self.host.verified().get("release", ""),
        }
        with self.host.removing() if not check else contextlib.nullcontext(True) as alone:
            if not alone:
                return []  # another deploy builds; the next one removes them
            abandoned = [name for name in self.host.abandoned() if name not in needed]
            gone = releases_to_remove(self.host.built_at(), keep, needed) + abandoned
            unused = self.host.unused_environments(without=gone)
            if not check:
                for release in gone:
                    self.host.remove_release(release)
                for environment in unused:
                    self.host.remove_environment(environment)
            return gone + unused

    def _verify(self, target: Target, outcome: Outcome) -> None:
        self._refuse_broken_unit(target)
        fallback = self.stored_target(self.host.verified().get("release", ""))
        self._drain(target, fallback, outcome)
        if outcome.drained_s:
            # It may have been silent because it was loading a model.
            outcome.restart_needed = bool(self.need(target).restart)
        if (outcome.cut_off or outcome.silent) and not outcome.restart_needed:
            raise SwitchError(
                f"Release {target.release} runs, but it was never verified, and other jobs kept it busy for "
                f"{duration(outcome.drained_s)}. Nothing was changed; deploy again when it is idle, or with a longer "
                "comfyui_drain_timeout."
            )
        way_back = (
            fallback if outcome.restart_needed and fallback and fallback.generation != target.generation else None
        )
        folders = self._folders(target, fallback)
        if way_back:
            workers = dict.fromkeys(worker.unit for worker in (*way_back.workers, *target.workers))
            try:
                self.host.set_aside(way_back)
                self.host.at_boot_call(roll_back_at_boot, before=dict.fromkeys([self.host.unit, *workers]))
            except (OSError, LookupError) as error:
                self.host.discard_set_aside(folders)
                raise SwitchError(
                    f"Nothing was changed: the way back to release {way_back.release} could not be kept ({error})."
                ) from error

        def go_back() -> str:
            return self._go_back(target, fallback, set_aside=way_back is not None)

        def give_up() -> None:
            go_back()
            self.host.discard_set_aside(folders)

        with self.host.guarded(give_up) if way_back else contextlib.nullcontext():
            failure, log = self._bring_up(target, outcome)
            back = go_back() if failure else ""
        if not failure:
            self._record(target)
        self.host.discard_set_aside(folders)
        if failure:
            if outcome.restarted or not outcome.restart_needed:
                back += self._distrust(target)
            raise SwitchError(
                f"Release {target.release} did not become healthy: {failure}. {back}\n"
                f"Last lines of {self.host.unit}:\n{log or '(the journal has none)'}"
            )

    def roll_back(self) -> str:
        """Have what was verified last start, where a switch has not come to its end. Says what it did."""
        host = self.host
        fallback = self.stored_target(host.verified().get("release", ""))
        said = f"nothing of {host.unit} has to be rolled back"
        if fallback and host.recorded_generation() == fallback.generation:
            self._record(fallback)  # it had not begun, or was verified and not noted to the end
        elif fallback:
            self._install(fallback, set_aside=True)
            if strangers := self._strangers(fallback):
                host.systemctl("stop", *strangers)
            host.systemctl("restart", host.unit)
            said = f"a switch of {host.unit} was cut off; it is back on release {fallback.release}"
        host.discard_set_aside(self._folders(fallback))
        return said

    def _folders(self, *targets: Target | None) -> set[Path]:
        """Where files are set aside."""
        config = [item for target in targets if target for item in target.config]
        return {self.host.root, self.host.generation_file.parent, *(item.dest.parent for item in config)}

    def _distrust(self, target: Target) -> str:
        """Have the next deploy build anew what may be damaged, and say so."""
        host, release = self.host, target.release
        said = ""
        if files := host.damaged(release):
            said += f" Its files are not as they were built ({_some(files)}); the next deploy rebuilds it."
        elif host.verified_settings(release) is None:
            said += " It has never been verified on this host, so the next deploy rebuilds it."
        if said:
            host.unmark(host.release_dir(release), COMPLETE)
        environment = host.environment(release)
        if environment and (files := environments.damaged(environment)):
            others = [name for name in host.built_at() if name != release and host.environment(name) == environment]
            if others:
                way = (
                    f"release {_some(others)} runs in it, too. Stop {host.unit}, remove "
                    f"{environment / environments.COMPLETE} and deploy again"
                )
            else:
                host.unmark(host.release_dir(release), COMPLETE)
                host.unmark(environment, environments.COMPLETE)
                way = "the next deploy rebuilds it"
            said += f" Its environment {environment.name} is damaged ({_some(files)}); {way}."
        return said

    def _record(self, target: Target) -> None:
        """Note that the target is verified. Each step can be the last one of a run: ``need`` finds what is left."""
        verified = self.host.verified()
        earlier = verified.get("release", "")
        previous = verified.get("previous") or self.host.link("previous")
        if earlier != target.release and self.host.is_complete(earlier):
            previous = earlier
        elif previous == target.release:
            previous = ""
        self.host.set_verified(target, previous)
        self.host.set_link("previous", previous)
        self.host.systemctl("enable", "--quiet", self.host.unit)

    def _go_back(self, target: Target, fallback: Target | None, set_aside: bool) -> str:
        unit = self.host.unit
        if fallback is None:
            self.host.systemctl("stop", unit, self.host.workers_pattern)
            self.host.systemctl("reset-failed", unit, self.host.workers_pattern)
            return f"There is no earlier release to go back to; {unit} is stopped."
        if fallback.generation == target.generation:
            return f"It is what was verified last, so there is nothing to go back to; {unit} is left as it is."
        failure, _unused = self._bring_up(fallback, Outcome(restart_needed=True), set_aside=set_aside)
        if failure:
            return f"Going back to {fallback.release} failed too: {failure}."
        what = "its earlier settings" if fallback.release == target.release else f"release {fallback.release}"
        return f"The host is back on {what} and serves again."

    def _bring_up(self, target: Target, outcome: Outcome, set_aside: bool = False) -> tuple[str, str]:
        """Install, restart and verify a target. Returns what failed and the journal, both empty on success."""
        host = self.host
        started = host.now()
        if outcome.restart_needed:
            try:
                self._install(target, set_aside)
            except (OSError, LookupError) as error:
                return f"it could not be installed ({error})", ""
            stopped = host.monotonic()
            if strangers := self._strangers(target):
                host.systemctl("stop", *strangers)
            code, text = host.systemctl("restart", host.unit)
            outcome.restarted = True
            if code:
                return f"{host.unit} did not start ({text.splitlines()[0] if text else code})", host.journal(started)
            outcome.outage_s = round(host.monotonic() - stopped, 2)
        before = self._processes(target)
        for unit, (state, _unused) in before.items():
            if state != "active":
                return f"{unit} did not start (it is {state or 'unknown'})", host.journal(started)
        if reason := self._first_failure(self.verify, target):
            return reason, host.journal(started)
        if self._processes(target) != before:
            return "its process ended while it was being verified", host.journal(started)
        return "", ""

    def _processes(self, target: Target) -> dict[str, tuple[str, str]]:
        states = {unit: self.host.unit_state(unit) for unit in self._units(target)}
        return {unit: (state.get("ActiveState", ""), state.get("MainPID", "")) for unit, state in states.items()}

    def _install(self, target: Target, set_aside: bool) -> None:
        host = self.host
        # A process that systemd starts by itself amid these steps is a mixture, and must not pass for a generation.
        if set_aside:
            host.put_back(host.generation_file, "none.")
        else:
            host.record_generation("", "")
        for item in target.config:
            if set_aside:
                host.put_back(item.dest)
            elif host.differs(item):
                host.write(item.dest, item.content, item.owner, item.group, item.mode)
        if set_aside:
            host.put_back(host.root / "current")
        else:
            host.set_link("current", target.release)
        host.systemctl("daemon-reload")
        host.systemctl("reset-failed", host.unit)
        if set_aside:
            host.put_back(host.generation_file)
        else:
            host.record_generation(target.release, target.generation)

    def _refuse_broken_unit(self, target: Target) -> None:
        current = self.host.link("current")
        if not current:
            self.host.set_link("current", target.release)  # the unit names programs below it
        programs = tuple(item for item in target.config if item.mode & 0o111)
        for item in target.config:
            if item.dest.suffix != ".service":
                continue
            if not (complaint := self.host.verify_unit(item.dest.name, item.content, programs)):
                continue
            if not current:
                self.host.set_link("current", "")
            raise SwitchError(f"systemd-analyze verify refuses {item.dest}; nothing was changed. It says: {complaint}")

    def _drain(self, target: Target, fallback: Target | None, outcome: Outcome) -> None:
        """Wait for the jobs that are under way, within limits. A worker that is silent may have some."""
        if self.host.unit_state(self.host.unit).get("ActiveState") != "active":
            return
        # What runs is what was verified last, or, after a deploy that was cut off, the target.
        workers = dict.fromkeys([*(fallback.workers if fallback else ()), *target.workers])
        begin = self.host.monotonic()
        jobs = [self.busy(worker) for worker in workers]
        while any(count != 0 for count in jobs) and self.host.monotonic() - begin < self.drain_timeout_s:
            self.host.sleep(0.5)
            jobs = [self.busy(worker) for worker in workers]
        outcome.drained_s = round(self.host.monotonic() - begin, 1)
        outcome.cut_off = sum(count or 0 for count in jobs)
        outcome.silent = jobs.count(None)


def roll_back_at_boot(root: str, config_dir: str, unit: str, units: str) -> str:
    """Roll a switch back that the end of its host has cut off. Says what it did."""
    host = BootingHost(Path(root), Path(config_dir), unit, Path(units))

    def unasked(_worker: Worker) -> Health:
        return Health(False, "it is not asked at a boot")

    with switch_lock(host.root, 0):
        return Switch(host, unasked, unasked, lambda _: None).roll_back()


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def as_result(outcome: Outcome) -> dict[str, Any]:
    """The outcome as a module's return values, without the diff."""
    return {key: value for key, value in vars(outcome).items() if key != "diff"}
