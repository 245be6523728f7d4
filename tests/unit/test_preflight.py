from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.wanmetal.comfyui.plugins.filter.filters import FilterModule
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import preflight

checked = FilterModule().filters()["preflight"]
GB = 10**9
ROOT = {"mount": "/", "device": 1, "free_bytes": 50 * GB, "free_inodes": 1000, "read_only": False}
DATA = {"mount": "/data", "device": 2, "free_bytes": 5 * GB, "free_inodes": None, "read_only": False}
STATE: dict[str, Any] = {
    "os": {"id": "debian", "version": "12", "name": "Debian GNU/Linux 12 (bookworm)"},
    "architecture": "x86_64",
    "systemd": {"version": 252, "state": "running"},
    "memory_mb": 16000,
    "filesystems": {"/opt/wanmetal": ROOT, "/var/cache/wanmetal": ROOT, "/data/models": DATA},
    "listeners": [],
    "synchronised": True,
    "urls": {},
    "uid": 0,
    "units": ["comfyui.service", "comfyui@.service"],
    "strange_units": [],
    "users": {},
    "groups": {},
    "folders": {},
    "gpu": {"gpus": [{"name": "NVIDIA L4", "vram_mb": 23034}], "driver": {"loaded": "570.133.20"}},
}
OURS = {"port": 8188, "unit": "comfyui.service", "option": "comfyui_port"}
HOLDER = {"port": 8188, "address": "127.0.0.1", "user": "me", "pid": 7, "command": "nc", "unit": "session-1.scope"}


def preflight_plan(parts: list[dict[str, Any]]) -> dict[str, Any]:
    plan: dict[str, Any] = checked(parts)["plan"]
    return plan


def problem(plan: Any, state: dict[str, Any], **more: Any) -> str:
    text: str = checked(plan, state, **more)["problem"]
    return text


URL = "https://me:secret@host/x.git"


def test_an_empty_plan_has_every_key() -> None:
    plan = preflight_plan([])
    assert plan == preflight_plan([{}, {}])
    assert problem(plan, STATE) == ""


WRONG_LOCK = {"what": "the lock", "found": "an old one", "needed": "a new one", "fix": "make it"}


def test_parts_are_merged() -> None:
    first = {
        "release": "1-a",
        "version": "1",
        "source": "git",
        "built": False,
        "fetch": [{"what": "x", "url": "https://a/x", "bytes": 5}],
        "disk": [{"path": "/a", "bytes": 5, "why": "x"}, {"path": "/b", "bytes": 0, "why": "nothing"}],
        "ports": [OURS],
        "memory_mb": 100,
        "gpu": "because",
        "driver": {"action": "none"},
        "restarts": ["a.service", "b.service"],
        "urls": ["https://a", "https://b"],
        "problems": [WRONG_LOCK],
        "notes": ["first"],
    }
    second = {"memory_mb": 20, "restarts": ["b.service"], "urls": ["https://never"], "fetch": [], "notes": ["second"]}
    third = {"fetch": [{"what": "y", "url": ""}], "urls": ["https://b"]}
    assert preflight_plan([first, second, third]) == {
        "releases": [{"release": "1-a", "version": "1", "source": "git", "built": False}],
        "fetch": [{"what": "x", "url": "https://a/x", "bytes": 5}, {"what": "y", "url": "", "bytes": 0}],
        "disk": [{"path": "/a", "bytes": 5, "files": 0, "why": "x"}],
        "ports": [OURS],
        "memory_mb": 120,
        "gpu": ["because"],
        "driver": {"action": "none"},
        "restarts": ["a.service", "b.service"],
        "urls": ["https://a", "https://b"],
        "problems": [WRONG_LOCK],
        "notes": ["first", "second"],
    }


def test_numbers_may_come_as_texts() -> None:
    part = {
        "disk": [{"path": "/a", "bytes": "5", "files": "7"}, {"path": "/b", "bytes": "0"}],
        "fetch": [{"what": "x", "url": "", "bytes": "9"}],
        "memory_mb": "100",
        "ports": [{"port": "8188"}],
    }
    plan = preflight_plan([part])
    assert plan["disk"] == [{"path": "/a", "bytes": 5, "files": 7}]
    assert plan["fetch"] == [{"what": "x", "url": "", "bytes": 9}]
    assert (plan["memory_mb"], plan["ports"]) == (100, [{"port": 8188}])


def test_a_part_with_a_strange_key_is_refused() -> None:
    with pytest.raises(AnsibleFilterError, match="unknown keys: dsik"):
        preflight_plan([{"dsik": []}])


def answer(reason: str, status: int | None = None) -> dict[str, Any]:
    return {"urls": {URL: {"ok": False, "reason": reason, "status": status}}}


def disk(size: float, path: str = "/opt/wanmetal", **more: object) -> dict[str, Any]:
    return {"path": path, "bytes": int(size * GB), "why": "the release", **more}


REFUSED = {"action": "refuse", "found": "none", "needed": "one", "fix": "buy one"}
SOURCES = {"fetch": [{"what": "x", "url": URL}], "urls": [URL]}

# What is not said of the state is as in STATE. Problems are given as (kind, what, found).
CASES: list[tuple[dict[str, Any], dict[str, Any], list[tuple[str, str, str]]]] = [
    ({}, {"os": {"id": "ubuntu", "version": "22.04", "name": "Ubuntu"}}, []),
    ({}, {"os": {"id": "ubuntu", "version": "24.04", "name": "Ubuntu"}}, []),
    ({}, {"os": {"id": "debian", "version": "13", "name": "Debian GNU/Linux 13 (trixie)"}}, []),
    ({}, {"os": {"id": "ubuntu", "version": "26.04", "name": "Ubuntu 26.04 LTS"}}, []),
    (
        {},
        {"os": {"id": "debian", "version": "11", "name": "Debian 11"}},
        [("os", "operating system", "Debian 11")],
    ),
    (
        {},
        {"os": {"id": "", "version": "", "name": ""}, "architecture": "aarch64"},
        [
            ("os", "operating system", "one that does not say what it is"),
            ("arch", "architecture", "aarch64"),
        ],
    ),
    ({}, {"systemd": {"version": None, "state": None}}, [("systemd", "init", "another init, or none")]),
    ({}, {"systemd": {"version": 247, "state": "running"}}, [("systemd", "init", "systemd 247")]),
    (
        {},
        {"systemd": {"version": 252, "state": "maintenance"}},
        [("systemd", "init", "systemd in the state maintenance")],
    ),
    ({}, {"systemd": {"version": 252, "state": "degraded"}}, []),
    ({}, {"systemd": {"version": 252, "state": "starting"}}, []),
    ({"disk": [disk(50)]}, {}, []),
    ({"disk": [disk(51)]}, {}, [("disk", "filesystem /", "50.0 GB free")]),
    (
        {"disk": [disk(30), disk(21, "/var/cache/wanmetal"), disk(1, "/data/models")]},
        {},
        [("disk", "filesystem /", "50.0 GB free")],
    ),
    ({"disk": [disk(30), disk(19, "/var/cache/wanmetal"), disk(5, "/data/models")]}, {}, []),
    (
        {"disk": [disk(51), disk(6, "/data/models")]},
        {},
        [("disk", "filesystem /", "50.0 GB free"), ("disk", "filesystem /data", "5.0 GB free")],
    ),
    ({"disk": [disk(49), disk(9, "/var/cache/wanmetal", linked_to="/opt/wanmetal", linked_bytes=GB)]}, {}, []),
    (
        {"disk": [disk(9, "/data/models", linked_to="/opt/wanmetal", linked_bytes=GB)]},
        {},
        [("disk", "filesystem /data", "5.0 GB free")],
    ),
    ({"disk": [disk(1, files=1001)]}, {}, [("disk", "filesystem /", "1000 free inodes")]),
    ({"disk": [disk(1, "/data/models", files=10**9)]}, {}, []),
    (
        {"disk": [disk(99)]},
        {"filesystems": {"/opt/wanmetal": {**ROOT, "read_only": True}}},
        [("disk", "filesystem /", "mounted read-only")],
    ),
    ({}, {"filesystems": {"/opt/wanmetal": {**ROOT, "read_only": True}}}, []),
    ({}, {"uid": 1000}, [("root", "rights", "commands run as the user with the number 1000")]),
    ({"problems": [WRONG_LOCK]}, {}, [("settings", "the lock", "an old one")]),
    ({"memory_mb": 16000}, {}, []),
    ({"memory_mb": 16001}, {}, [("memory", "memory", "16.8 GB")]),
    ({"gpu": "x", "driver": {"action": "install", "source": "x", "modules": "open", "why": "y"}}, {}, []),
    ({"driver": REFUSED}, {}, []),
    ({"gpu": "x", "driver": REFUSED}, {}, [("gpu", "NVIDIA GPU", "none")]),
    ({"ports": [OURS]}, {"listeners": [{**HOLDER, "port": 8189}]}, []),
    ({"ports": [OURS]}, {"listeners": [{**HOLDER, "unit": "comfyui.service"}]}, []),
    ({"ports": [OURS]}, {"listeners": [{**HOLDER, "unit": "comfyui@0.service"}]}, []),
    (
        {"ports": [{**OURS, "unit": "comfyui@1.service"}, {**OURS, "unit": "other.service"}]},
        {},
        [("ports", "TCP port 8188", "wanted by comfyui@1.service and by other.service")],
    ),
    (
        {"ports": [{**OURS, "port": 65535}, {**OURS, "port": 65536}]},
        {},
        [("ports", "TCP port 65536", f"wanted by {OURS['unit']}")],
    ),
    (
        {"ports": [OURS]},
        {"listeners": [HOLDER, {**HOLDER, "address": "::1"}]},
        [("ports", "TCP port 8188", "held by nc (process 7 of session-1.scope, user me)")],
    ),
    (
        {"ports": [OURS]},
        {"listeners": [{**HOLDER, "pid": None, "command": "", "unit": ""}]},
        [("ports", "TCP port 8188", "held by a program of user me that is not visible")],
    ),
    ({}, {"synchronised": None}, []),
    ({}, {"synchronised": False}, [("time", "clock", "not synchronised")]),
    (SOURCES, {"urls": {URL: {"ok": True, "reason": "", "status": 200}}}, []),
    (SOURCES, answer("dns"), [("sources", "https://***@host/x.git", "its host name is unknown")]),
    (SOURCES, answer("http", 503), [("sources", "https://***@host/x.git", "HTTP status 503")]),
    ({"urls": [URL]}, answer("dns"), []),
    (
        {"memory_mb": 99999, "disk": [disk(51)], "ports": [OURS]},
        {"synchronised": False, "listeners": [HOLDER]},
        [
            ("disk", "filesystem /", "50.0 GB free"),
            ("memory", "memory", "16.8 GB"),
            ("ports", "TCP port 8188", "held by nc (process 7 of session-1.scope, user me)"),
            ("time", "clock", "not synchronised"),
        ],
    ),
]


@pytest.mark.parametrize(("part", "state", "expected"), CASES)
def test_problems(part: dict[str, Any], state: dict[str, Any], expected: list[tuple[str, str, str]]) -> None:
    plan, whole = preflight.merge([part]), {**STATE, **state}
    found = preflight.problems(plan, whole, places={})
    assert [(problem.kind, problem.what, problem.found) for problem in found] == expected
    text = problem(plan, whole)
    assert all(problem.what in text and problem.fix in text for problem in found)
    assert "secret" not in text
    assert problem(plan, whole, skip=[kind for kind, _, _ in expected]) == ""


THEIRS = {"uid": 1000, "home": "/home/gpu", "shell": "/bin/bash", "ours": False}
FULL = {"folder": True, "ours": False, "marked": False, "entries": [".ssh", "work"]}
PLACES = {"users": {"demo_user": "gpu"}, "groups": {"demo_group": "gpu"}, "folders": {"demo_dir": "/data/gpu"}}


@pytest.mark.parametrize(
    ("user", "group", "folder", "wrong"),
    [
        (None, None, None, []),
        ({**THEIRS, "ours": True}, {"gid": 9, "ours": True}, {**FULL, "ours": True}, []),
        (THEIRS, {"gid": 9, "ours": False}, FULL, ["demo_user", "demo_group", "demo_dir"]),
        (None, None, {**FULL, "folder": False, "entries": []}, ["demo_dir"]),
    ],
)
def test_nothing_of_others_is_taken_over(user: object, group: object, folder: object, wrong: list[str]) -> None:
    state = {**STATE, "users": {"gpu": user}, "groups": {"gpu": group}, "folders": {"/data/gpu": folder}}
    found = preflight.problems(preflight.merge([]), state, places=PLACES, skip=["ours", "settings"])
    assert [problem.what for problem in preflight.problems(preflight.merge([]), state, places=PLACES)] == wrong
    assert found == []


def test_an_untested_system_may_be_allowed() -> None:
    state = {**STATE, "os": {"id": "debian", "version": "13", "name": "Debian 13"}, "architecture": "aarch64"}
    assert problem(preflight.merge([]), state, allow_untested_os=True) == ""


def test_sources_that_are_skipped_need_no_answers() -> None:
    assert preflight.problems(preflight.merge([SOURCES]), STATE, places={}, skip=["sources"]) == []


def test_the_summary_of_a_first_deploy() -> None:
    part = {
        "release": "0.3.75-abc",
        "version": "ComfyUI 0.3.75",
        "source": "git",
        "built": False,
        "fetch": [
            {"what": "ComfyUI 0.3.75", "url": URL},
            {"what": "190 packages", "url": "", "bytes": 4 * GB},
        ],
        "disk": [disk(7), disk(4, "/var/cache/wanmetal")],
        "restarts": ["comfyui.service", "comfyui@1.service", "jupyterlab.service"],
    }
    state = {**STATE, "synchronised": None, "systemd": {"version": 252, "state": "degraded"}}
    assert preflight.summary(preflight.merge([part]), state, skip=["time"]) == [
        "host     Debian GNU/Linux 12 (bookworm), 16.8 GB of memory, NVIDIA L4 (24.2 GB), driver 570.133.20",
        "release  0.3.75-abc (ComfyUI 0.3.75 from git) will be built",
        "fetch    ComfyUI 0.3.75 from https://***@host/x.git",
        "fetch    190 packages, 4.0 GB",
        "disk     11.0 GB needed on /, 50.0 GB free",
        "start    jupyterlab.service",
        "restart  comfyui.service",
        "restart  comfyui@1.service",
        "note     some units of the host have failed: systemctl --failed",
        "note     whether the clock is right cannot be seen from inside this container",
        "note     not looked at: time",
    ]


def test_the_summary_of_an_unchanged_deploy() -> None:
    state = {
        **STATE,
        "os": {"id": "x", "version": "1", "name": "X 1"},
        "systemd": {"version": 252, "state": "starting"},
        "gpu": {"gpus": [], "driver": {"loaded": None}},
    }
    plan = preflight.merge([{"release": "0.3.75-abc", "version": "ComfyUI 0.3.75", "source": "git", "built": True}])
    assert preflight.summary(plan, state) == [
        "host     X 1, 16.8 GB of memory, no NVIDIA GPU",
        "release  0.3.75-abc (ComfyUI 0.3.75 from git) is on the host",
        "plan     nothing to fetch, to build or to start",
        "note     X 1 is not tested",
        "note     the host is still starting",
    ]


def test_services_of_others_are_not_replaced() -> None:
    ports = [OURS, {"port": 8189, "unit": "comfyui@1.service", "option": "comfyui_port"}]
    strange = ["comfyui@.service", "comfyui.service", "other.service"]
    found = preflight.problems(
        preflight.merge([{"ports": ports}]), {**STATE, "strange_units": strange}, places={}, skip=["settings"]
    )
    assert [(one.kind, one.what) for one in found] == [("ours", "comfyui.service"), ("ours", "comfyui@.service")]
    assert "systemctl disable --now comfyui.service; rm /etc/systemd/system/comfyui.service" in found[0].fix
