"""What a deployed worker must be like, seen from inside."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

UNIT = "comfyui.service"


def properties(host: Any, *names: str) -> dict[str, str]:
    text = host.check_output(f"systemctl show {UNIT} --property={','.join(names)}")
    return dict(line.split("=", 1) for line in text.splitlines())


def answer(host: Any, path: str) -> Any:
    return json.loads(
        host.check_output(
            f"curl --silent --fail --retry 120 --retry-delay 1 --retry-connrefused http://127.0.0.1:8188{path}"
        )
    )


def test_status_is_good(host: Any) -> None:
    assert host.run("systemctl status comfyui").rc == 0
    assert host.service(UNIT).is_enabled


def test_second_run_left_the_process_alone(host: Any) -> None:
    remembered = host.file("/run/main-process").content_string
    assert f"MainPID={properties(host, 'MainPID')['MainPID']}\n" in remembered


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("User", "wanmetal"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("PrivateTmp", "yes"),
        ("DevicePolicy", "closed"),
        ("RestrictNamespaces", "yes"),
        ("RestrictSUIDSGID", "yes"),
        ("LockPersonality", "yes"),
        ("ProtectKernelModules", "yes"),
        ("IPAddressDeny", "::/0 0.0.0.0/0"),
        ("IPAddressAllow", "127.0.0.0/8 ::1/128"),
        ("Restart", "on-failure"),
        ("UMask", "0027"),
        ("NeedDaemonReload", "no"),
    ],
)
def test_live_property(host: Any, name: str, value: str) -> None:
    found = properties(host, name)[name]
    assert sorted(found.split()) == sorted(value.split())


def test_exposure_is_low(host: Any) -> None:
    text = host.check_output(f"systemd-analyze security --no-pager {UNIT}")
    exposure = float(re.findall(r"exposure level for \S+: ([\d.]+)", text)[0])
    assert exposure <= 3.0


def test_gpu_devices_stay_reachable(host: Any) -> None:
    assert "char-nvidia*" in host.check_output(f"systemctl cat {UNIT}")


def test_unit_passes_systemd_analyze(host: Any) -> None:
    assert host.run(f"systemd-analyze verify --man=no /etc/systemd/system/{UNIT}").rc == 0


def test_listens_on_loopback_only(host: Any) -> None:
    lines = host.check_output("ss -Hltnp").splitlines()
    addresses = [line.split()[3] for line in lines if '"sshd"' not in line]
    assert sorted(addresses) == ["127.0.0.1:8188", "127.0.0.1:8888"]


def test_tcmalloc_is_loaded(host: Any) -> None:
    pid = properties(host, "MainPID")["MainPID"]
    assert "libtcmalloc_minimal" in host.file(f"/proc/{pid}/maps").content_string


def test_service_runs_the_verified_generation(host: Any) -> None:
    pid = properties(host, "MainPID")["MainPID"]
    environment = host.file(f"/proc/{pid}/environ").content_string
    root = re.findall(r"ExecStart=(\S+)/current/", host.check_output(f"systemctl cat {UNIT}"))[0]
    verified = json.loads(host.file(f"{root}/verified.json").content_string)
    assert f"WANMETAL_GENERATION={verified['generation']}" in environment
    assert host.file(f"{root}/current").linked_to == f"{root}/releases/{verified['release']}"


def test_release_belongs_to_root(host: Any) -> None:
    working = properties(host, "WorkingDirectory")["WorkingDirectory"]
    assert host.run(f"runuser --user wanmetal -- touch {working}/main.py").rc != 0
    assert host.run(f"find -L {working} -user wanmetal -print -quit").stdout == ""


def test_user_has_no_shell(host: Any) -> None:
    assert host.user("wanmetal").shell == "/usr/sbin/nologin"


def test_version_is_the_pinned_one(host: Any) -> None:
    system = answer(host, "/system_stats")["system"]
    assert system["comfyui_version"] == "0.3.75"
    assert system["pytorch_version"].startswith("2.10.0")


def test_comes_back_after_a_kill(host: Any) -> None:
    before = properties(host, "MainPID")["MainPID"]
    host.check_output(f"kill -9 {before}")
    for _ in range(1200):
        now = properties(host, "MainPID", "ActiveState")
        if now["ActiveState"] == "active" and now["MainPID"] != before:
            break
        time.sleep(0.25)
    assert answer(host, "/system_stats")["system"]["comfyui_version"] == "0.3.75"
