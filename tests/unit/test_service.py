from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host import service, state
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.boot import AtBoot
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.service import Service, remove
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.switch import (
    ConfigFile,
    Host,
    SwitchError,
    switch_lock,
)
from ansible_collections.wanmetal.comfyui.tests.web import Request, hosting, reply

ME = pwd.getpwuid(os.getuid()).pw_name
MY_GROUP = grp.getgrgid(os.getgid()).gr_name
UNIT = "gallery.service"
QUESTION = {"url": "http://127.0.0.1:9/health"}


class Killed(BaseException):
    """The deploy was cut off."""


class FakeHost(Host):
    """A host whose files are real and whose systemd is not.

    How a service behaves is written in its unit: ``broken`` does not start, ``dies`` ends after a second, ``mute`` does
    not answer, ``has 3`` starts three more, which are part of it.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "opt", folder / "opt", UNIT, folder / "units")
        self.unit_file = self.units / UNIT
        self.settings_file = folder / "etc/gallery.env"
        for path in (self.root, self.unit_file.parent, self.settings_file.parent):
            path.mkdir(parents=True)
        self.loaded = self.running = ""
        self.workers: list[str] = []
        self.pid = 100
        self.born = 0.0
        self.enabled = False
        self.clock = 1_000_000.0
        self.actions: list[str] = []
        self.kill_before = -1
        self.is_guarded = False

    @contextlib.contextmanager
    def guarded(self, otherwise: Callable[[], object]) -> Iterator[None]:
        """Nobody does it, unless a test wants it: what is cut off here is all that runs."""
        with super().guarded(otherwise) if self.is_guarded else contextlib.nullcontext():
            yield

    def act(self, action: str) -> None:
        """Whatever changes the host passes here, and may be cut off here."""
        if self.kill_before == len(self.actions):
            raise Killed
        self.actions.append(action)

    def write(self, path: Path, content: bytes, _owner: str, _group: str, mode: int) -> None:
        self.act(f"write {path.name}")
        super().write(path, content, ME, MY_GROUP, mode)

    def systemctl(self, *arguments: str) -> tuple[int, str]:
        self.act(arguments[0])
        there = self.unit_file.read_text() if self.unit_file.exists() else ""
        if arguments[0] == "daemon-reload":
            self.loaded = there
        if arguments[0] in ("enable", "reenable", "disable"):
            self.enabled = arguments[0] != "disable"
        if arguments[0] == "stop":
            self.workers = [unit for unit in self.workers if unit not in arguments]
        if "--now" in arguments or arguments == ("stop", UNIT):
            self.running = ""
        if arguments[0] in ("start", "restart"):
            self.pid, self.born = self.pid + 1, self.clock
            self.running = "" if "broken" in self.loaded else f"{self.loaded} {self.settings_file.read_text()}"
            wanted = int(self.loaded.partition("has ")[2][:1] or 0)
            self.workers = sorted({*self.workers, *(f"gallery@{number}.service" for number in range(wanted))})
            return (0, "") if self.running else (1, f"Job for {UNIT} failed.\nSee systemctl status.")
        return 0, ""

    def unit_state(self, _unit: str) -> dict[str, str]:
        alive = self.running and not ("dies" in self.running and self.clock - self.born > 1)
        return {
            "ActiveState": "active" if alive else "failed",
            "UnitFileState": "enabled" if self.enabled else "disabled",
            "MainPID": str(self.pid),
        }

    def running_workers(self) -> list[str]:
        return self.workers

    def reboot(self) -> None:
        """What is enabled starts, after what a switch that was cut off has left to do."""
        self.running, self.workers = "", []
        self.loaded = self.unit_file.read_text() if self.unit_file.exists() else ""
        link, unit, program = self.at_boot.paths
        if link.is_symlink() and unit.exists() and program.exists():
            Service(self, ()).roll_back()
        if self.enabled and not self.running:
            self.systemctl("start")

    def verify_unit(self, _name: str, content: bytes, _programs: tuple[ConfigFile, ...]) -> str:
        return "Unknown section" if b"[Servise]" in content else ""

    def journal(self, _since: float) -> str:
        return "its last words"

    def run(self, command: list[str]) -> tuple[int, str]:
        self.act(command[0])
        return 0, ""

    def now(self) -> float:
        return self.clock

    def sleep(self, seconds: float) -> None:
        self.clock += seconds

    def ask(self, question: Mapping[str, Any]) -> str:
        if not self.running or "mute" in self.running:
            return f"{question['url']} does not answer"
        return ""

    def wanted(self, unit: str, environment: str = "TOKEN=1") -> Service:
        files = [(self.settings_file, environment, True), (self.unit_file, unit, False)]
        config = [ConfigFile(path, text.encode(), ME, MY_GROUP, 0o600, hidden) for path, text, hidden in files]
        return Service(self, config, [QUESTION], 30, self.ask)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def test_a_first_service_is_installed_and_asked_and_then_left_alone(host: FakeHost) -> None:
    outcome = host.wanted("good").run()
    assert outcome.changed
    assert outcome.restarted
    assert host.running == "good TOKEN=1"
    assert host.enabled
    before = list(host.actions)
    again = host.wanted("good").run()
    assert (again.changed, again.reasons, host.actions) == (False, [], before)


def test_a_look_changes_nothing_and_shows_no_secret(host: FakeHost) -> None:
    outcome = host.wanted("good", "TOKEN=hunter2").run(check=True)
    assert outcome.changed
    assert host.actions == []
    assert [entry["after_header"] for entry in outcome.diff] == [str(host.unit_file)]
    assert "hunter2" not in str(outcome)


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        ("new broken", "did not start (Job for gallery.service failed.)"),
        ("new dies mute", "did not stay up (it is failed)"),
        ("new mute", "runs, but http://127.0.0.1:9/health does not answer"),
    ],
)
def test_one_that_does_not_answer_is_rolled_back_with_its_settings(host: FakeHost, unit: str, said: str) -> None:
    host.wanted("old", "TOKEN=old").run()
    with pytest.raises(SwitchError) as caught:
        host.wanted(unit, "TOKEN=new").run()
    assert str(caught.value) == (
        f"gallery.service {said}. The earlier one is back and serves again.\nIts last lines:\nits last words"
    )
    assert host.running == "old TOKEN=old"
    assert (host.unit_file.read_text(), host.settings_file.read_text()) == ("old", "TOKEN=old")
    assert host.settings_file.stat().st_mode & 0o7777 == 0o600
    assert list((host.root / "services").iterdir()) == []


def test_a_way_back_that_is_blocked_is_taken_by_the_next_run(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host.wanted("old", "TOKEN=old").run()
    write = FakeHost.write

    def full(self: FakeHost, path: Path, content: bytes, owner: str, group: str, mode: int) -> None:
        if content == b"old":
            raise OSError(28, "No space left on device")
        write(self, path, content, owner, group, mode)

    with monkeypatch.context() as patched:
        patched.setattr(FakeHost, "write", full)
        with pytest.raises(SwitchError, match=r"Going back failed too: .*No space left on device"):
            host.wanted("new mute", "TOKEN=new").run()
    with pytest.raises(SwitchError, match="The earlier one is back and serves again"):
        host.wanted("new mute", "TOKEN=new").run()
    assert host.running == "old TOKEN=old"


def test_a_first_one_that_does_not_answer_leaves_nothing(host: FakeHost) -> None:
    with pytest.raises(SwitchError, match="There is no earlier one to go back to, so it was removed"):
        host.wanted("mute").run()
    assert not host.unit_file.exists()
    assert not host.settings_file.exists()
    assert (host.running, host.enabled) == ("", False)


def test_one_that_did_not_run_before_stays_down_after_a_failure(host: FakeHost) -> None:
    host.wanted("old").run()
    host.systemctl("stop", UNIT)
    with pytest.raises(SwitchError, match="The earlier one, which did not run, is in its place again"):
        host.wanted("mute").run()
    assert (host.unit_file.read_text(), host.running) == ("old", "")


def test_one_that_has_stopped_is_started_and_asked(host: FakeHost) -> None:
    host.wanted("good").run()
    host.systemctl("stop", UNIT)
    assert host.wanted("good").run().reasons == ["gallery.service does not run"]
    assert host.running
    host.running = ""
    host.loaded = "good mute"
    wanted = host.wanted("good")
    wanted.ask = lambda _: "no answer"
    with pytest.raises(SwitchError, match="It was not changed, so there is nothing to go back to"):
        wanted.run()


def test_one_that_is_not_enabled_is_enabled_without_a_restart(host: FakeHost) -> None:
    host.wanted("good").run()
    pid, host.enabled = host.pid, False
    assert host.wanted("good").run().changed
    assert (host.enabled, host.pid) == (True, pid)


def test_a_unit_that_systemd_refuses_changes_nothing(host: FakeHost) -> None:
    host.wanted("old").run()
    with pytest.raises(SwitchError, match=r"nothing was changed[.] It says: Unknown"):
        host.wanted("[Servise]").run()
    assert host.running == "old TOKEN=1"
    assert host.unit_file.read_text() == "old"


def test_without_an_address_it_has_to_stay_up(host: FakeHost) -> None:
    wanted = host.wanted("dies")
    wanted.answers = ()
    with pytest.raises(SwitchError, match="did not stay up"):
        wanted.run()
    wanted = host.wanted("good")
    wanted.answers = ()
    assert wanted.run().restarted


@pytest.mark.parametrize("good", [True, False])
def test_a_deploy_that_was_cut_off_anywhere_is_finished_by_the_next(good: bool, tmp_path: Path) -> None:
    """Whatever the last action was, the next run ends with the new one, or with the old one and its settings."""
    unit = "new" if good else "new mute"
    for last in range(60):
        host = FakeHost(tmp_path / str(last))
        host.wanted("old", "TOKEN=old").run()
        done = len(host.actions)
        host.kill_before = done + last
        try:
            host.wanted(unit, "TOKEN=new").run()
        except Killed:
            pass
        except SwitchError:
            break
        else:
            break
        host.kill_before = -1
        if good:
            host.wanted(unit, "TOKEN=new").run()
            assert host.running == "new TOKEN=new"
        else:
            with pytest.raises(SwitchError):
                host.wanted(unit, "TOKEN=new").run()
            assert host.running == "old TOKEN=old"
            assert host.unit_file.read_text() == "old"
    else:
        pytest.fail("the loop never got to the end")
    assert last > 6


@pytest.mark.parametrize("moment", ["write gallery.env", "write gallery.service", "daemon-reload", "restart"])
@pytest.mark.parametrize("first", [True, False])
def test_a_switch_that_is_killed_is_rolled_back(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, first: bool, moment: str
) -> None:
    """For want of memory, for example. Another process does it, and holds the lock for as long."""
    if not first:
        host.wanted("old", "TOKEN=old").run()
    host.is_guarded = True
    deploys = os.getpid()

    def act(action: str) -> None:
        if action == moment and os.getppid() == deploys:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(host, "act", act)
    if not (child := os.fork()):
        try:
            with switch_lock(host.root, 0):
                host.wanted("new", "TOKEN=new").run()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with switch_lock(host.root, 60):
        files = [path.read_text() if path.exists() else "" for path in (host.unit_file, host.settings_file)]
        assert files == (["", ""] if first else ["old", "TOKEN=old"])
        assert list((host.root / "services").iterdir()) == []


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("unit", ["new", "new mute", "new, has 2"])
def test_after_a_power_cut_the_earlier_one_serves(unit: str, first: bool, tmp_path: Path) -> None:
    """Also where the power is cut again while that is brought back. A first one that had not answered is gone."""
    for last in range(60):
        for again in range(0, 12, 3):
            host = FakeHost(tmp_path / f"{last} {again}")
            if not first:
                host.wanted("old", "TOKEN=old").run()
            host.kill_before = len(host.actions) + last
            try:
                host.wanted(unit, "TOKEN=new").run()
            except Killed:
                pass
            except SwitchError:
                return
            else:
                return
            host.kill_before = len(host.actions) + again
            with contextlib.suppress(Killed):
                host.reboot()
            host.kill_before = -1
            host.reboot()
            done = not first and host.running == "old TOKEN=old" and host.unit_file.read_text() == "old"
            gone = first and not host.running and not host.unit_file.exists() and not host.settings_file.exists()
            assert done or gone, (last, again, host.running)
            assert host.workers == []
            assert not host.at_boot.is_set_up()
    pytest.fail("the loop never got to the end")


def test_its_program_of_the_next_boot_needs_nothing_else(host: FakeHost) -> None:
    """Sources and all, by the Python that the host has."""
    host.kill_before = 4
    with pytest.raises(Killed):
        host.wanted("new").run()
    assert host.unit_file.exists()
    bin_dir = host.root / "bin"
    bin_dir.mkdir()
    (bin_dir / "systemctl").symlink_to("/bin/true")
    program = host.at_boot.paths[-1]
    path = {"PATH": f"{bin_dir}:/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-I", program], env=path, capture_output=True, text=True, check=False)
    said = f"{UNIT}: There is no earlier one to go back to, so it was removed.\n"
    assert (done.stdout, done.stderr) == (said, "")
    assert not host.unit_file.exists()
    assert list((host.root / "services").iterdir()) == []


@pytest.mark.parametrize(
    ("unit", "name"),
    [
        ("comfyui.service", "wanmetal-rollback-comfyui.service"),
        ("comfyui-api@0.service", "wanmetal-rollback-comfyui-api@0.service"),
        ("wanmetal-metrics.timer", "wanmetal-rollback-wanmetal-metrics.timer.service"),
    ],
)
def test_systemd_takes_what_the_next_boot_starts_for_a_service(unit: str, name: str, tmp_path: Path) -> None:
    at_boot = AtBoot(unit, tmp_path / "services", tmp_path)
    at_boot.set_up(service.roll_back_at_boot, ["/opt", "/etc", unit, "/etc/systemd/system"], [unit])
    link, file, program = at_boot.paths
    assert (link.name, link.resolve(), file.name) == (name, file, name)
    lines = file.read_text().splitlines()
    assert f"Before={'' if unit.endswith('.timer') else unit}" in lines
    assert f"ConditionPathExists={program}" in lines
    at_boot.remove()
    assert not at_boot.is_set_up()


def test_more_of_a_service_that_is_rolled_back_are_stopped(host: FakeHost) -> None:
    """As of the API, which has one beside each worker. Those that ran before go on."""
    host.wanted("old, has 1").run()
    with pytest.raises(SwitchError, match="The earlier one is back"):
        host.wanted("mute, has 3").run()
    assert host.running.startswith("old")
    assert host.workers == ["gallery@0.service"]


# -- questions


@pytest.fixture
def answering() -> Iterator[str]:
    def answer(request: Request) -> None:
        good = request.path == "/open" or request.headers.get("Authorization") == "token abc"
        reply(request, b"{}" if good else b"Forbidden", 200 if good else 403)

    with hosting(answer) as url:
        yield url


def test_questions(answering: str, tmp_path: Path) -> None:
    secrets = tmp_path / "gallery.env"
    secrets.write_text('OTHER=x\nGALLERY_TOKEN="abc"\n')
    question = {"header": "Authorization", "prefix": "token ", "secret_file": str(secrets), "secret": "GALLERY_TOKEN"}
    assert service.ask({"url": f"{answering}/open"}) == ""
    assert service.ask({"url": f"{answering}/x", **question}) == ""
    assert service.ask({"url": f"{answering}/x"}) == f"{answering}/x answers with HTTP status 403: Forbidden"
    refused = service.ask({"url": f"{answering}/x", **question, "secret": "GALLERY"})
    assert refused.startswith(f"{answering}/x answers with HTTP status 403")
    secrets.unlink()
    assert "does not answer" in service.ask({"url": f"{answering}/x", **question})
    assert service.ask({"url": "http://127.0.0.1:9/"}) == "http://127.0.0.1:9/ does not answer (Connection refused)"


# -- removal


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def give(comment: str) -> None:
        entry = pwd.struct_passwd(("gallery", "x", 999, 999, comment, "/", "/bin/false"))
        monkeypatch.setattr(pwd, "getpwnam", lambda name: entry if name == "gallery" else pwd.getpwuid(os.getuid()))

    return give


@pytest.mark.parametrize(
    ("comment", "other", "goes"),
    [
        ("wanmetal gallery", "", True),
        ("Jane Doe,,,", "", False),
        ("", "", False),
        ("wanmetal gallery", "[Service]\nUser=gallery\n", False),
        ("wanmetal gallery", "[Service]\nUser=gallery2\n", True),
    ],
)
def test_a_user_goes_where_a_role_has_made_it_and_no_other_unit_has_it(
    comment: str, other: str, goes: bool, host: FakeHost, users: Callable[[str], None]
) -> None:
    users(comment)
    host.unit_file.write_text("[Service]\nUser=gallery\nWorkingDirectory=/opt/wanmetal\n")
    (host.unit_file.parent / "other.service").write_text(other)
    outcome = remove(host, [], "gallery")
    assert ("userdel" in host.actions) == goes
    assert outcome.changed
    assert not host.unit_file.exists()


@pytest.mark.parametrize("text", ["[Service]\nExecStart=/opt/mine\n", "[Service]\nUser=jane\n", ""])
def test_somebody_s_own_service_of_that_name_stays(text: str, host: FakeHost) -> None:
    other = host.units / "gallery@.service"
    for path in (host.unit_file, other):
        path.write_text(text)
    outcome = remove(host, [str(other), str(host.settings_file)], "")
    assert (outcome.changed, host.actions) == (False, [])
    assert (host.unit_file.read_text(), other.read_text()) == (text, text)


def test_a_service_is_ours_where_it_runs_as_an_account_of_ours(host: FakeHost, users: Callable[[str], None]) -> None:
    users("wanmetal gallery")
    host.unit_file.write_text("[Service]\nUser=gallery\n")
    assert state.made_unit(host.unit_file)
    users("Jane Doe,,,")
    assert not state.made_unit(host.unit_file)
    timer = host.units / "wanmetal-metrics.timer"
    assert not state.made_unit(timer)  # it is not there
    timer.touch()
    assert state.made_unit(timer)
    host.unit_file.unlink()
    host.unit_file.symlink_to("/dev/null")  # as systemctl mask does
    assert not state.made_unit(host.unit_file)


def test_what_it_has_left_goes_and_nothing_else(host: FakeHost, tmp_path: Path) -> None:
    host.wanted("wanmetal").run()
    for name in ("gallery-1/x", "gallery-2/y", "other-1/z"):
        (tmp_path / "builds" / name).mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    (tmp_path / "builds/gallery-link").symlink_to(elsewhere)
    patterns = [str(tmp_path / "builds/gallery-*"), str(host.settings_file), str(tmp_path / "missing")]
    look = remove(host, patterns, "", check=True)
    assert host.unit_file.exists()
    outcome = remove(host, patterns, "")
    assert sorted(path.name for path in (tmp_path / "builds").iterdir()) == ["other-1"]
    assert (elsewhere / "precious").exists()
    assert not host.settings_file.exists()
    assert look.reasons == outcome.reasons
    assert (host.running, host.enabled) == ("", False)
    assert not remove(host, patterns, "").changed


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to another user")
def test_a_removal_that_is_cut_off_leaves_what_the_next_deploy_looks_for(
    host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.wanted("wanmetal").run()
    traces = [tmp_path / name for name in ("z", "a")]
    for path in traces:
        path.touch()
    removed: list[Path] = []

    def killed(path: Path) -> None:
        if path == traces[1]:
            raise Killed
        removed.append(path)

    monkeypatch.setattr(service, "_remove", killed)
    with pytest.raises(Killed):
        remove(host, [str(path) for path in traces], "")
    assert removed == traces[:1]
    assert host.unit_file.exists()


def test_a_link_of_a_service_leads_no_removal_out_of_its_folder(host: FakeHost, tmp_path: Path) -> None:
    (tmp_path / "precious/gallery").mkdir(parents=True)
    theirs = tmp_path / "output"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    (theirs / "3").symlink_to(tmp_path / "precious")
    os.chown(theirs / "3", 12345, 12345, follow_symlinks=False)
    assert not remove(host, [str(theirs / "[0-9]/gallery")], "").changed
    assert (tmp_path / "precious/gallery").is_dir()


def test_the_record_is_for_root_alone(host: FakeHost) -> None:
    host.wanted("old", "TOKEN=hunter2").run()
    host.kill_before = len(host.actions) + 2
    with pytest.raises(Killed):
        host.wanted("new", "TOKEN=new").run()
    record = host.root / "services" / f"{UNIT}.json"
    assert record.stat().st_mode & 0o7777 == 0o600
    assert record.parent.stat().st_mode & 0o7777 == 0o700
    assert set(json.loads(record.read_text())) == {"files", "active", "workers"}
