from __future__ import annotations

import base64
import contextlib
import copy
import fcntl
import grp
import hashlib
import itertools
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host import boot
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.files import exclusive
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release import switch as release_switch
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.checkouts import record
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.client import ComfyUIClient, NoAnswerError
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.environments import damaged
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.node_types import Look
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.switch import (
    SETTINGS,
    ConfigFile,
    Health,
    Host,
    Outcome,
    Switch,
    SwitchError,
    Worker,
    generation_of,
    pack,
    releases_to_remove,
    switch_lock,
    unpack,
)
from ansible_collections.wanmetal.comfyui.plugins.modules import release_switch as release_switch_module
from ansible_collections.wanmetal.comfyui.plugins.modules.release_switch import _switch

ME = pwd.getpwuid(os.getuid()).pw_name
MY_GROUP = grp.getgrgid(os.getgid()).gr_name
UNIT = "comfyui.service"
ALONE = (Worker(UNIT, "http://127.0.0.1:9"),)
SECRET = "TOKEN=hunter2"  # noqa: S105


class Killed(BaseException):
    """The deploy was cut off."""


@dataclass(frozen=True)
class Process:
    """What ran at its start: it keeps that, whatever becomes of the files."""

    release: str
    unit: str
    generation: str
    pid: int


class FakeHost(Host):
    """A host whose files are real and whose systemd is not.

    How a generation behaves is written in its unit: ``silent`` does not start, ``black`` renders wrong pixels,
    ``dies`` ends while it is being verified, ``has 3`` starts three workers, of which ``last is missing`` starts not.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "opt", folder / "etc", UNIT, folder / "units")
        self.unit_file = self.units / UNIT
        for path in (self.root / "releases", folder / "etc", folder / "units"):
            path.mkdir(parents=True, exist_ok=True)
        self.loaded = ""
        self.process: Process | None = None
        self.workers: dict[str, Process] = {}
        self.pids = 100
        self.enabled = False
        self.answers = True
        self.jobs = 0
        self.clock = 1_000_000.0
        self.complaint = ""
        self.actions: list[str] = []
        self.kill_before: int | str | None = None
        self.full_from: int | None = None
        self.is_guarded = False

    @contextlib.contextmanager
    def guarded(self, otherwise: Callable[[], object]) -> Iterator[None]:
        """Nobody does it, unless a test wants it: what is cut off here is all that runs."""
        with super().guarded(otherwise) if self.is_guarded else contextlib.nullcontext():
            yield

    def act(self, action: str) -> None:
        """Whatever changes the host passes here, and may be cut off here."""
        if self.kill_before in (len(self.actions), action):
            raise Killed
        self.actions.append(action)

    def need_room(self) -> None:
        """Where the disk is full by now, nothing new can be put onto it."""
        if self.full_from is not None and len(self.actions) > self.full_from:
            raise OSError(28, "No space left on device")

    def write(self, path: Path, content: bytes, _owner: str, _group: str, mode: int) -> None:
        self.act(f"write {path.name}")
        self.need_room()
        super().write(path, content, ME, MY_GROUP, mode)

    def set_link(self, name: str, release: str) -> None:
        self.act(f"link {name}")
        self.need_room()
        super().set_link(name, release)

    def put_back(self, path: Path, which: str = "") -> None:
        self.act(f"put back {path.name}")
        super().put_back(path, which)

    def discard_set_aside(self, folders: set[Path]) -> None:
        self.act("discard")
        super().discard_set_aside(folders)

    def at_boot_call(self, function: Callable[[str, str, str, str], str], before: Iterable[str]) -> None:
        self.act("at boot")
        self.need_room()
        super().at_boot_call(function, before)

    def unmark(self, folder: Path, mark: str) -> None:
        self.act(f"unmark {folder.name}")
        super().unmark(folder, mark)

    def remove_release(self, release: str) -> None:
        self.act(f"remove {release}")
        super().remove_release(release)

    def systemctl(self, *arguments: str) -> tuple[int, str]:
        self.act(arguments[0])
        if arguments[0] == "daemon-reload":
            self.loaded = self.unit_file.read_text() if self.unit_file.exists() else ""
        if arguments[0] == "enable":
            self.enabled = True
        if arguments[0] == "stop":
            gone = arguments[1:]
            self.process = None if UNIT in gone else self.process
            self.workers = {
                unit: process
                for unit, process in self.workers.items()
                if unit not in gone and self.workers_pattern not in gone
            }
        if arguments[0] == "restart":
            self.start()
            self.start_workers()
            if self.process is None:
                return 1, f"Job for {UNIT} failed.\nSee systemctl status."
        return 0, ""

    def start(self) -> None:
        self.process = None
        self.pids += 1
        if not self.loaded or "silent" in self.loaded:
            return
        generation = self.generation_file.read_text().partition("WANMETAL_GENERATION=")[2].strip()
        self.process = Process(self.link("current"), self.loaded, generation, self.pids)

    def start_workers(self) -> None:
        """What the unit wants is started, and what runs already is part of it, and so restarted."""
        wanted = int(self.loaded.partition("has ")[2][:1] or 0) if self.process else 0
        units = {*self.workers, *(f"comfyui@{number}.service" for number in range(wanted))}
        if "last is missing" in self.loaded:
            units.discard(f"comfyui@{wanted - 1}.service")
        self.workers = {}
        for unit in sorted(units):
            self.pids += 1
            generation = self.process.generation if self.process else ""
            self.workers[unit] = Process(self.link("current"), self.loaded, generation, self.pids)

    def running_workers(self) -> list[str]:
        return list(self.workers)

    def unit_state(self, unit: str) -> dict[str, str]:
        process = self.process if unit == UNIT else self.workers.get(unit)
        return {
            "ActiveState": "active" if process else "inactive",
            "MainPID": str(process.pid if process else 0),
            "UnitFileState": "enabled" if self.enabled else "disabled",
        }

    def running_generation(self, main_pid: str) -> str:
        running = [process for process in (self.process, *self.workers.values()) if process]
        return next((process.generation for process in running if str(process.pid) == main_pid), "")

    def verify_unit(self, name: str, content: bytes, programs: tuple[ConfigFile, ...]) -> str:
        assert name == UNIT
        assert all(program.mode & 0o111 for program in programs)
        assert self.link("current"), "the unit's programs are below current"
        return self.complaint if b"broken" in content else ""

    def journal(self, since: float) -> str:
        return f"journal since {since:.0f}"

    def now(self) -> float:
        return self.clock

    def monotonic(self) -> float:
        return self.clock

    def sleep(self, seconds: float) -> None:
        self.clock += seconds
        self.jobs = max(0, self.jobs - 1)

    # -- what a test does to it
    def build(self, release: str, at: float = 1.0) -> None:
        folder = self.release_dir(release)
        folder.mkdir(exist_ok=True)
        (folder / "release.json").write_text("{}")
        os.utime(folder / "release.json", (at, at))

    def config(self, unit: str, *, hook: str = "", mode: int = 0o644) -> tuple[ConfigFile, ...]:
        etc = self.generation_file.parent
        files = [ConfigFile(self.unit_file, unit.encode(), ME, MY_GROUP, mode)]
        if hook:
            files.append(ConfigFile(etc / "before-start", hook.encode(), ME, MY_GROUP, 0o755))
        files.append(ConfigFile(etc / "comfyui.env", f"{SECRET}{unit}".encode(), ME, MY_GROUP, 0o640, secret=True))
        return tuple(files)

    def crash(self) -> None:
        """The process ends and systemd starts it again, as it knows the unit."""
        if self.process:
            self.start()
            self.start_workers()

    def reboot(self) -> None:
        self.process = None
        self.workers = {}
        self.loaded = self.unit_file.read_text() if self.unit_file.exists() else ""
        link, unit, program = self.at_boot.paths
        if link.is_symlink() and unit.exists() and program.exists():
            switch_of(self).roll_back()
        if self.enabled and not self.process:
            self.start()
            self.start_workers()

    def snapshot(self) -> dict[str, Any]:
        files = {
            str(path.relative_to(self.root.parent)): path.read_text()
            for path in sorted(self.root.parent.rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        }
        process = self.process and (self.process.release, self.process.unit, self.process.generation)
        links = {name: self.link(name) for name in ("current", "previous")}
        workers = {unit: (found.release, found.unit, found.generation) for unit, found in self.workers.items()}
        return {"files": files, "links": links, "process": process, "workers": workers, "enabled": self.enabled}

    def kept(self) -> dict[str, tuple[int, int]]:
        """Everything on the disk, with inode and time of change."""
        paths = self.root.parent.rglob("*")
        return {str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in paths}


def switch_of(host: FakeHost, drain_timeout_s: float = 0.0) -> Switch:
    def probe(_: Worker) -> Health:
        return Health(host.process is not None and host.answers, "connection refused")

    def verify(_: Worker) -> Health:
        host.act("verify")
        process = host.process
        if process and "dies" in process.unit:
            host.crash()
        return Health(process is not None and "black" not in process.unit, "the image is one colour")

    return Switch(host, probe, verify, lambda _: host.jobs, drain_timeout_s)


def deploy(host: FakeHost, release: str, unit: str, **more: Any) -> Outcome:
    if host.release_dir(release).is_dir() and not host.is_complete(release):
        host.build(release)
    switch = switch_of(host)
    number = int(unit.partition("has ")[2][:1] or 0)
    several = tuple(Worker(f"comfyui@{n}.service", f"http://127.0.0.1:{n}") for n in range(number))
    return switch.run(switch.target(release, host.config(unit, **more), several or ALONE))


def attempt(host: FakeHost, release: str, unit: str, **more: Any) -> str:
    """Deploy; returns the message of a failure."""
    try:
        deploy(host, release, unit, **more)
    except SwitchError as error:
        return str(error)
    return ""


def go_back(host: FakeHost, to: str = "") -> Outcome:
    switch = switch_of(host)
    target = switch.stored_target(to or host.link("previous"))
    assert target is not None
    return switch.run(target)


def running(host: FakeHost) -> tuple[str, str]:
    return (host.process.release, host.process.unit) if host.process else ("", "")


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(autouse=True)
def no_program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """To pack one takes time, and it is not run."""
    if "program" not in request.node.name:
        monkeypatch.setattr(boot, "_packed", lambda *_: b"")


@pytest.fixture
def fresh(tmp_path: Path) -> FakeHost:
    host = FakeHost(tmp_path)
    for number, release in enumerate(["r1", "r2", "r3"]):
        host.build(release, at=float(number))
    return host


@pytest.fixture
def worker(fresh: FakeHost) -> FakeHost:
    """A host that runs r1, verified."""
    deploy(fresh, "r1", "one")
    fresh.actions.clear()
    return fresh


# ---------------------------------------------------------------------------------------------- the paths


def test_a_first_deploy(fresh: FakeHost) -> None:
    outcome = deploy(fresh, "r1", "one")
    assert outcome.changed
    assert outcome.restarted
    assert outcome.verified
    assert outcome.previous == ""
    assert running(fresh) == ("r1", "one")
    assert fresh.enabled
    assert fresh.verified()["release"] == "r1"
    assert fresh.process is not None
    assert fresh.verified()["generation"] == fresh.process.generation


def test_nothing_is_done_twice(worker: FakeHost) -> None:
    before, process = worker.kept(), worker.process
    outcome = deploy(worker, "r1", "one")
    assert not outcome.changed
    assert outcome.reasons == []
    assert outcome.verified
    assert worker.actions == []
    assert worker.process is process
    assert worker.kept() == before


def test_new_settings(worker: FakeHost) -> None:
    outcome = deploy(worker, "r1", "one, faster")
    assert outcome.reasons == [
        f"{worker.unit_file} differs",
        f"{worker.generation_file.parent}/comfyui.env differs",
        "the running process was started with other settings",
        "this generation has not rendered anything yet",
    ]
    assert running(worker) == ("r1", "one, faster")
    assert worker.link("previous") == ""


def test_a_new_release(worker: FakeHost) -> None:
    outcome = deploy(worker, "r2", "two")
    assert outcome.reasons[0] == "the running release is r1, wanted is r2"
    assert outcome.outage_s == 0
    assert outcome.previous == "r1"
    assert running(worker) == ("r2", "two")
    assert worker.link("previous") == "r1"


@pytest.mark.parametrize(
    ("unit", "reason"),
    [
        ("silent", f"{UNIT} did not start (Job for {UNIT} failed.)"),
        ("black", "the image is one colour"),
        ("dies", "its process ended while it was being verified"),
    ],
)
def test_a_first_deploy_that_fails_is_stopped(fresh: FakeHost, unit: str, reason: str) -> None:
    message = attempt(fresh, "r1", unit)
    assert message == (
        f"Release r1 did not become healthy: {reason}. "
        f"There is no earlier release to go back to; {UNIT} is stopped. "
        "It has never been verified on this host, so the next deploy rebuilds it.\n"
        f"Last lines of {UNIT}:\njournal since 1000000"
    )
    assert fresh.process is None
    assert not fresh.enabled, "it must not come back with the next boot"
    assert fresh.verified() == {}
    assert attempt(fresh, "r1", "one") == ""


@pytest.mark.parametrize("unit", ["silent", "black", "dies"])
@pytest.mark.parametrize(("release", "told"), [("r2", "release r1"), ("r1", "its earlier settings")])
def test_a_failure_goes_back(worker: FakeHost, release: str, told: str, unit: str) -> None:
    before = worker.snapshot()
    message = attempt(worker, release, unit, hook="#!/bin/sh")
    assert f"The host is back on {told} and serves again." in message
    after = worker.snapshot()
    assert after["files"].pop("etc/before-start")  # the old unit does not name it
    if release == "r2":
        assert before["files"].pop("opt/releases/r2/release.json")
    assert after == before
    worker.actions.clear()
    assert not deploy(worker, "r1", "one").changed


def test_going_back_takes_the_settings_whole(worker: FakeHost) -> None:
    """Modes, and files that the failing generation has no more, are part of what was verified."""
    deploy(worker, "r1", "one", hook="#!/bin/sh", mode=0o600)
    assert "is back on release r1" in attempt(worker, "r2", "black")
    assert not deploy(worker, "r1", "one", hook="#!/bin/sh", mode=0o600).changed


def test_going_back_can_fail_too(worker: FakeHost) -> None:
    switch = switch_of(worker)
    broken = Switch(worker, switch.probe, lambda _: Health(False, "no GPU"), switch.busy)
    with pytest.raises(SwitchError, match=r"r2 did not become healthy: no GPU. Going back to r1 failed too: no GPU\."):
        broken.run(broken.target("r2", worker.config("two"), ALONE))
    assert worker.verified()["release"] == "r1"


def test_what_was_verified_and_fails_now_is_left_as_it_is(worker: FakeHost) -> None:
    worker.process = None
    switch = switch_of(worker)
    broken = Switch(worker, switch.probe, lambda _: Health(False, "no GPU"), switch.busy)
    with pytest.raises(SwitchError, match="It is what was verified last, so there is nothing to go back to"):
        broken.run(broken.target("r1", worker.config("one"), ALONE))
    assert worker.actions.count("restart") == 1
    assert running(worker) == ("r1", "one")


def test_a_full_disk_leaves_the_running_process_alone(worker: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    process = worker.process

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worker, "write", full)
    before = worker.kept()
    message = attempt(worker, "r2", "two")
    assert message.startswith("Nothing was changed: the way back to release r1 could not be kept ([Errno 28]")
    assert worker.process is process
    assert worker.kept() == before


@pytest.mark.parametrize("unit", ["two", "silent", "black", "dies", "black, has 2"])
@pytest.mark.parametrize("release", ["r2", "r1"])
def test_a_disk_that_fills_up_amid_a_switch_leaves_a_way_back(tmp_path: Path, release: str, unit: str) -> None:
    """Whatever the failing release does, what was verified last serves again; a good one may serve unrecorded."""
    filled = 0
    start = started(tmp_path, lambda host: deploy(host, "r1", "one", hook="#!/bin/sh"))
    while True:
        host = start.again()
        host.full_from = filled
        try:
            message = attempt(host, release, unit)
        except OSError:
            message = ""  # it renders, and that could not be noted
        assert running(host) == (("r1", "one") if message else (release, "two"))
        steps = len(host.actions)
        host.full_from = None
        assert attempt(host, "r1", "one", hook="#!/bin/sh") == ""
        assert running(host) == ("r1", "one")
        assert not list(host.root.parent.rglob("*-back"))
        filled += 1
        if filled > steps:
            break
    assert filled > 10


def test_an_unverified_release_that_fails_is_built_anew(worker: FakeHost) -> None:
    message = attempt(worker, "r2", "black")
    assert "and serves again. It has never been verified on this host, so the next deploy rebuilds it.\n" in message
    assert not worker.is_complete("r2")
    assert worker.is_complete("r1")


def test_a_verified_release_that_fails_with_new_settings_stays(worker: FakeHost) -> None:
    assert "anew" not in attempt(worker, "r1", "black")
    assert worker.is_complete("r1")


@pytest.mark.parametrize("damage", ["ComfyUI/a.py", "ComfyUI/custom_nodes/pack/b.py"])
@pytest.mark.parametrize("how", ["changed", "empty", "gone", "a folder"])
def test_a_damaged_release_is_named_and_built_anew(worker: FakeHost, damage: str, how: str) -> None:
    core = worker.release_dir("r1") / "ComfyUI"
    for folder in (core, core / "custom_nodes/pack"):
        for name in ("a.py", "b.py", "models/x"):
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            (folder / name).write_text(name)
        record(folder, {})
        (folder / "models/x").unlink()
        (folder / "models").rmdir()
        (folder / "models").symlink_to("/nowhere")
    assert worker.damaged("r1") == []
    file = worker.release_dir("r1") / damage
    if how in ("changed", "empty"):
        file.write_text("x" if how == "changed" else "")
    else:
        file.unlink()
    if how == "a folder":
        file.mkdir()
    message = attempt(worker, "r1", "black")
    name = damage.removeprefix("ComfyUI/")
    assert f"Its files are not as they were built ({name}); the next deploy rebuilds it." in message
    assert not worker.is_complete("r1")
    assert running(worker) == ("r1", "one")
    assert switch_of(worker).prune(0) == ["r2", "r3"]  # and not what runs


def packages(folder: Path) -> Path:
    site = folder / "venv/lib/python3.12/site-packages"
    (site / "a-1.dist-info").mkdir(parents=True)
    (site / "a.py").write_text("a")
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"a").digest()).rstrip(b"=").decode()
    (site / "a-1.dist-info/RECORD").write_text(
        f"a.py,sha256={digest},1\n__pycache__/a.cpython-312.pyc,sha256={digest},1\na-1.dist-info/RECORD,,\n"
    )
    return site / "a.py"


def test_a_damaged_environment_is_named_and_built_anew_where_no_other_release_runs_in_it(worker: FakeHost) -> None:
    folder = environment(worker, "comfyui-000000000001", "r2")
    file = packages(folder)
    assert damaged(folder) == []
    file.write_text("b")
    assert "comfyui-000000000001 is damaged (a.py); the next deploy rebuilds it" in attempt(worker, "r2", "black")
    assert worker.environments() == []
    (folder / "complete").touch()
    (worker.release_dir("r1") / "venv").symlink_to(f"../../environments/{folder.name}/venv")
    message = attempt(worker, "r2", "black")
    assert f"release r1 runs in it, too. Stop {UNIT}, remove {folder}/complete and deploy again." in message
    assert worker.environments() == [folder.name]


def test_a_verified_release_that_is_gone_is_nothing_to_go_back_to(worker: FakeHost) -> None:
    worker.remove_release("r1")
    assert "There is no earlier release to go back to" in attempt(worker, "r2", "black")


def test_an_unverified_generation_is_verified_without_a_restart(worker: FakeHost) -> None:
    worker.verified_file.unlink()
    process = worker.process
    outcome = deploy(worker, "r1", "one")
    assert outcome.changed
    assert outcome.reasons == ["this generation has not rendered anything yet"]
    assert not outcome.restarted
    assert outcome.outage_s is None
    assert worker.process is process
    assert worker.verified()["release"] == "r1"


def test_an_unverified_generation_that_renders_wrong_is_rolled_back(worker: FakeHost) -> None:
    worker.kill_before = "verify"
    with pytest.raises(Killed):
        deploy(worker, "r2", "black")
    worker.kill_before = None
    assert worker.process is not None
    assert worker.process.unit == "black"
    assert "is back on release r1" in attempt(worker, "r2", "black")
    assert running(worker) == ("r1", "one")


@pytest.mark.parametrize(
    ("unit", "moment"),
    [
        *(("two", moment) for moment in ("write comfyui.service", "link current", "restart", "verify")),
        *(("black", f"put back {name}") for name in ("comfyui.generation", "comfyui.env", "current")),
    ],
)
@pytest.mark.parametrize("release", ["r1", "r2"])
def test_a_switch_that_is_killed_is_rolled_back(
    worker: FakeHost, monkeypatch: pytest.MonkeyPatch, release: str, unit: str, moment: str
) -> None:
    """For want of memory, for example. Another process does it, and holds the lock for as long."""
    kept = worker.snapshot()
    worker.is_guarded = True
    deploys = os.getpid()

    def act(action: str) -> None:
        worker.actions.append(action)
        if action.startswith(moment) and os.getpid() != deploys and os.getppid() == deploys:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(worker, "act", act)
    if not (child := os.fork()):
        try:
            with switch_lock(worker.root, 0):
                deploy(worker, release, unit)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with switch_lock(worker.root, 60):
        assert worker.link("current") == "r1"
        assert worker.unit_file.read_text() == "one"
        assert worker.snapshot() == kept


@pytest.mark.parametrize(
    ("disturb", "reason"),
    [
        (lambda host: setattr(host, "process", None), f"{UNIT} is inactive"),
        (lambda host: setattr(host, "answers", False), "the API does not answer: connection refused"),
        (lambda host: host.unit_file.write_text("mine"), "units/comfyui.service differs"),
        (lambda host: host.unit_file.chmod(0o600), "units/comfyui.service differs"),
        (lambda host: host.unit_file.unlink(), "units/comfyui.service differs"),
        (lambda host: host.set_link("current", ""), "the running release is none, wanted is r1"),
    ],
)
def test_reasons_for_a_restart(worker: FakeHost, disturb: Callable[[FakeHost], None], reason: str) -> None:
    disturb(worker)
    outcome = deploy(worker, "r1", "one")
    assert reason in outcome.reasons[0]
    assert len(outcome.reasons) == 1
    assert outcome.restarted
    worker.answers = True
    assert not deploy(worker, "r1", "one").changed


@pytest.mark.parametrize(
    ("disturb", "reason"),
    [
        (lambda host: setattr(host, "enabled", False), f"{UNIT} does not start at boot"),
        (lambda host: host.set_link("previous", ""), "the link to the previous release, r1, is not in place"),
        (
            lambda host: (host.release_dir("r2") / SETTINGS).unlink(),
            "the release was built anew, without the settings that it was verified with",
        ),
    ],
)
def test_what_is_fixed_beside_the_running_service(
    worker: FakeHost, disturb: Callable[[FakeHost], None], reason: str
) -> None:
    deploy(worker, "r2", "two")
    worker.jobs = 5  # a busy worker, which cannot be verified now and need not be
    process = worker.process
    disturb(worker)
    worker.actions.clear()
    outcome = deploy(worker, "r2", "two")
    assert outcome.changed
    assert outcome.reasons == [reason]
    assert "verify" not in worker.actions
    assert worker.process is process
    assert not deploy(worker, "r2", "two").changed


def test_a_broken_unit_is_refused(worker: FakeHost) -> None:
    before = worker.snapshot()
    worker.complaint = "Unknown section"
    message = attempt(worker, "r2", "broken")
    assert (
        message == f"systemd-analyze verify refuses {worker.unit_file}; nothing was changed. It says: Unknown section"
    )
    assert worker.snapshot() == before


def test_a_broken_unit_is_refused_on_a_fresh_host(fresh: FakeHost) -> None:
    before = fresh.snapshot()
    fresh.complaint = "Unknown section"
    assert "refuses" in attempt(fresh, "r1", "broken")
    assert fresh.snapshot() == before


# ---------------------------------------------------------------------------------------------- several workers

FOUR = ["comfyui@0.service", "comfyui@1.service", "comfyui@2.service", "comfyui@3.service"]


@pytest.mark.parametrize(
    ("units", "workers"),
    [
        (["one", "one, has 3"], FOUR[:3]),
        (["one, has 3", "one"], []),
        (["one, has 2", "one, has 4"], FOUR),
        (["one, has 4", "one, has 2"], FOUR[:2]),
    ],
)
def test_the_number_of_workers_changes(fresh: FakeHost, units: list[str], workers: list[str]) -> None:
    for unit in units:
        deploy(fresh, "r1", unit)
    assert list(fresh.workers) == workers
    assert {process.unit for process in fresh.workers.values()} <= {units[-1]}
    fresh.actions.clear()
    process = fresh.process
    assert not deploy(fresh, "r1", units[-1]).changed
    assert "restart" not in fresh.actions
    assert fresh.process is process


def test_a_worker_that_is_gone_is_a_reason(fresh: FakeHost) -> None:
    deploy(fresh, "r1", "has 3")
    del fresh.workers[FOUR[1]]
    outcome = deploy(fresh, "r1", "has 3")
    assert outcome.reasons == [f"{FOUR[1]} is inactive"]
    assert list(fresh.workers) == FOUR[:3]


def test_a_worker_that_systemd_started_amid_a_switch_is_a_reason(fresh: FakeHost) -> None:
    deploy(fresh, "r1", "has 2")
    fresh.workers[FOUR[0]] = Process("r1", "has 2", "another", 7)
    assert deploy(fresh, "r1", "has 2").reasons == ["the running process was started with other settings"]


def test_one_worker_that_fails_takes_all_back(worker: FakeHost) -> None:
    message = attempt(worker, "r2", "has 3, last is missing")
    assert f"{FOUR[2]} did not start (it is inactive)" in message
    assert "The host is back on release r1 and serves again." in message
    assert running(worker) == ("r1", "one")
    assert worker.workers == {}


def test_a_failing_worker_is_named(worker: FakeHost) -> None:
    def verify(renderer: Worker) -> Health:
        return Health(renderer.unit != FOUR[1], "the image is one colour")

    switch = switch_of(worker)
    workers = tuple(Worker(unit, "http://127.0.0.1:9") for unit in FOUR[:2])
    picky = Switch(worker, switch.probe, verify, switch.busy)
    with pytest.raises(SwitchError, match=f"become healthy: {FOUR[1]}: the image is one colour"):
        picky.run(picky.target("r2", worker.config("has 2"), workers))


# ---------------------------------------------------------------------------------------------- going back by hand


def test_back_and_forth(worker: FakeHost) -> None:
    deploy(worker, "r2", "two", hook="#!/bin/sh")
    assert go_back(worker).changed
    assert running(worker) == ("r1", "one")
    assert worker.link("previous") == "r2"
    go_back(worker)
    assert running(worker) == ("r2", "two")
    assert worker.link("previous") == "r1"
    assert not go_back(worker, "r2").changed
    assert not deploy(worker, "r2", "two", hook="#!/bin/sh").changed


def test_settings_do_not_move_the_previous_release(worker: FakeHost) -> None:
    deploy(worker, "r2", "two")
    deploy(worker, "r2", "two, faster")
    assert worker.link("previous") == "r1"


def test_a_release_is_never_its_own_previous(worker: FakeHost) -> None:
    deploy(worker, "r2", "two")
    worker.remove_release("r2")
    deploy(worker, "r1", "one")
    assert worker.link("previous") == ""


def test_a_release_that_was_never_verified_has_no_settings(fresh: FakeHost) -> None:
    assert switch_of(fresh).stored_target("r1") is None
    assert switch_of(fresh).stored_target("") is None
    (fresh.release_dir("r1") / "settings.json").write_text('[{"dest": 1}]')
    assert switch_of(fresh).stored_target("r1") is None


def test_settings_are_kept_where_only_root_reads_them(worker: FakeHost) -> None:
    path = worker.release_dir("r1") / "settings.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert unpack(path.read_bytes()) == (worker.config("one"), ALONE)


# ---------------------------------------------------------------------------------------------- draining


@pytest.mark.parametrize(
    ("jobs", "timeout", "waited", "cut_off"), [(0, 60, 0, 0), (4, 60, 2.0, 0), (100, 5, 5.0, 90), (3, 0, 0, 3)]
)
def test_jobs_are_waited_for(worker: FakeHost, jobs: int, timeout: float, waited: float, cut_off: int) -> None:
    worker.jobs = jobs
    switch = switch_of(worker, timeout)
    outcome = switch.run(switch.target("r2", worker.config("two"), ALONE))
    assert (outcome.drained_s, outcome.cut_off) == (waited, cut_off)
    assert outcome.restarted


def test_a_silent_worker_is_waited_for_and_may_need_no_restart(worker: FakeHost) -> None:
    """It loads a model: neither idle nor broken."""
    silent = switch_of(worker, 60)

    def busy(_: Worker) -> int | None:
        worker.answers = worker.clock >= 1_000_003.0
        return 0 if worker.answers else None

    worker.answers = False
    process = worker.process
    switch = Switch(worker, silent.probe, silent.verify, busy, 60)
    outcome = switch.run(switch.target("r1", worker.config("one"), ALONE))
    assert (outcome.drained_s, outcome.silent, outcome.restarted) == (3.0, 0, False)
    assert worker.process is process


def test_a_worker_that_stays_silent_is_restarted_after_the_time_limit(worker: FakeHost) -> None:
    worker.answers = False
    base = switch_of(worker, 5)
    switch = Switch(worker, base.probe, base.verify, lambda _: None, 5)
    outcome = switch.run(switch.target("r1", worker.config("one"), ALONE))
    assert (outcome.drained_s, outcome.cut_off, outcome.silent, outcome.restarted) == (5.0, 0, 1, True)


def test_the_clock_may_jump_while_jobs_are_waited_for(worker: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.jobs = 4
    monkeypatch.setattr(worker, "now", lambda: worker.clock * -1000)
    switch = switch_of(worker, 60)
    outcome = switch.run(switch.target("r2", worker.config("two"), ALONE))
    assert (outcome.drained_s, outcome.cut_off) == (2.0, 0)


@pytest.mark.parametrize(
    ("cause", "silent", "drained"),
    [(ConnectionRefusedError(), 0, 0.0), (TimeoutError(), 1, 2.0), (ConnectionResetError(), 1, 2.0)],
)
def test_who_is_silent_is_busy_and_where_nobody_listens_nobody_is(
    worker: FakeHost, monkeypatch: pytest.MonkeyPatch, cause: Exception, silent: int, drained: float
) -> None:
    def queue(_: object) -> None:
        raise NoAnswerError("no answer") from cause

    monkeypatch.setattr(ComfyUIClient, "queue", queue)
    monkeypatch.setattr(ComfyUIClient, "system_stats", lambda _: {})
    monkeypatch.setattr(release_switch_module, "run_canary", lambda *_: SimpleNamespace(ok=True, reason=""))
    monkeypatch.setattr(release_switch_module, "look_at_packs", lambda *_: Look({}, []))
    result = _switch(module(worker, release="r2", drain_timeout=2), worker)
    assert (result["silent"], result["cut_off"], result["drained_s"]) == (silent, 0, drained)
    assert result["restarted"]


def test_a_stopped_service_has_no_jobs(worker: FakeHost) -> None:
    worker.process = None
    worker.jobs = 3
    assert deploy(worker, "r2", "two").cut_off == 0


def test_a_busy_worker_is_not_rolled_back_for_being_busy(worker: FakeHost) -> None:
    worker.verified_file.unlink()
    worker.jobs = 100
    process = worker.process
    switch = switch_of(worker, 5)
    with pytest.raises(SwitchError, match=r"other jobs kept it busy for 5 s. Nothing was changed"):
        switch.run(switch.target("r1", worker.config("one"), ALONE))
    assert worker.process is process
    assert worker.actions == []


# ---------------------------------------------------------------------------------------------- check mode and diff


@pytest.mark.parametrize(("release", "unit", "restart"), [("r1", "one", False), ("r1", "x", True), ("r2", "two", True)])
def test_check_mode_touches_nothing(worker: FakeHost, release: str, unit: str, restart: bool) -> None:
    worker.enabled = False
    before, state = worker.kept(), worker.snapshot()
    switch = switch_of(worker)
    outcome = switch.run(switch.target(release, worker.config(unit), ALONE), check=True)
    assert outcome.changed
    assert outcome.restart_needed is restart
    assert not outcome.restarted
    assert (worker.kept(), worker.snapshot(), worker.actions) == (before, state, [])


def test_check_mode_foresees_what_a_deploy_says(worker: FakeHost) -> None:
    switch = switch_of(worker)
    target = switch.target("r2", worker.config("two", hook="#!/bin/sh"), ALONE)
    foreseen = switch.run(target, check=True)
    done = switch.run(target)
    assert (foreseen.reasons, foreseen.diff) == (done.reasons, done.diff)


def test_a_diff_hides_secrets(worker: FakeHost) -> None:
    outcome = deploy(worker, "r2", "two", hook="#!/bin/sh")
    assert "hunter2" not in json.dumps(outcome.diff)
    assert [(entry["after_header"], entry["before"], entry["after"]) for entry in outcome.diff] == [
        ("current", "r1\n", "r2\n"),
        (str(worker.unit_file), "one", "two"),
        (f"{worker.generation_file.parent}/before-start", "", "#!/bin/sh"),
    ]


def test_an_owner_that_is_not_made_yet_differs(worker: FakeHost) -> None:
    item = ConfigFile(worker.unit_file, b"one", ME, "no-such-group", 0o644)
    assert worker.differs(item)


# ---------------------------------------------------------------------------------------------- cut off anywhere

Act = Callable[[FakeHost], object]


@dataclass(frozen=True)
class Story:
    """A deploy, on a host that was brought up in some way."""

    before: tuple[Act, ...]
    run: Act
    ends_on: tuple[str, str]


STORIES = {
    "first": Story((), lambda host: attempt(host, "r1", "one"), ("r1", "one")),
    "first, fails": Story((), lambda host: attempt(host, "r1", "black"), ("", "")),
    "first, silent": Story((), lambda host: attempt(host, "r1", "silent"), ("", "")),
    "settings": Story(
        (lambda host: deploy(host, "r1", "one"),),
        lambda host: attempt(host, "r1", "one, faster"),
        ("r1", "one, faster"),
    ),
    "settings, fail": Story(
        (lambda host: deploy(host, "r1", "one"),), lambda host: attempt(host, "r1", "black"), ("r1", "one")
    ),
    "release": Story(
        (lambda host: deploy(host, "r1", "one"),),
        lambda host: attempt(host, "r2", "two", hook="#!/bin/sh"),
        ("r2", "two"),
    ),
    "release, same settings": Story(
        (lambda host: deploy(host, "r1", "one"),), lambda host: attempt(host, "r2", "one"), ("r2", "one")
    ),
    "release, fails": Story(
        (lambda host: deploy(host, "r1", "one", hook="#!/bin/sh"),),
        lambda host: attempt(host, "r2", "black"),
        ("r1", "one"),
    ),
    "release, silent": Story(
        (lambda host: deploy(host, "r1", "one"),), lambda host: attempt(host, "r2", "silent"), ("r1", "one")
    ),
    "third release": Story(
        (lambda host: deploy(host, "r1", "one"), lambda host: deploy(host, "r2", "two")),
        lambda host: attempt(host, "r3", "three"),
        ("r3", "three"),
    ),
    "more workers": Story(
        (lambda host: deploy(host, "r1", "one"),), lambda host: attempt(host, "r2", "two, has 2"), ("r2", "two, has 2")
    ),
    "fewer workers": Story(
        (lambda host: deploy(host, "r1", "one, has 2"),), lambda host: attempt(host, "r2", "two"), ("r2", "two")
    ),
    "rollback": Story(
        (lambda host: deploy(host, "r1", "one"), lambda host: deploy(host, "r2", "two")),
        lambda host: go_back(host, "r1"),
        ("r1", "one"),
    ),
}
BETWEEN: dict[str, Act] = {"at once": lambda _: None, "crash": FakeHost.crash, "reboot": FakeHost.reboot}


class Kept:
    """A host as it is now, files and all, to go on from again and again; files are replaced, never written to."""

    def __init__(self, host: FakeHost) -> None:
        self._host = copy.deepcopy(host)
        self._folder = host.root.parent
        self._kept = Path(tempfile.mkdtemp(dir=self._folder.parent)) / "files"
        shutil.copytree(self._folder, self._kept, symlinks=True, copy_function=os.link)

    def again(self) -> FakeHost:
        shutil.rmtree(self._folder)
        shutil.copytree(self._kept, self._folder, symlinks=True, copy_function=os.link)
        return copy.deepcopy(self._host)


def started(folder: Path, *before: Act) -> Kept:
    host = FakeHost(folder / "here")
    for release in ("r1", "r2", "r3"):
        host.build(release)
    for act in before:
        act(host)
    host.actions.clear()
    return Kept(host)


def cut_off(host: FakeHost, step: int, act: Act) -> bool:
    """Whether it was, since it was not through before."""
    host.actions.clear()
    host.kill_before = step
    try:
        act(host)
    except Killed:
        return True
    finally:
        host.kill_before = None
    return False


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("name", STORIES)
def test_the_next_deploy_finishes_one_that_was_cut_off(tmp_path: Path, name: str, between: str) -> None:
    story = STORIES[name]
    start = started(tmp_path, *story.before)

    def end(host: FakeHost) -> tuple[dict[str, Any], tuple[str, str]]:
        story.run(host)
        return host.snapshot(), running(host)

    host = start.again()
    expected = end(host)
    steps = len(host.actions)
    assert expected[1] == story.ends_on
    assert steps > 5
    for cut in range(steps):
        host = start.again()
        assert cut_off(host, cut, story.run)
        BETWEEN[between](host)
        after = Kept(host)
        assert end(host) == expected, f"cut off before step {cut}"
        for again in range(cut % 3, steps, 3) if between == "crash" else ():
            host = after.again()
            if cut_off(host, again, story.run):
                BETWEEN[between](host)
            assert end(host) == expected, f"cut off before {cut}, then {again}"


@pytest.mark.parametrize("name", [name for name, story in STORIES.items() if story.before])
def test_after_a_power_cut_what_was_verified_serves(tmp_path: Path, name: str) -> None:
    """Also where the power is cut again while that is brought back."""
    story = STORIES[name]
    start = started(tmp_path, *story.before)
    for cut in itertools.count():
        host = start.again()
        if not cut_off(host, cut, story.run):
            break
        after = Kept(host)
        for again in range(cut % 5, 25, 5):
            host = after.again()
            cut_off(host, again, FakeHost.reboot)
            host.reboot()
            assert host.process is not None, f"cut off before {cut}, then {again}"
            settings = host.verified_settings(host.process.release)
            assert settings is not None
            whole = switch_of(host).target(host.process.release, *settings)
            assert host.process.generation == host.verified()["generation"] == whole.generation, (cut, again)
            assert host.process.unit == whole.config[0].content.decode()
            assert list(host.workers) == [worker.unit for worker in whole.workers if worker.unit != UNIT]
            assert not host.at_boot.is_set_up()
    assert cut > 5


def test_the_program_of_the_next_boot_needs_nothing_else(worker: FakeHost) -> None:
    """Sources and all, by the Python that the host has; systemd is only asked, and nothing waits for it."""
    worker.kill_before = "restart"
    with pytest.raises(Killed):
        deploy(worker, "r2", "two, has 2")
    assert worker.link("current") == "r2"
    link, unit, program = worker.at_boot.paths
    assert link.resolve() == unit
    assert f"\nBefore={UNIT} comfyui@0.service comfyui@1.service\n" in unit.read_text()
    assert f"\nExecStart={sys.executable} -I {program}\n" in unit.read_text()
    assert program.stat().st_mode & 0o777 == 0o600
    bin_dir, said = worker.root / "bin", worker.root / "asked"
    bin_dir.mkdir()
    (bin_dir / "systemctl").write_text(
        f'#!/bin/sh\necho "$*" >> {said}\ncase $* in *list-units*) echo comfyui@1.service loaded inactive dead;; esac\n'
    )
    (bin_dir / "systemctl").chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-I", program],
        env={"PATH": f"{bin_dir}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"a switch of {UNIT} was cut off; it is back on release r1\n", "")
    assert (worker.link("current"), worker.unit_file.read_text()) == ("r1", "one")
    assert worker.recorded_generation() == worker.verified()["generation"]
    assert said.read_text().splitlines() == [
        "--no-block daemon-reload",
        f"--no-block reset-failed {UNIT}",
        "--no-block list-units --all --plain --no-legend comfyui@*.service",
        "--no-block stop comfyui@1.service",
        f"--no-block restart {UNIT}",
    ]
    assert not worker.at_boot.is_set_up()


@pytest.mark.parametrize("name", ["settings", "release", "release, fails", "rollback"])
def test_another_target_may_follow_one_that_was_cut_off(tmp_path: Path, name: str) -> None:
    story = STORIES[name]
    start = started(tmp_path, *story.before)
    for cut in range(30):
        host = start.again()
        if not cut_off(host, cut, story.run):
            break
        assert attempt(host, "r3", "three") == ""
        assert running(host) == ("r3", "three")
        assert host.link("previous") in {"r1", "r2"}
        go_back(host)
        assert running(host) in {("r1", "one"), ("r1", "one, faster"), ("r2", "two")}
    else:
        pytest.fail("the story has no end")


# ---------------------------------------------------------------------------------------------- old releases


@pytest.mark.parametrize(
    ("releases", "keep", "needed", "gone"),
    [
        ({}, 3, set(), []),
        ({"a": 1, "b": 2, "c": 3}, 3, {"c"}, []),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, 3, {"d"}, ["a"]),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, 1, {"d"}, ["a", "b", "c"]),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, 2, {"a", "d"}, ["b", "c"]),
        ({"a": 1, "b": 2, "c": 3}, 1, {"a", "b", "c"}, []),
        ({"a": 1, "b": 1, "c": 1}, 1, {"b"}, ["a", "c"]),
        ({"a": 1, "b": 2}, 0, {""}, ["a", "b"]),
    ],
)
def test_releases_to_remove(releases: dict[str, float], keep: int, needed: set[str], gone: list[str]) -> None:
    assert releases_to_remove(releases, keep, needed) == gone


@pytest.mark.parametrize("keep", [0, 1, 2, 3, 4])
def test_pruning_spares_what_is_needed(worker: FakeHost, keep: int) -> None:
    deploy(worker, "r2", "two")
    worker.build("r4", at=4.0)
    worker.set_link("current", "r3")  # as in a deploy that was cut off: r3 runs, r2 is verified, r1 is the way back
    worker.actions.clear()
    spared = {"r1", "r2", "r3"} | ({"r4"} if keep > 3 else set())
    assert switch_of(worker).prune(keep, check=True) == ([] if keep > 3 else ["r4"])
    assert worker.actions == []
    assert switch_of(worker).prune(keep) == ([] if keep > 3 else ["r4"])
    assert set(worker.built_at()) == spared


def test_leftovers_of_builds_go_after_a_day(worker: FakeHost) -> None:
    for name, age in (("old", 86500.0), ("young", 100.0), (".r9.new", 86500.0), (".r8.new", 100.0)):
        folder = worker.release_dir(name)
        folder.mkdir()
        if name.startswith("."):
            (folder / "release.json").write_text("{}")  # cut off before it got its name
        os.utime(folder, (worker.clock - age,) * 2)
    (worker.root / "releases" / "file").write_text("no release")
    assert set(worker.built_at()) == {"r1", "r2", "r3"}
    assert switch_of(worker).prune(9) == [".r9.new", "old"]
    assert worker.release_dir("young").is_dir()
    assert not worker.release_dir("old").exists()


def environment(host: FakeHost, name: str, *releases: str, complete: bool = True) -> Path:
    folder = host.root / "environments" / name
    (folder / "venv").mkdir(parents=True)
    if complete:
        (folder / "complete").touch()
    for release in releases:
        host.release_dir(release).mkdir(exist_ok=True)
        (host.release_dir(release) / "venv").symlink_to(f"../../environments/{name}/venv")
    return folder


def test_an_environment_goes_with_the_last_release_that_uses_it(worker: FakeHost) -> None:
    shared = environment(worker, "comfyui-000000000001", "r1", "r2")
    alone = environment(worker, "comfyui-000000000002", "r3")
    under_way = environment(worker, "comfyui-000000000003", "r5", complete=False)
    left = environment(worker, "comfyui-000000000004", complete=False)
    others = [environment(worker, name) for name in ("comfyui-api-000000000005", "jupyterlab-000000000006")]
    deploy(worker, "r2", "two")
    assert worker.environments() == ["comfyui-000000000001", "comfyui-000000000002"]
    assert switch_of(worker).prune(1, check=True) == ["r3", "comfyui-000000000002", "comfyui-000000000004"]
    assert alone.is_dir()
    assert switch_of(worker).prune(1) == ["r3", "comfyui-000000000002", "comfyui-000000000004"]
    assert not alone.exists()
    assert not left.exists()
    assert all(folder.is_dir() for folder in [shared, under_way, *others])
    assert switch_of(worker).prune(1) == []


def test_nothing_is_removed_while_another_deploy_builds(worker: FakeHost) -> None:
    with exclusive(worker.root / "releases/.lock"):
        assert switch_of(worker).prune(0) == []
    assert switch_of(worker).prune(0) == ["r2", "r3"]


def test_half_an_environment_is_none(worker: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(_: Path) -> None:
        raise Killed

    environment(worker, "comfyui-000000000001")
    monkeypatch.setattr(shutil, "rmtree", cut_off)
    with pytest.raises(Killed):
        worker.remove_environment("comfyui-000000000001")
    assert worker.environments() == []


def test_half_a_release_is_none(worker: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(_: Path) -> None:
        raise Killed

    monkeypatch.setattr(shutil, "rmtree", cut_off)
    with pytest.raises(Killed):
        worker.remove_release("r2")
    assert not worker.is_complete("r2")


# ---------------------------------------------------------------------------------------------- parts


def test_a_generation_is_a_hash_of_all_its_parts() -> None:
    base: dict[str, tuple[bytes, int]] = {"/a": (b"x", 0o644), "/b": (b"y", 0o644)}
    others = [
        ("r2", base),
        ("r1", {"/a": (b"x", 0o644)}),
        ("r1", {**base, "/b": (b"z", 0o644)}),
        ("r1", {**base, "/b": (b"y", 0o640)}),
        ("r1", {"/a": (b"x", 0o644), "/c": (b"y", 0o644)}),
        ("r1", {"/a": (b"x\0/b\x00644\x001\0y", 0o644)}),
    ]
    hashes = {generation_of(release, contents) for release, contents in [("r1", base), *others]}
    assert len(hashes) == len(others) + 1
    assert generation_of("r1", dict(reversed(base.items()))) == generation_of("r1", base)


def test_settings_survive_being_kept() -> None:
    config = (
        ConfigFile(Path("/a"), b"\xff\0", "root", "wanmetal", 0o640, secret=True),
        ConfigFile(Path("/b"), b"", "root", "root", 0o755),
    )
    workers = (Worker("comfyui@0.service", "http://[::1]:8188"), *ALONE)
    assert unpack(pack(config, workers)) == (config, workers)


@pytest.mark.parametrize("text", ["", "[", "[]", "null"])
def test_a_damaged_note_of_what_was_verified_is_none(fresh: FakeHost, text: str) -> None:
    fresh.verified_file.write_text(text)
    assert fresh.verified() == {}


def test_systemd_sees_programs_that_are_not_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def analyze(command: list[str]) -> tuple[int, str]:
        text = Path(command[-1]).read_text()
        program = Path(text.partition("ExecStartPre=")[2].strip())
        seen.append(program.read_text())
        assert os.access(program, os.X_OK)
        return (1, "no good") if "bad" in text else (0, "a warning")

    monkeypatch.setattr(release_switch, "_run", analyze)
    host = Host(tmp_path, tmp_path, UNIT)
    hook = ConfigFile(tmp_path / "before-start", b"#!/bin/sh", ME, MY_GROUP, 0o755)
    unit = f"[Service]\nExecStartPre={hook.dest}\n"
    assert host.verify_unit(UNIT, unit.encode(), (hook,)) == ""
    assert host.verify_unit("comfyui@.service", f"# bad\n{unit}".encode(), (hook,)) == "no good"
    assert seen == ["#!/bin/sh"] * 2


def test_the_journal_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def journalctl(command: list[str]) -> tuple[int, str]:
        commands.append(command)
        return 0, "\n".join(f"line {number}" for number in range(100))

    monkeypatch.setattr(release_switch, "_run", journalctl)
    told = Host(tmp_path, tmp_path, UNIT).journal(12.7).splitlines()
    assert (told[0], told[-1]) == ("line 60", "line 99")
    assert commands[0] == ["journalctl", "--sync"]
    assert "@12" in commands[1]


def test_only_one_deploy_switches_at_a_time(tmp_path: Path) -> None:
    with (tmp_path / ".switch.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SwitchError, match=r"\.switch\.lock is held by another deploy"), switch_lock(tmp_path, 0):
            pytest.fail("two at a time")
    with switch_lock(tmp_path, 0):
        pass
    with switch_lock(tmp_path, 0):
        pass


# ---------------------------------------------------------------------------------------------- the module


def module(host: FakeHost, check: bool = False, **params: Any) -> Any:
    config = [
        {
            "dest": str(host.unit_file),
            "content": "two",
            "owner": ME,
            "group": MY_GROUP,
            "mode": "0644",
            "secret": False,
        },
    ]
    defaults = {
        "workers": {UNIT: "http://127.0.0.1:9"},
        "drain_timeout": 0,
        "canary_timeout": 1,
        "config": config,
        "secret_contents": {},
        "config_from": "given",
        "keep": 3,
    }
    return SimpleNamespace(params={**defaults, **params}, check_mode=check, _diff=True)


def test_check_mode_before_anything_is_built(fresh: FakeHost) -> None:
    result = _switch(module(fresh, check=True, release="r9"), fresh)
    assert result["changed"]
    assert result["built"] is False
    assert result["restart_needed"]
    assert [entry["after"] for entry in result["diff"]] == ["r9\n", "two"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"release": "r9"}, r"found   'r9', which is not on the host\n  needed  one of: r1, r2, r3\n  fix     name"),
        ({"release": "previous"}, r"found   no release that ran before this one; on the host: r1, r2, r3\n"),
        ({"release": "r2", "config_from": "release"}, r"found   'r2', which was never verified on this host\n"),
    ],
)
def test_what_cannot_be_switched_to(worker: FakeHost, params: dict[str, Any], message: str) -> None:
    with pytest.raises(SwitchError, match=message):
        _switch(module(worker, **params), worker)


@pytest.mark.parametrize("release", ["previous", "r1"])
def test_a_host_without_releases_has_none_to_go_back_to(release: str, tmp_path: Path) -> None:
    host = FakeHost(tmp_path / "nothing")
    with pytest.raises(SwitchError, match=r"found   none on the host\n.*\n  fix     deploy"):
        _switch(module(host, release=release, config_from="release"), host)


def test_rolling_back_foreseen(worker: FakeHost) -> None:
    deploy(worker, "r2", "two")
    result = _switch(module(worker, check=True, release="previous", config_from="release"), worker)
    assert result["changed"]
    assert result["release"] == "r1"
    assert result["generation"] == switch_of(worker).target("r1", worker.config("one"), ALONE).generation
    assert "hunter2" not in json.dumps(result)


def test_old_releases_go_without_a_switch(worker: FakeHost) -> None:
    """As after a switch that was cut off before it tidied up."""
    params = {"release": "r1", "config_from": "release", "keep": 1}
    foreseen = _switch(module(worker, check=True, **params), worker)
    assert foreseen["removed"] == ["r2", "r3"]
    assert foreseen["changed"]


def test_a_release_whose_packs_are_not_whole_is_rolled_back(worker: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[tuple[str, str]] = []

    def look(folder: Path, _: object, unit: str) -> Look:
        looked.append((folder.name, unit))
        return Look({}, ["node pack a lacks node type X: because"] if folder.name == "r2" else [])

    monkeypatch.setattr(release_switch_module, "run_canary", lambda *_: SimpleNamespace(ok=True, reason=""))
    monkeypatch.setattr(release_switch_module, "look_at_packs", look)
    with pytest.raises(SwitchError, match=r"node pack a lacks node type X: because\. The host is back on release r1"):
        _switch(module(worker, release="r2"), worker)
    assert looked == [("r2", UNIT), ("r1", UNIT)]
    assert worker.link("current") == "r1"
