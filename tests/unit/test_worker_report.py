from __future__ import annotations

import getpass
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.user_files import BROWSER, pack, place
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release import report as module
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.client import ComfyUIClient
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.node_types import Look
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.report import (
    devices,
    jobs,
    problems,
    unit_states,
    versions,
    worker_report,
)
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.report import report_lines
from ansible_collections.wanmetal.comfyui.tests.unit.fake_comfyui import Fake, serve
from ansible_collections.wanmetal.comfyui.tests.web import Request, reply

SHOWN = """\
MainPID=101
NRestarts=2
MemoryCurrent=5746688
Id=comfyui.service
ActiveState=active
SubState=running
UnitFileState=enabled
ActiveEnterTimestamp=Sun 2026-11-22 08:38:51 UTC

MainPID=0
NRestarts=0
MemoryCurrent=[not set]
Id=other.service
ActiveState=inactive
SubState=dead
UnitFileState=
ActiveEnterTimestamp=
"""
RUNNING = {
    "active": "active",
    "sub": "running",
    "enabled": "enabled",
    "main_pid": 101,
    "restarts": 2,
    "since": "Sun 2026-11-22 08:38:51 UTC",
    "memory_bytes": 5746688,
}
MISSING = {
    "active": "inactive",
    "sub": "dead",
    "enabled": "",
    "main_pid": 0,
    "restarts": 0,
    "since": "",
    "memory_bytes": None,
}
UNTOLD = {
    "active": "",
    "sub": "",
    "enabled": "",
    "main_pid": None,
    "restarts": None,
    "since": "",
    "memory_bytes": None,
}
STATS = {
    "system": {
        "comfyui_version": "0.3.75",
        "python_version": "3.11.2 (main, Apr 28 2025) [GCC 12.2.0]",
        "pytorch_version": "2.10.0+cu128",
    },
    "devices": [{"name": "cuda:0 NVIDIA L4", "type": "cuda", "vram_total": 24 * 2**30, "index": 0}],
}
VERSIONS = {"comfyui": "0.3.75", "python": "3.11.2", "torch": "2.10.0+cu128"}


@pytest.mark.parametrize(
    ("units", "shown", "expected"),
    [
        (["comfyui.service", "other.service"], SHOWN, {"comfyui.service": RUNNING, "other.service": MISSING}),
        (["comfyui.service"], "", {"comfyui.service": UNTOLD}),
        (["third.service"], SHOWN, {"third.service": UNTOLD}),
        ([], SHOWN, {}),
    ],
)
def test_unit_states(units: list[str], shown: str, expected: dict[str, Any]) -> None:
    assert unit_states(units, shown) == expected


@pytest.mark.parametrize(
    ("stats", "expected"), [(STATS, VERSIONS), ({}, {}), ({"system": {"comfyui_version": None}}, {})]
)
def test_versions(stats: dict[str, Any], expected: dict[str, str]) -> None:
    assert versions(stats) == expected


@pytest.mark.parametrize(
    ("stats", "expected"),
    [
        (STATS, [{"name": "cuda:0 NVIDIA L4", "type": "cuda", "memory_bytes": 24 * 2**30}]),
        ({"devices": [{"name": "cpu"}]}, [{"name": "cpu", "type": "", "memory_bytes": None}]),
        ({}, []),
    ],
)
def test_devices(stats: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    assert devices(stats) == expected


# ---------------------------------------------------------------------------------------------- problems

HEALTHY: dict[str, Any] = {
    "current": "r1",
    "verified": {"release": "r1", "generation": "g"},
    "units": {"comfyui.service": RUNNING},
    "sockets": [{"unit": "comfyui.service", "address": "127.0.0.1", "port": 8188}],
    "services": {},
    "api_error": "",
    "custom_nodes_problems": [],
    "workflows": {},
}


def unit(**state: Any) -> dict[str, Any]:
    return {"units": {"comfyui.service": {**RUNNING, **state}}}


def socket(address: str) -> dict[str, Any]:
    return {"sockets": [{"unit": "comfyui.service", "address": address, "port": 8188}]}


@pytest.mark.parametrize(
    ("change", "allow_remote", "expected"),
    [
        ({}, False, []),
        ({"verified": {"release": "r1", "generation": "other"}}, False, []),
        (
            unit(active="failed"),
            False,
            ["comfyui.service is failed: see journalctl -u comfyui.service on the host, then deploy again"],
        ),
        (unit(enabled="disabled"), False, ["comfyui.service does not start at boot (disabled): deploy again"]),
        ({"units": {"a.service": MISSING}}, False, ["a.service has no unit file on the host: deploy"]),
        (
            {"units": {"a.service": UNTOLD}},
            False,
            ["systemd tells nothing of a.service: see systemctl status a.service on the host"],
        ),
        (
            {"services": {"x.service": "HTTP status 503", "y.service": ""}},
            False,
            ["x.service does not answer: HTTP status 503; see journalctl -u x.service on the host"],
        ),
        ({"api_error": "refused"}, False, ["ComfyUI does not answer: refused"]),
        ({"custom_nodes_problems": ["a lacks X"]}, False, ["a lacks X"]),
        (
            {"workflows": {"a.json": [], "b.json": ["1", "2", "3", "4"]}},
            False,
            [
                "workflow b.json: 1; 2; 3 (and 1 more). Where a model is not there yet, playbooks/models.yml waits for "
                "it; where nothing fetches it, add it to wan_models_files, or remove the workflow from "
                "workflows_extra; otherwise deploy again"
            ],
        ),
        ({"current": ""}, False, ["no release is current: deploy"]),
        ({"verified": {}}, False, ["release r1 runs, but none was verified: deploy again"]),
        ({"verified": {"release": "r0"}}, False, ["release r1 runs, but r0 was verified: deploy again"]),
        (
            socket("0.0.0.0"),  # noqa: S104
            False,
            [
                "comfyui.service listens on 0.0.0.0:8188, which others can reach: "
                "keep it on 127.0.0.1, or set comfyui_allow_remote: true if that is meant"
            ],
        ),
        (socket("0.0.0.0"), True, []),  # noqa: S104
        (socket("127.0.0.2"), False, []),
        (socket("::1"), False, []),
    ],
)
def test_problems(change: dict[str, Any], allow_remote: bool, expected: list[str]) -> None:
    assert problems({**HEALTHY, **change}, allow_remote) == expected


@pytest.mark.parametrize("address", ["::", "192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"])
def test_whatever_is_not_loopback_is_open(address: str) -> None:
    assert len(problems({**HEALTHY, **socket(address)}, False)) == 1


def test_all_problems_come_at_once() -> None:
    bad = {**HEALTHY, **unit(active="inactive"), **socket("::"), "api_error": "refused", "verified": {}}
    assert len(problems(bad, False)) == 4


# ---------------------------------------------------------------------------------------------- reading a host


@pytest.fixture
def systemctl(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> SimpleNamespace:
        assert command[:2] == ["systemctl", "show"]
        assert command[-2:] == ["comfyui.service", "other.service"]
        return SimpleNamespace(stdout=SHOWN)

    monkeypatch.setattr(subprocess, "run", run)


def host(folder: Path) -> tuple[Path, Path]:
    root, proc = folder / "opt", folder / "proc"
    for name in ("r1", "r2", "r3"):
        (root / "releases" / name).mkdir(parents=True)
    (root / "releases/r1/release.json").write_text('{"comfyui": "0.3.75"}')
    (root / "releases/r2/release.json").write_text("{}")
    (root / "current").symlink_to("releases/r1")
    (root / "previous").symlink_to("releases/r2")
    (root / "verified.json").write_text('{"release": "r1"}')
    (proc / "net").mkdir(parents=True)
    return root, proc


@pytest.mark.usefixtures("systemctl")
def test_a_host_is_read(tmp_path: Path) -> None:
    def stats(handler: Request) -> None:
        reply(handler, json.dumps(STATS).encode(), 200)

    def saved(handler: Request) -> None:
        reply(handler, json.dumps(["mine.json", "folder/theirs.json", "notes.txt"]).encode(), 200)

    root, proc = host(tmp_path)
    with serve(Fake(special={"/system_stats": stats, "/userdata": saved})) as url:
        report = worker_report(root, ["comfyui.service", "other.service"], {"comfyui.service": url}, {}, None, proc)
    assert report == {
        "current": "r1",
        "previous": "r2",
        "releases": ["r1", "r2"],
        "release": {"comfyui": "0.3.75"},
        "verified": {"release": "r1"},
        "units": {"comfyui.service": RUNNING, "other.service": MISSING},
        "sockets": [],
        "services": {},
        "api_error": "",
        "versions": VERSIONS,
        "devices": devices(STATS),
        "workers": {"comfyui.service": {"queue": 0, "last_job": None}},
        "custom_nodes": {},
        "custom_nodes_problems": [],
        "workflows": {},
        "workflows_notes": [],
        "saved_workflows": 2,
        "models": [],
    }


@pytest.mark.parametrize(
    ("status", "ended"),
    [
        (
            {
                "status_str": "success",
                "messages": [["execution_start", {"timestamp": 1000}], ["end", {"timestamp": 2500}]],
            },
            ("success", "1970-01-01 00:00:02 UTC"),
        ),
        ({"status_str": "error", "messages": [["end", {"timestamp": "x"}], [], 7, ["end", None]]}, ("error", "")),
        ({"messages": [["end", {"timestamp": 1e300}]]}, ("", "")),
        (None, ("", "")),
    ],
)
def test_the_last_job_of_a_worker(status: Any, ended: tuple[str, str]) -> None:
    fake = Fake(history={"first": {}, "last": {"outputs": {}, "status": status}})
    fake.queue["queue_running"].append([1, "now", {}])
    with serve(fake) as url:
        found = jobs(ComfyUIClient(url))
    assert found == {"queue": 1, "last_job": {"id": "last", "status": ended[0], "finished": ended[1]}}


@pytest.mark.usefixtures("systemctl")
def test_packs_are_read_of_each_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stats(handler: Request) -> None:
        reply(handler, json.dumps(STATS).encode(), 200)

    seen: list[str] = []

    def look(folder: Path, _: object, unit: str) -> Look:
        seen.append(unit)
        assert folder.name == "current"
        return Look({"a": {"commit": "c", "seconds": 1.5}}, ["a lacks X"])

    monkeypatch.setattr(module, "look_at_packs", look)
    root, proc = host(tmp_path)
    with serve(Fake(special={"/system_stats": stats})) as url:
        report = worker_report(root, [], {"comfyui.service": url, "other.service": url}, {}, None, proc)
    assert seen == ["comfyui.service", "other.service"]
    assert report["custom_nodes"] == {"a": {"commit": "c", "seconds": 1.5}}
    assert report["custom_nodes_problems"] == ["a lacks X"]


PICTURE = {"input": {"required": {"width": ["INT", {"default": 8, "min": 1}]}}, "output": ["IMAGE"]}
SHOWN_AT_END = {"input": {"required": {"images": ["IMAGE"], "ckpt_name": [["a.safetensors"]]}}, "output": []}
OFFERED = {"EmptyImage": PICTURE, "SaveImage": {**SHOWN_AT_END, "output_node": True}}


def graph(width: int) -> bytes:
    saved = {"images": ["1", 0], "ckpt_name": "users-choice.safetensors"}
    nodes = {"1": ("EmptyImage", {"width": width}), "2": ("SaveImage", saved)}
    return json.dumps({id_: {"class_type": kind, "inputs": inputs} for id_, (kind, inputs) in nodes.items()}).encode()


@pytest.mark.usefixtures("systemctl")
def test_placed_workflows_are_compared_with_what_comfyui_offers(tmp_path: Path) -> None:
    special = {
        "/system_stats": lambda handler: reply(handler, json.dumps(STATS).encode(), 200),
        "/object_info": lambda handler: reply(handler, json.dumps(OFFERED).encode(), 200),
    }
    root, proc = host(tmp_path)
    names = {"good": graph(8), "bad": graph(0), "changed": graph(0), "strange": b"{}"}
    archive = pack({f"{BROWSER}/{name}.json": text for name, text in names.items()})
    place(tmp_path, archive, root / "workflows.json", getpass.getuser(), check=False)
    (tmp_path / BROWSER / "changed.json").write_text("theirs")
    with serve(Fake(special=special)) as url:
        report = worker_report(root, ["comfyui.service", "other.service"], {"comfyui.service": url}, {}, tmp_path, proc)
        assert (
            worker_report(root, [], {"comfyui.service": url, "other.service": url}, {}, None, proc)["workflows"] == {}
        )
    assert report["workflows"] == {
        "bad.json": ["node 1 (EmptyImage): width must be at least 1, found 0"],
        "good.json": [],
        "strange.json": ["this is no workflow: it has neither nodes nor class types"],
    }


@pytest.mark.parametrize("built_last", ["r1", "r2"])
def test_workflows_of_a_later_release_are_no_problem_after_a_rollback(tmp_path: Path, built_last: str) -> None:
    root, _ = host(tmp_path)
    os.utime(root / "releases" / built_last / "release.json", (2**32, 2**32))
    strange = {**json.loads(graph(8)), "3": {"class_type": "Magic", "inputs": {}}}
    archive = pack({f"{BROWSER}/strange.json": json.dumps(strange).encode(), f"{BROWSER}/bad.json": graph(0)})
    place(tmp_path, archive, root / "workflows.json", getpass.getuser(), check=False)
    special = {"/object_info": lambda handler: reply(handler, json.dumps(OFFERED).encode(), 200)}
    with serve(Fake(special=special)) as url:
        wrong, notes = module.placed_workflows(root, tmp_path, ComfyUIClient(url))
    assert wrong.pop("bad.json")
    if built_last == "r1":
        assert (wrong, notes) == ({"strange.json": ["node 3 (Magic): the node type Magic is not known"]}, [])
    else:
        assert wrong == {}
        assert notes == [
            "workflow strange.json: the release that runs lacks the node type Magic. "
            "A later one is on the host, r2, and may have it"
        ]


@pytest.mark.usefixtures("systemctl")
def test_services_are_asked(tmp_path: Path) -> None:
    def unready(handler: Request) -> None:
        reply(handler, b"{}", 503)

    root, proc = host(tmp_path)
    with serve(Fake(special={"/ready": lambda handler: reply(handler, b"{}", 200), "/unready": unready})) as url:
        asked = {"comfyui.service": f"{url}/ready", "other.service": f"{url}/unready"}
        report = worker_report(root, [], {}, asked, None, proc)
    assert report["services"] == {"comfyui.service": "", "other.service": "HTTP status 503"}
    assert list(report["units"]) == list(asked)
    report = worker_report(root, ["comfyui.service"], {}, {"other.service": "http://127.0.0.1:9/x"}, proc)
    assert "refused" in report["services"]["other.service"]


@pytest.mark.usefixtures("systemctl")
def test_an_empty_host_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    report = worker_report(
        tmp_path, ["comfyui.service", "other.service"], {"comfyui.service": "http://127.0.0.1:9"}, {}, None, tmp_path
    )
    assert (report["current"], report["previous"], report["releases"], report["release"]) == ("", "", [], {})
    assert "does not answer" in report["api_error"]
    assert (report["versions"], report["devices"]) == ({}, [])


# ---------------------------------------------------------------------------------------------- lines for a terminal

CANARY = {
    "rendered": True,
    "reason": "",
    "seconds": 1.2,
    "details": {"width": 128, "height": 64, "frames": 9, "fps": 16.0},
}
FULL = {
    **HEALTHY,
    "host": "gpu1",
    "previous": "r0",
    "release": {"comfyui": "0.3.75", "source": "git", "variant": "base", "lane": "cu128"},
    "versions": VERSIONS,
    "devices": devices(STATS),
    "units": {"comfyui.service": {**RUNNING, "memory_bytes": 3 * 2**29}},
    "canary": CANARY,
    "problems": [],
}


def test_report_lines() -> None:
    assert report_lines(FULL) == [
        "gpu1",
        "  release          r1 (ComfyUI 0.3.75 by git, base, cu128)",
        "  to go back to    r0",
        "  versions         comfyui 0.3.75, python 3.11.2, torch 2.10.0+cu128",
        "  renders on       cuda:0 NVIDIA L4 (24 GiB)",
        "  comfyui.service  active (running), enabled, since Sun 2026-11-22",
        "                   08:38:51 UTC, 2 restarts, 1.5 GiB",
        "  listens on       127.0.0.1:8188",
        "  test render      128x64, 9 frames at 16 fps, right pixels, 1.2 s",
        "  no problems",
    ]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"current": ""}, "  release          none (ComfyUI 0.3.75 by git, base, cu128)"),
        ({"release": {}}, "  release          r1"),
        ({"current": "", "release": {}}, "  release          none"),
        ({"previous": ""}, "  to go back to    nothing yet"),
        ({"versions": {}}, "  versions         unknown"),
        ({"devices": []}, "  renders on       unknown"),
        ({"devices": [{"name": "cpu", "memory_bytes": None}]}, "  renders on       cpu"),
        ({"units": {"comfyui.service": MISSING}}, "  comfyui.service  inactive (dead), no unit file"),
        ({"services": {"x.service": ""}}, "  x answers        yes"),
        ({"workers": {"a": {"queue": 2, "last_job": None}}}, "  jobs of a        2 in its queue, none has ended yet"),
        (
            {"workers": {"a": {"queue": 0, "last_job": {"id": "j", "status": "error", "finished": "2027-01-15"}}}},
            "  jobs of a        0 in its queue; last j: error, 2027-01-15",
        ),
        ({"services": {"x.service": "refused"}}, "  x answers        no: refused"),
        ({"sockets": []}, "  listens on       nothing"),
        ({"canary": {}}, "  test render      not rendered"),
        ({"canary": {"rendered": False, "reason": "no answer"}}, "  test render      failed: no answer"),
        ({"canary": {**CANARY, "reason": "one colour"}}, "  test render      failed: one colour"),
        ({"canary": {**CANARY, "details": {"largest_deviation": 1}}}, "  test render      image, right pixels, 1.2 s"),
        (
            {"canary": {**CANARY, "workflow": {"name": "Wan22-5B", "seconds": 9.1, "details": CANARY["details"]}}},
            "  has rendered     Wan22-5B, 128x64, 9 frames at 16 fps, 9.1 s",
        ),
        (
            {"canary": {**CANARY, "workflow": {"left_out": "Wan22-5B lacks a"}}},
            "  has rendered     no workflow: Wan22-5B lacks a",
        ),
        ({"problems": ["a is b"]}, "  PROBLEM: a is b"),
        (
            {"custom_nodes": {"a": {"seconds": 1.52}, "b": {"seconds": None}}},
            "  node packs       a 1.5 s, b",
        ),
        ({"workflows": {"a": [], "b": []}}, "  workflows        2, all of them right"),
        ({"workflows": {"a": [], "b": ["x"]}}, "  workflows        2, 1 of them wrong"),
        ({"attention": "torch's own; no GPU"}, "  attention        torch's own; no GPU"),
    ],
)
def test_a_line(change: dict[str, Any], line: str) -> None:
    lines = report_lines({**FULL, **change})
    assert line in lines
    assert ("  no problems" in lines) is ("problems" not in change)


def test_nothing_known_is_told_as_such() -> None:
    assert report_lines({})[0] == "worker"


LOADED = {"loaded": "580.95.05", "loaded_modules": "open", "cuda": "13.0"}
L4 = {"name": "NVIDIA L4", "vram_mb": 23034}


@pytest.mark.parametrize(
    ("driver", "devices", "expected"),
    [
        (
            LOADED,
            [L4, L4],
            ["driver         580.95.05, open, for CUDA up to 13.0", "GPUs           2 x NVIDIA L4 (22 GiB)"],
        ),
        (
            {**LOADED, "loaded_modules": None},
            [{"name": "A100 MIG 7g", "vram_mb": None}],
            ["driver         580.95.05, of another machine, for CUDA up to 13.0", "GPUs           A100 MIG 7g"],
        ),
        (
            {"loaded": None, "loaded_modules": None, "cuda": None},
            [],
            ["driver         none", "GPUs           none that works"],
        ),
    ],
)
def test_driver_and_gpus_are_reported(
    driver: dict[str, Any], devices: list[dict[str, Any]], expected: list[str]
) -> None:
    lines = [line.strip() for line in report_lines({"gpu": {"driver": driver, "devices": devices}})]
    assert [line for line in lines if line.startswith(("driver ", "GPUs "))] == expected


@pytest.mark.parametrize("strange", [{}, {"system": None, "devices": None}, {"system": [1], "devices": [1, None, "x"]}])
def test_a_comfyui_that_says_strange_things_of_itself(strange: dict[str, Any]) -> None:
    assert module.versions(strange) == {}
    assert module.devices(strange) == []


def test_why_an_address_does_not_answer_is_said_without_numbers() -> None:
    assert module.no_answer("http://127.0.0.1:9/") == "Connection refused"
