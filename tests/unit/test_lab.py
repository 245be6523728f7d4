from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.wanmetal.comfyui.tests.lab import lab, summary

STATE = Path("/home/me/my lab")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("http://proxy.example:3128", False),
        ("proxy.example:3128", False),
        ("http://user:word@10.0.0.1:3128/", False),
        ("http://localhost:3128", True),
        ("127.0.0.1:3128", True),
        ("http://[::1]:3128/", True),
        ("https://index.example/simple file:///srv/index", True),
        ("https://localhost.example/simple", False),
        ("", False),
        ("http://[broken", False),
    ],
)
def test_an_address_that_a_host_cannot_reach(value: str, expected: bool) -> None:
    assert lab.names_this_machine(value) is expected


CERTIFICATES = {
    "REQUESTS_CA_BUNDLE": "/etc/ssl/certs/ca-certificates.crt",
    "SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt",
}


@pytest.mark.parametrize(
    ("environ", "pip_index", "own_certificates", "expected"),
    [
        ({}, "", False, {}),
        ({"HOME": "/root", "PIP_FIND_LINKS": "/opt/wheels", "PIP_INDEX_URL": " "}, "", False, {}),
        ({}, "", True, CERTIFICATES),
        (
            {"https_proxy": "http://p:1", "HTTP_PROXY": "http://p:1", "NO_PROXY": "localhost,127.0.0.1"},
            "",
            False,
            {"https_proxy": "http://p:1", "HTTP_PROXY": "http://p:1", "NO_PROXY": "localhost,127.0.0.1"},
        ),
        ({"http_proxy": "http://localhost:1"}, "", False, {}),
        (
            {"PIP_INDEX_URL": "https://i/simple"},
            "",
            False,
            {"PIP_INDEX_URL": "https://i/simple", "UV_DEFAULT_INDEX": "https://i/simple"},
        ),
        (
            {},
            "https://conf/simple",
            False,
            {"PIP_INDEX_URL": "https://conf/simple", "UV_DEFAULT_INDEX": "https://conf/simple"},
        ),
        (
            {"PIP_INDEX_URL": "https://i/simple", "UV_INDEX_URL": "https://u/simple"},
            "https://conf/simple",
            False,
            {"PIP_INDEX_URL": "https://i/simple", "UV_INDEX_URL": "https://u/simple"},
        ),
    ],
)
def test_what_a_host_takes_over(
    environ: dict[str, str], pip_index: str, own_certificates: bool, expected: dict[str, str]
) -> None:
    assert lab.host_environment(environ, pip_index, own_certificates=own_certificates) == expected


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("", []),
        ("http://vendor/ bookworm main", []),
        ("http://m/debian/ bookworm-updates\nodd line of words\n", []),
        (
            "http://m/debian/ bookworm main\nhttp://m/debian/ bookworm main\nhttp://m/debian/ bookworm-updates main\n"
            "http://m/debian/ bookworm contrib\nhttp://s/ bookworm-security main\nhttp://vendor/ bookworm main\n"
            "http://other/ trixie main\n",
            [
                ("http://m/debian/", "bookworm", "contrib"),
                ("http://m/debian/", "bookworm", "main"),
                ("http://m/debian/", "bookworm-updates", "main"),
                ("http://s/", "bookworm-security", "main"),
            ],
        ),
    ],
)
def test_the_archive_among_the_sources(targets: str, expected: list[tuple[str, str, str]]) -> None:
    assert lab.distribution_sources(targets, "bookworm") == expected


def test_how_packages_are_fetched() -> None:
    dump = (
        'APT::Architecture "amd64";\nAcquire::Check-Date "false";\nAcquire::http::Proxy "http://cache:3142";\n'
        'Acquire::https::Proxy "http://localhost:3142";\nAcquire::http::Proxy::internal "DIRECT";\n'
        'Acquire::https::mirror::Proxy "http://p:1/";\nAcquire::http::Timeout "9";\n'
    )
    assert lab.package_settings(dump).splitlines() == [
        'Acquire::Check-Date "false";',
        'Acquire::http::Proxy "http://cache:3142";',
        'Acquire::http::Proxy::internal "DIRECT";',
        'Acquire::https::mirror::Proxy "http://p:1/";',
    ]


@pytest.mark.parametrize(
    "other",
    [{"a": b"1"}, {"a": b"2", "b": b""}, {"a": b"1", "b": b"", "c": b""}, {"a": b"1b"}],
)
def test_every_change_gives_another_tag(other: dict[str, bytes]) -> None:
    assert lab.digest(other) != lab.digest({"a": b"1", "b": b""})


def test_the_order_of_files_does_not_matter() -> None:
    assert lab.digest({"a": b"1", "b": b"2"}) == lab.digest({"b": b"2", "a": b"1"})


def test_two_labs_do_not_share_a_name() -> None:
    assert lab.container_name(STATE, "lab1") != lab.container_name(Path("/elsewhere"), "lab1")


def test_inventory() -> None:
    text = lab.inventory(STATE, {"lab2": 4002, "lab1": 4001}, {"https_proxy": "http://p:1", "NO_PROXY": "a: b"})
    group = yaml.safe_load(text)["gpu_hosts"]
    assert group["hosts"] == {"lab1": {"ansible_port": 4001}, "lab2": {"ansible_port": 4002}}
    assert group["vars"] == {
        "ansible_host": "127.0.0.1",
        "ansible_user": "ops",
        "ansible_ssh_private_key_file": "/home/me/my lab/key",
        "ansible_ssh_common_args": "-o IdentitiesOnly=yes -o StrictHostKeyChecking=yes "
        "-o 'UserKnownHostsFile=/home/me/my lab/known_hosts'",
        "ansible_python_interpreter": "/usr/bin/python3",
        "wanmetal_environment": {"https_proxy": "http://p:1", "NO_PROXY": "a: b"},
    }


WHOLE = lab.Machine(client=True, daemon=True, root=True, apt=True)


@pytest.mark.parametrize(
    ("machine", "step"),
    [
        (lab.Machine(client=True, answers=True), "nothing"),
        (lab.Machine(client=True, answers=True, docker_host="tcp://d:1"), "nothing"),
        (lab.Machine(root=True, apt=True), "install"),
        (lab.Machine(client=True, root=True, apt=True, systemd=True), "install"),
        (lab.Machine(daemon=True, root=True, apt=True), "install"),
        (WHOLE, "spawn"),
        (lab.Machine(client=True, daemon=True, root=True), "spawn"),
        (lab.Machine(client=True, daemon=True, root=True, systemd=True), "systemctl"),
        (lab.Machine(client=True, daemon=True, root=True, systemd=True, starting=True), "wait"),
        (lab.Machine(client=True, daemon=True, root=True, starting=True), "wait"),
    ],
)
def test_the_way_to_an_engine(machine: lab.Machine, step: lab.Step) -> None:
    assert lab.engine_step(machine) == step


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (lab.Machine(client=True, docker_host="tcp://d:1", complaint="refused"), ["DOCKER_HOST=tcp://d:1", "refused"]),
        (lab.Machine(client=True, daemon=True, complaint="dial: Permission denied"), ["group `docker`"]),
        (lab.Machine(), ["Install Docker Engine"]),
        (lab.Machine(root=True), ["Install Docker Engine"]),
        (lab.Machine(apt=True), ["needs root", "apt-get install docker.io"]),
        (lab.Machine(client=True, daemon=True, complaint="no socket"), ["no socket", "systemctl start docker"]),
    ],
)
def test_no_way_to_an_engine(machine: lab.Machine, words: list[str]) -> None:
    with pytest.raises(lab.LabError) as refusal:
        lab.engine_step(machine)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("pid_file", "running", "expected"),
    [
        ("", "", True),
        ("nonsense", "dockerd", True),
        ("12\n", "", True),
        ("12", "bash", True),
        ("12\n", "dockerd", False),
    ],
)
def test_what_a_killed_daemon_leaves(pid_file: str, running: str, expected: bool) -> None:
    assert lab.left_behind(pid_file, "dockerd", lambda _: running) is expected


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("", 0),
        ("2026 p=1 INFO| lab1   : ok=2    changed=0    unreachable=0\n", 0),
        ("INFO| lab1 : ok=2 changed=3 unreachable=0\nINFO| lab2 : ok=12   changed=4  failed=0\n", 7),
        ("INFO| changed: [lab1]\n", 0),
    ],
)
def test_how_much_changed(log: str, expected: int) -> None:
    assert summary.changes(log) == expected


REPORT: dict[str, Any] = {
    "versions": {"comfyui": "0.3.75", "torch": "2.10.0"},
    "release": {
        "id": "0.3.75-05f5417a56",
        "commit": "f8b981ae9a5676",
        "source": "package",
        "variant": "base",
        "lane": "cu128",
    },
    "canary": {"details": {"width": 128, "height": 64, "frames": 9}, "seconds": 0.956},
    "sockets": [
        {"address": "127.0.0.1", "port": 9999, "unit": "other.service"},
        {"address": "127.0.0.1", "port": 8190, "unit": "comfyui.service"},
    ],
}


def test_summary() -> None:
    text = summary.summary("lab1", REPORT, 0, {"image": 5, "deploy": 61}, STATE, Path("/out/canary-lab1.mp4"))
    for line in (
        "Nothing changed: all of it was there already.",
        "  comfyui  0.3.75",
        "  torch    2.10.0",
        "  release  0.3.75-05f5417a56 (base, cu128)",
        "  source   package, commit f8b981ae9a",
        "  image   5 s",
        "  deploy  1 min 1 s",
        "  in all  1 min 6 s",
        "  video    /out/canary-lab1.mp4",
        "           128x64, 9 frames",
        "  tunnel   ssh -F '/home/me/my lab/ssh_config' -N -L 8188:127.0.0.1:8190 lab1",
    ):
        assert line in text.splitlines()


def test_summary_without_a_video() -> None:
    assert "video" not in summary.summary("lab1", {**REPORT, "canary": {}}, 0, {}, STATE, Path("/v"))


def test_summary_with_a_workflow() -> None:
    made = {"name": "Native-TextToVideo", "seconds": 9.5, "details": {"width": 256, "height": 256, "frames": 9}}
    report = {**REPORT, "canary": {**REPORT["canary"], "workflow": made}}
    lines = "  video    /v.mp4\n           256x256, 9 frames, by Native-TextToVideo\n"
    assert lines in summary.summary("lab1", report, 0, {}, STATE, Path("/v.mp4"))


def test_summary_of_changes() -> None:
    assert "\nChanges: 7.\n" in summary.summary("lab1", REPORT, 7, {}, STATE, Path("/v"))


def test_an_empty_file_is_written_too(tmp_path: Path) -> None:
    lab.write(tmp_path / "known_hosts", "", 0o600)
    assert (tmp_path / "known_hosts").stat().st_mode & 0o777 == 0o600


def test_what_takes_long_in_the_lab_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(lab, "say", said.put)
    with lab.progress("building the base", every=0.01):
        assert said.get(timeout=30) == "... building the base: 0 s so far"
