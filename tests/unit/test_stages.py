from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.callback.stages import CallbackModule
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.report import closing_lines
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.stages import (
    Stages,
    closing,
    first_line,
    inventory_options,
)


def test_adds_up_stages_and_names_the_slowest_tasks() -> None:
    times: Iterator[float] = iter([0.0, 1.5, 1.5, 11.5, 11.5, 12.0])
    stages = Stages(lambda: next(times))
    stages.begin("preflight", "look")
    stages.begin("comfyui", "build")
    stages.changed()
    stages.begin("preflight", "look again")
    assert stages.report(slowest_from=2.0) == [
        "",
        "Stages",
        "  preflight       2.0 s  unchanged",
        "  comfyui        10.0 s  1 changed",
        "  total          12.0 s  1 changed",
        "Slowest tasks",
        "      10.0 s  comfyui: build",
    ]


def test_long_names_of_stages_leave_room_for_what_stands_beside_them() -> None:
    times: Iterator[float] = iter([0.0, 20.0])
    stages = Stages(lambda: next(times))
    stages.begin("Check the settings and the hosts, and show the plan in the end", "look at " * 12)
    lines = stages.report(slowest_from=2.0, columns=80)
    assert max(map(len, lines)) <= 80
    assert lines[2].startswith("  Check the settings and the hosts, and show the…      20.0 s  unchanged")


def test_hosts_that_failed_alike_are_named_together() -> None:
    hosts = {"a": counts(failures=1), "b": counts(failures=1), "c": counts(failures=1)}
    lines = closing(hosts, {"a": "play: look: no", "b": "play: ask: never", "c": "play: look: no"}, {})
    assert lines[:4] == ["", "Failed", "  a, c: play: look: no", "  b: play: ask: never"]


def test_says_so_when_nothing_changed() -> None:
    stages = Stages(lambda: 0.0)
    stages.begin("comfyui", "look")
    assert stages.report(slowest_from=2.0)[-1].endswith("nothing changed")


def test_is_silent_without_tasks() -> None:
    assert Stages(lambda: 0.0).report(slowest_from=2.0) == []


def test_a_task_that_takes_long_is_said() -> None:
    now = 0.0
    stages = Stages(lambda: now)
    assert stages.running(20, []) == ""
    stages.begin("comfyui", "Build")
    assert stages.running(20, ["a"]) == ""
    now = 21.0
    assert stages.running(20, ["a"]) == "... Build: 21 s so far on a"
    assert stages.running(20, list("abcde")).endswith("on a, b, c and 2 more")


def test_while_a_person_is_asked_nothing_is_said_to_run() -> None:
    now = 0.0
    callback = CallbackModule(clock=lambda: now)
    callback.stages.begin("play", "look")
    now = 2.0
    callback.v2_playbook_on_vars_prompt("uninstall_confirm", private=False)
    now = 60.0
    assert callback.stages.running(20, []) == ""
    assert callback.stages.report(slowest_from=10)[2] == "  play        2.0 s  unchanged"


@pytest.mark.parametrize(
    ("task", "noted"),
    [
        ({"action": "wanmetal.comfyui.release_switch"}, ["changed"]),
        ({"action": "wanmetal.comfyui.release_switch", "check_mode": True}, []),
        ({"action": "ansible.builtin.command", "changed_when": [False]}, []),
        ({"action": "ansible.builtin.assert"}, []),
        ({"action": "wanmetal.comfyui.host_state"}, []),
    ],
)
def test_what_fails_halfway_may_have_changed_something(
    monkeypatch: pytest.MonkeyPatch, task: dict[str, Any], noted: list[str]
) -> None:
    callback = CallbackModule()
    notes: list[str] = []
    monkeypatch.setattr(callback, "_note", notes.append)
    host = SimpleNamespace(get_name=lambda: "a")
    about = SimpleNamespace(**{"check_mode": False, "changed_when": [], **task})
    callback.v2_runner_on_failed(SimpleNamespace(_host=host, _task=about, _result={"msg": "no"}))
    assert notes == noted


def counts(**others: int) -> dict[str, int]:
    return {"ok": 1, "changed": 0, "failures": 0, "unreachable": 0, **others}


def test_the_end_says_what_failed_and_what_runs() -> None:
    hosts = {"a": counts(changed=2), "b": counts(failures=1), "c": counts(unreachable=1), "d": counts(failures=1)}
    failed = {"a": "rescued", "b": "comfyui: Switch: no", "c": "play: Look: no route"}
    lines = closing(hosts, failed, {"a": ["a: ready", "  release  x"], "b": ["b: ready"]})
    assert lines[:5] == ["", "Failed", "  b: comfyui: Switch: no", "  c: play: Look: no route", "  d: see above"]
    assert lines[5:7] == ["", "What the services there wrote: ./deploy logs --limit b,d"]
    assert lines[7] == "The likely cause and its fix: ./deploy doctor --limit b,d"
    assert lines[8:11] == ["", "a: ready, 2 changed", "  release  x"]
    assert "./deploy verify" in lines[-1]


def test_what_stopped_before_any_change_has_no_logs_to_read() -> None:
    lines = closing({"a": counts(failures=1)}, {"a": "preflight: Check: 1 setting must be fixed first"}, {})
    assert lines == ["", "Failed", "  a: preflight: Check: 1 setting must be fixed first"]
    lines = closing(
        {"a": counts(failures=1)}, {"a": "Check the settings and the hosts, and show the plan: Stop: no"}, {}
    )
    assert lines[1:] == ["Failed", "  a: Check the settings and the hosts, and show the plan: Stop: no"]
    lines = closing({"a": counts(failures=1)}, {"a": "comfyui: Go back: release: x; needed: y; fix: z"}, {})
    assert lines == ["", "Failed", "  a: comfyui: Go back: release: x; needed: y; fix: z"]
    lines = closing({"a": counts(ok=0, failures=1)}, {"a": "Fetch: Ask for the versions: none was named"}, {})
    assert lines == ["", "Failed", "  a: Fetch: Ask for the versions: none was named"]


@pytest.mark.parametrize(
    ("inventories", "there", "options"),
    [
        (["{root}/my_hosts"], ["my_hosts", "gpu_hosts"], ""),
        (["{root}/gpu_hosts"], ["gpu_hosts"], ""),
        (["{root}/gpu_hosts"], ["my_hosts", "gpu_hosts"], " -i gpu_hosts"),
        (["{root}/inventories/lab", "/srv/a b.yml"], ["gpu_hosts"], " -i inventories/lab -i '/srv/a b.yml'"),
        ([], ["my_hosts"], ""),
    ],
)
def test_the_commands_of_the_end_name_the_inventory(
    inventories: list[str], there: list[str], options: str, tmp_path: Path
) -> None:
    for name in there:
        (tmp_path / name).mkdir()
    given = [one.format(root=tmp_path) for one in inventories]
    assert inventory_options(given, tmp_path, tmp_path) == options
    lines = closing({"a": counts()}, {}, {"a": ["a: ready"]}, options=options)
    assert lines[-1].endswith(f"./deploy verify{options}")


def test_the_end_of_a_queue_has_its_commands_and_no_worker_s() -> None:
    said = {"a": ["a: the queue runs", "  address  https://a", "  state    ./deploy queue status"]}
    assert closing({"a": counts()}, {}, said, options=" -i b")[1:] == [
        "a: the queue runs, nothing changed",
        *said["a"][1:-1],
        "  state    ./deploy queue status -i b",
    ]


def test_of_many_hosts_the_end_has_a_line_each() -> None:
    names = [f"gpu{number}" for number in range(10)]
    lines = closing({n: counts() for n in names}, {}, {n: [f"{n}: ready", "  much"] for n in names})
    assert lines == ["", *(f"{n}: ready, nothing changed" for n in names), lines[-1]]
    assert "./deploy status --limit HOST" in lines[-1]


def test_a_run_without_words_ends_without() -> None:
    assert closing({"localhost": counts(changed=1)}, {}, {}) == []
    empty = closing_lines({"host": "a", "problems": [], "current": ""})
    assert closing({"a": counts()}, {}, {"a": empty}) == ["", "a has no ComfyUI yet, nothing changed"]


@pytest.mark.parametrize(
    ("result", "line"),
    [
        ({"msg": "\n\n first\nsecond"}, "first"),
        ({"msg": "", "stderr": "bad"}, "bad"),
        ({}, "it gives no reason"),
        ({"msg": "Task failed: Module failed: non-zero return code", "rc": 3}, "a program ended with status 3"),
        (
            {
                "msg": "non-zero return code",
                "rc": 1,
                "cmd": ["/usr/bin/apt-get", "update"],
                "stderr": "W: old\nE: gone",
            },
            "apt-get ended with status 1: E: gone",
        ),
        (
            {"msg": "non-zero return code", "rc": 2, "cmd": "nft -f 'x", "stderr": "", "stdout": "one\ntwo"},
            "nft ended with status 2: one",
        ),
        (
            {
                "msg": "MODULE FAILURE: No start of json char found\nSee stdout/stderr for the exact error",
                "module_stderr": "Traceback (most recent call last):\n  File x\nImportError: no ssl",
                "rc": 1,
            },
            "a program ended with status 1: ImportError: no ssl",
        ),
        (
            {
                "msg": "One or more items failed",
                "results": [{"item": "a"}, {"item": "b", "failed": True, "msg": "Task failed: Module failed: bad"}],
            },
            "b: bad",
        ),
        (
            {"msg": "non-zero return code", "rc": 2, "stderr": "x\n\nhost\n  found   a\n  needed  b\n  fix     c"},
            "host: a; needed: b; fix: c",
        ),
        ({"censored": "hidden", "changed": False}, "what it wrote can hold secrets, so it is not shown"),
        ({"msg": "x" * 1000}, "x" * 299 + "…"),
        ({"msg": ["a"]}, "['a']"),
        ({"msg": "non-zero return code", "stderr": "no such host"}, "no such host"),
        ({"msg": "non-zero return code", "stderr": ""}, "non-zero return code"),
        (
            {
                "msg": "Task failed: Finalization of task args for 'a.b.c' failed: Error while resolving value for "
                "'__x': The filter plugin 'a.b.d' failed: a.b.d: id must be a number"
            },
            "id must be a number",
        ),
        (
            {
                "msg": "Task failed: Failed to connect to the host via ssh: ssh: connect to host a port 1: refused",
                "unreachable": True,
            },
            "connection: ssh: connect to host a port 1: refused; needed: an answer over SSH; "
            "fix: start the host or its sshd, or correct ansible_port",
        ),
        (
            {"msg": "Task failed: Missing sudo password"},
            "sudo: sudo asks for a password; needed: root on the host: by sudo, or by logging in as root; "
            "fix: add --ask-become-pass (-K), or let this user use sudo without one (NOPASSWD)",
        ),
        (
            {
                "msg": "2 things\n\ndisk\n  found   1 GB\n  needed  2 GB\n  fix     free 1 GB\n\n"
                "os\n  found   X\n  needed  Y\n  fix     Z"
            },
            "disk: 1 GB; needed: 2 GB; fix: free 1 GB (and 1 more above)",
        ),
    ],
)
def test_why_a_task_failed_fits_a_line(result: dict[str, object], line: str) -> None:
    assert first_line(result) == line


REPORT = {
    "host": "gpu1",
    "problems": [],
    "current": "r2",
    "previous": "r1",
    "releases": ["r0", "r1", "r2"],
    "units": {"comfyui.service": {}, "comfyui-api.service": {}, "comfyui@0.service": {}},
    "sockets": [
        {"unit": "comfyui@1.service", "port": 8189},
        {"unit": "comfyui@0.service", "port": 8188},
        {"unit": "comfyui-api.service", "port": 8288},
    ],
    "saved_workflows": 1,
}


def test_the_closing_words_lead_to_the_host() -> None:
    lines = closing_lines(REPORT, {"address": "192.0.2.7", "user": "me", "port": 2222, "options": "-o ProxyJump=gate"})
    assert lines[0] == "gpu1: ready"
    assert "  go back to   r1, r0" in lines
    tunnel = next(line for line in lines if "tunnel" in line)
    assert (
        "ssh -o ProxyJump=gate -p 2222 me@192.0.2.7 -N -L 8188:127.0.0.1:8188 -L 8189:127.0.0.1:8189 -L 8288:" in tunnel
    )
    assert any("browser" in line and "http://127.0.0.1:8188 while" in line for line in lines)


def test_the_closing_words_of_this_machine_have_no_tunnel() -> None:
    assert not any("tunnel" in line for line in closing_lines(REPORT, local=True))


def test_the_closing_words_name_problems_and_what_is_missing() -> None:
    lines = closing_lines({**REPORT, "problems": ["it is down"], "saved_workflows": 0})
    assert lines[0] == "gpu1: 1 problem"
    assert any(line.split() == ["problem", "it", "is", "down"] for line in lines)
    assert any("none yet: they come with models" in line for line in lines)
    assert closing_lines({"host": "a", "problems": [], "current": ""}) == ["a has no ComfyUI yet"]
