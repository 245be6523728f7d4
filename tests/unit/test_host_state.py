from __future__ import annotations

import grp
import os
import pwd
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host import state as host_state
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import connections
from ansible_collections.wanmetal.comfyui.tests.web import Request, hosting, reply

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1FFC 00000000:0000 0A 00000000:00000000 00:00000000 00000000   999        0 101 1 0 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 102 1 0 100 0 0 10 0
   2: 0100007F:1FFC 0100007F:A1B2 01 00000000:00000000 00:00000000 00000000   999        0 103 1 0 100 0 0 10 0
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when
   0: 00000000000000000000000001000000:1FFD 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 \
00000000     0        0 104 1 0 100 0 0 10 0
"""


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('ID=debian\nVERSION_ID="12"\n', {"ID": "debian", "VERSION_ID": "12"}),
        ('ID=\'x\'\n# NAME=y\nPRETTY_NAME="A \\"b\\""\n', {"ID": "x", "PRETTY_NAME": 'A \\"b\\"'}),
        ("", {}),
    ],
)
def test_os_release(text: str, expected: dict[str, str]) -> None:
    assert host_state.os_release(text) == expected


@pytest.mark.parametrize(
    ("system", "facts"),
    [
        (
            {"id": "debian", "version": "12"},
            {"ansible_distribution": "Debian", "ansible_distribution_major_version": "12"},
        ),
        (
            {"id": "ubuntu", "version": "24.04"},
            {"ansible_distribution": "Ubuntu", "ansible_distribution_major_version": "24"},
        ),
        ({"id": "fedora", "version": "43"}, {}),
    ],
)
def test_distribution_facts(system: dict[str, str], facts: dict[str, str]) -> None:
    assert host_state.distribution_facts(system) == facts


def test_a_path_that_does_not_exist_is_on_the_filesystem_of_its_parent(tmp_path: Path) -> None:
    there = host_state.filesystem(str(tmp_path))
    assert host_state.filesystem(str(tmp_path / "a/b/c"))["device"] == there["device"] == tmp_path.stat().st_dev
    assert Path(there["mount"]).is_mount()
    assert there["free_bytes"] > 0
    assert host_state.filesystem("/proc/x")["mount"] == "/proc"


@pytest.mark.parametrize(
    ("limit", "expected"), [(None, 2048), ("max\n", 2048), ("1073741824\n", 1024), ("99999999999999\n", 2048)]
)
def test_memory(tmp_path: Path, limit: str | None, expected: int) -> None:
    tree(tmp_path, {"proc/meminfo": "MemTotal:        2097152 kB\nMemFree: 1 kB\n"})
    if limit:
        tree(tmp_path, {"cgroup/memory.max": limit})
    assert host_state.memory_mb(tmp_path / "proc", tmp_path / "cgroup") == expected


def test_listening() -> None:
    assert host_state.listening(TCP) == {
        "101": {"port": 8188, "address": "127.0.0.1", "uid": 999},
        "102": {"port": 22, "address": "0.0.0.0", "uid": 0},  # noqa: S104
    }
    assert host_state.listening(TCP6) == {"104": {"port": 8189, "address": "::1", "uid": 0}}


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/comfyui.service\n", "comfyui.service"),
        ("0::/docker/abc/system.slice/comfyui.service\n", "comfyui.service"),
        ("0::/user.slice/user-0.slice/user@0.service/app.slice/x.service/sub\n", "x.service"),
        ("0::/system.slice/system-getty.slice/getty@tty1.service\n", "getty@tty1.service"),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", "session-3.scope"),
        ("5:memory:/x.service\n1:name=systemd:/system.slice/y.service\n", "y.service"),
        ("0::/init.scope\n", "init.scope"),
        ("0::/\n", ""),
        ("", ""),
    ],
)
def test_unit_of(cgroup: str, unit: str) -> None:
    assert host_state.unit_of(cgroup) == unit


def test_listeners_with_their_processes(tmp_path: Path) -> None:
    for pid, inode in (("40", 101), ("41", 101), ("7", 104)):
        tree(tmp_path, {f"{pid}/comm": f"program{pid}\n", f"{pid}/cgroup": f"0::/system.slice/u{pid}.service\n"})
        (tmp_path / pid / "fd").mkdir()
        (tmp_path / pid / "fd/3").symlink_to(f"socket:[{inode}]")
        (tmp_path / pid / "fd/4").symlink_to("/dev/null")
    tree(tmp_path, {"net/tcp": TCP, "net/tcp6": TCP6, "9/comm": "gone"})
    found = host_state.listeners(tmp_path)
    assert [(entry["port"], entry["pid"], entry["command"], entry["unit"]) for entry in found] == [
        (22, None, "", ""),
        (8188, 40, "program40", "u40.service"),
        (8189, 7, "program7", "u7.service"),
    ]
    assert found[0]["user"] == "root"


def test_a_socket_of_this_process_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        holders = [entry["pid"] for entry in host_state.listeners(Path("/proc")) if entry["port"] == port]
    assert holders == [os.getpid()]


def test_no_systemd(tmp_path: Path) -> None:
    assert host_state.systemd(tmp_path) == {"version": None, "state": None}


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("Version=252.39-1~deb12u1\nSystemState=running\n", {"version": 252, "state": "running"}),
        ("Version=249.11-0ubuntu3\nSystemState=degraded\n", {"version": 249, "state": "degraded"}),
        ("", {"version": None, "state": None}),
    ],
)
def test_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str, expected: dict[str, Any]) -> None:
    (tmp_path / "systemd/system").mkdir(parents=True)
    (tmp_path / "systemctl").write_text(f"#!/bin/sh\nprintf '%s' '{shown}'\n")
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert host_state.systemd(tmp_path) == expected


@pytest.mark.parametrize(
    ("error_us", "container", "expected"),
    [(1000, False, True), (1000, True, True), (16_000_000, False, False), (16_000_000, True, None)],
)
def test_synchronised(error_us: int, container: bool, expected: bool | None) -> None:
    assert host_state.synchronised(error_us, container) is expected


def test_the_clock_is_read() -> None:
    assert 0 <= host_state.clock_error_us() <= 16_000_000


def test_containers(tmp_path: Path) -> None:
    assert not host_state.in_container(tmp_path, tmp_path)
    assert host_state.in_container(tmp_path, tree(tmp_path, {"1/environ": "A=b\0container=lxc\0"}))
    assert host_state.in_container(tree(tmp_path, {"systemd/container": "docker"}), tmp_path / "none")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server that knows some paths."""
    known = {"HEAD /there": 200, "HEAD /gone": 405, "HEAD /get": 405, "HEAD /empty": 405, "GET /get": 206}
    known["GET /empty"] = 416

    def answer(request: Request) -> None:
        if request.path == "/slow":
            time.sleep(5)
        if f"{request.command} {request.path}" != "GET /gone":
            reply(request, b"", known.get(f"{request.command} {request.path}", 404))

    with hosting(answer) as url:
        yield url.removeprefix("http://")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://{server}/there", {"ok": True, "reason": "", "status": 200}),
        ("http://{server}/get", {"ok": True, "reason": "", "status": 206}),
        ("http://{server}/empty", {"ok": True, "reason": "", "status": 416}),
        ("http://{server}/nowhere", {"ok": False, "reason": "http", "status": 404}),
        ("https://{server}/there", {"ok": False, "reason": "tls", "status": None}),
        ("http://{server}/slow", {"ok": False, "reason": "timeout", "status": None}),
        ("http://{server}/gone", {"ok": False, "reason": "unreachable", "status": None}),
        ("http://127.0.0.1:1/", {"ok": False, "reason": "refused", "status": None}),
        ("http://nowhere.invalid/", {"ok": False, "reason": "dns", "status": None}),
        ("file:///proc/version", {"ok": True, "reason": "", "status": None}),
        ("file:///proc/no%20such", {"ok": False, "reason": "missing", "status": None}),
        ("ssh://git@host/x.git", {"ok": True, "reason": "not asked", "status": None}),
        ("http://[/", {"ok": False, "reason": "unreachable", "status": None}),
    ],
)
def test_urls(server: str, monkeypatch: pytest.MonkeyPatch, url: str, expected: dict[str, Any]) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    seconds = 0.5 if expected["reason"] == "timeout" else 30
    assert host_state.fetch_head(url.format(server=server), seconds) == expected


def test_all_urls_are_asked_at_once_and_in_time() -> None:
    def fetch(url: str, seconds: float) -> dict[str, Any]:
        if url == "stuck":
            time.sleep(60)
        else:
            both.wait(seconds)
        return {"ok": True}

    both = threading.Barrier(2)
    begin = time.monotonic()
    answers = host_state.ask(["a", "b", "stuck"], 2, fetch)
    assert time.monotonic() - begin < 30
    assert answers == {
        "a": {"ok": True},
        "b": {"ok": True},
        "stuck": {"ok": False, "reason": "timeout", "status": None},
    }


def test_pythons(tmp_path: Path) -> None:
    names = ("a/python3.11", "a/python3", "a/python3.11-config", "b/python3.11", "b/python3.12")
    tree(tmp_path, dict.fromkeys(names, ""))
    assert host_state.pythons([tmp_path / "a", tmp_path / "b"]) == {
        "3.11": str(tmp_path / "a/python3.11"),
        "3.12": str(tmp_path / "b/python3.12"),
    }


def test_builds(tmp_path: Path) -> None:
    assert host_state.builds(tmp_path) == []
    tree(tmp_path, {"environments/a/complete": "", "environments/b/venv/complete": "", "environments/c/furnished": ""})
    assert host_state.builds(tmp_path) == [f"{tmp_path}/environments/{mark}" for mark in ("a/complete", "c/furnished")]


def test_releases(tmp_path: Path) -> None:
    assert host_state.releases(tmp_path) == {"installed": [], "current": "", "previous": ""}
    tree(tmp_path, {"releases/b/release.json": "", "releases/a/release.json": "", "releases/half/main.py": ""})
    (tmp_path / "current").symlink_to("releases/b")
    (tmp_path / "previous").symlink_to(tmp_path / "releases/gone")
    assert host_state.releases(tmp_path) == {"installed": ["a", "b"], "current": "b", "previous": "gone"}


def test_all_of_it(tmp_path: Path) -> None:
    ours = {"users": ["root", "nobody-of-that-name"], "groups": ["root"], "folders": [str(tmp_path)]}
    state = host_state.host_state(str(tmp_path), ["/", str(tmp_path)], [], 1, ours)
    assert state["users"]["nobody-of-that-name"] is None
    assert not state["users"]["root"]["ours"]
    assert not state["groups"]["root"]["ours"]
    assert state["folders"][str(tmp_path)]["ours"]
    assert state["filesystems"].keys() == {"/", str(tmp_path)}
    assert state["architecture"] == os.uname().machine
    assert state["urls"] == {}
    assert state["gpu"]["host"]["kernel"] == os.uname().release


def account(name: str, uid: int, gid: int, comment: str) -> pwd.struct_passwd:
    return pwd.struct_passwd((name, "x", uid, gid, comment, f"/home/{name}", "/bin/bash"))


ACCOUNTS = [
    account("wanmetal", 900, 900, "wanmetal services"),
    account("ops", 1000, 1000, "Somebody,,,"),
    account("liar", 0, 901, "wanmetal services"),
    account("wanmetalist", 1001, 902, "wanmetalist,,,"),
    account("mixed", 902, 903, "wanmetal models"),
    account("guest", 1003, 903, ""),
]
GROUPS = {
    "wanmetal": (900, ["ops"]),
    "ops": (1000, []),
    "wanmetal-new": (904, []),
    "empty": (905, []),
    "mixed": (903, []),
}


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> pwd.struct_passwd:
        return {entry.pw_name: entry for entry in ACCOUNTS}[name]

    monkeypatch.setattr(pwd, "getpwnam", found)
    monkeypatch.setattr(pwd, "getpwall", lambda: ACCOUNTS)
    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group((name, "x", *GROUPS[name])))


@pytest.mark.usefixtures("accounts")
def test_accounts_are_ours_by_their_comment() -> None:
    names = [entry.pw_name for entry in ACCOUNTS]
    found = host_state.users([*names, "none"])
    assert found.pop("none") is None
    assert [name for name, user in found.items() if user["ours"]] == ["wanmetal", "mixed"]


@pytest.mark.usefixtures("accounts")
def test_a_group_is_ours_where_no_other_account_has_it_as_its_first() -> None:
    found = host_state.groups([*GROUPS, "none"])
    assert found.pop("none") is None
    assert [name for name, group in found.items() if group["ours"]] == ["wanmetal", "wanmetal-new"]


@pytest.mark.parametrize(
    ("files", "ours", "marked"),
    [
        ({}, True, False),
        ({"models/a.safetensors": "", "lost+found/x": ""}, True, False),
        ({"uv/x": "", "git/x": ""}, True, False),
        ({".ssh/authorized_keys": ""}, False, False),
        ({"models/a": "", "main.py": ""}, False, False),
        ({"anything": "", ".wanmetal": ""}, True, True),
    ],
)
def test_folders_are_ours_that_are_marked_or_hold_nothing_else(
    tmp_path: Path, files: dict[str, str], ours: bool, marked: bool
) -> None:
    folder = tree(tmp_path / "folder", files)
    folder.mkdir(exist_ok=True)
    owned = host_state.folders([str(folder), str(tmp_path / "none")])
    assert owned[str(tmp_path / "none")] is None
    if os.geteuid() == 0 or not marked:
        assert (owned[str(folder)]["ours"], owned[str(folder)]["marked"]) == (ours, marked)


def test_links_in_a_circle_are_no_folder(tmp_path: Path) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    assert not host_state.folders([str(circle)])[str(circle)]["folder"]


def test_a_mark_that_is_a_link_counts_for_nothing(tmp_path: Path) -> None:
    folder = tree(tmp_path / "folder", {"anything": ""})
    (folder / ".wanmetal").symlink_to("/etc/hostname")
    assert not host_state.folders([str(folder)])[str(folder)]["ours"]


def test_folders_that_a_deploy_has_declared_are_ours(tmp_path: Path) -> None:
    folder = tree(tmp_path / "folder", {"anything": ""})
    declared = tmp_path / "wanmetal.conf"
    declared.write_text(f"# made\nd {folder} 0755 root root\nf {tmp_path}/file 0644 root root\n")
    assert host_state.folders([str(folder)], declared)[str(folder)]["marked"]
    (tmp_path / "file").touch()
    assert not host_state.folders([str(tmp_path / "file")], declared)[str(tmp_path / "file")]["folder"]


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("Missing sudo password", "sudo asks for a password"),
        ("sudo: a password is required", "sudo asks for a password"),
        ("Incorrect sudo password", "sudo does not take the password that was given"),
        ("/bin/sh: 1: sudo: not found", "there is no sudo on the host"),
        ("bash: sudo: command not found", "there is no sudo on the host"),
        ("ops is not in the sudoers file.", "this user may not use sudo"),
        ("Timeout (12s) waiting for privilege escalation prompt: ", "sudo asks for something and waits"),
        ("Failed to connect to the host via ssh", None),
        ("Traceback (most recent call last):", None),
    ],
)
def test_why_there_is_no_root(said: str, found: str | None) -> None:
    problem = connections.refused_root(f"first\n{said}\nlast")
    assert (problem and problem.found) == found


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("ssh: connect to host gpu1 port 22: Connection refused", "start the host or its sshd"),
        ("ops@gpu1: Permission denied (publickey).", "ssh-copy-id"),
        ("Host key verification failed.", "ssh-keygen -R"),
        ("ssh: Could not resolve hostname gpu1: Name or service not known", "ansible_host"),
        ("Connection timed out", "open its firewall"),
        ("Connection reset by peer", "ssh USER@ADDRESS"),
    ],
)
def test_why_a_host_is_not_reached(said: str, fix: str) -> None:
    for before in (
        "Failed to connect to the host via ssh:\r\n ",
        'Data could not be sent to remote host "gpu1". Make sure this host can be reached over ssh: ',
    ):
        problem = connections.unreachable(f"{before}{said}\r\n")
        assert fix in problem.fix
        assert said == problem.found


def test_a_key_that_has_changed_is_said() -> None:
    frame = "@" * 59
    said = f"{frame}\r\n@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\r\n{frame}\r\nIT IS POSSIBLE"
    problem = connections.unreachable(
        f"Make sure this host can be reached over ssh: {said}\r\nHost key verification failed."
    )
    assert problem.found == "Host key verification failed: its key is not the one of the last time"
    assert "ssh-keygen -R" in problem.fix


def test_a_host_without_python_is_named_as_such() -> None:
    assert connections.no_python("/bin/sh: 1: /usr/bin/python3: not found")
    assert connections.no_python("The module interpreter '/usr/bin/python3' was not found.")
    assert not connections.no_python("ModuleNotFoundError: No module named 'x'")
