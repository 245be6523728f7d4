"""Every service's unit, as its role writes it: what each of them is denied."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.tests.contract import house
from wanmetal_handler import addresses

TEMPLATES = sorted(house.ROOT.glob("roles/*/templates/*.service.j2"))
METADATA = {"169.254.170.2", *map(str, addresses._METADATA)}
HOME = {"wanmetal_root": "/home/wan", "jupyterlab_ip_deny": []}
CASES: dict[str, dict[str, Any]] = {
    "shipped": {},
    "several": {"comfyui_instances": 2},
    "open": {"comfyui_ip_allow": ["any"], "comfyui_listen": "0.0.0.0"},  # noqa: S104
    "home": HOME,
    "core": {"wanmetal_data_dir": "/FOLDER", "wanmetal_comfyui": {"version": "0.33.0"}},
    "cores": {"wanmetal_data_dir": "/FOLDER", "wanmetal_comfyui": {"version": "0.33.0"}, "comfyui_instances": 2},
}
# What no service does without: everything that follows from there being no privilege to use.
MINIMUM = {
    *(
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "PrivateTmp=yes",
        "DevicePolicy=closed",
        "ProtectKernelTunables=yes",
        "ProtectKernelModules=yes",
    ),
    *("ProtectKernelLogs=yes", "ProtectControlGroups=yes", "ProtectClock=yes", "ProtectHostname=yes"),
    *("ProtectProc=invisible", "RestrictNamespaces=yes", "RestrictRealtime=yes", "RestrictSUIDSGID=yes"),
    *("LockPersonality=yes", "RemoveIPC=yes", "KeyringMode=private", "SystemCallArchitectures=native"),
    *("SystemCallFilter=@system-service", "SystemCallFilter=~@privileged", "SystemCallErrorNumber=EPERM"),
}
# Who is allowed more than the rest, and why.
JIT = {"comfyui": "Triton", "comfyui-api": "Node.js", "jupyterlab": "Triton"}
DEVICES = {
    "comfyui": ["char-nvidia* rw"],
    "jupyterlab": ["char-nvidia* rw", "char-pts rw"],
    "wanmetal-gpu-exporter": ["char-nvidia* rw"],
}
CAPABILITIES = {"comfyui-api": "CAP_FOWNER"}  # it removes outputs of ComfyUI
NETLINK = {
    *("comfyui-api", "comfyui-handler", "jupyterlab", "wanmetal-queue"),
    *("wanmetal-node-exporter", "wanmetal-prometheus", "wanmetal-alertmanager"),
}

Unit = Mapping[str, list[str]]


def unit_name(path: Path) -> str:
    return path.name.removesuffix(".service.j2")


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Unit]]:
    """By case and unit: the values of each setting in the section [Service]."""
    folder = tmp_path_factory.mktemp("units")
    files = [str(path) for name in ("defaults", "vars") for path in sorted(house.ROOT.glob(f"roles/*/{name}/main.yml"))]
    common = {
        "ansible_python_interpreter": sys.executable,
        "role_path": str(house.ROOT / "roles/comfyui"),
        "wanmetal_accelerator": "cpu",
        "ansible_facts": {"distribution": "Debian", "distribution_major_version": "12"},
        "wan_models_share_address": "10.0.0.1",
        **{f"__{role}_hash": "0" * 12 for role in ("comfyui_api", "comfyui_api_v2", "handler", "jupyterlab", "queue")},
    }
    rendered = {unit_name(path): f"{{{{ lookup('wanmetal.comfyui.template', '{path}') }}}}" for path in TEMPLATES}
    plays = [
        {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "vars_files": files,
            "tasks": [
                {
                    "ansible.builtin.copy": {"content": "{{ rendered | to_json }}", "dest": f"{folder}/{case}.json"},
                    "vars": {**common, **settings, "rendered": rendered},
                }
            ],
        }
        for case, settings in CASES.items()
    ]
    (folder / "play.yml").write_text(json.dumps(plays), encoding="utf-8")
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", "localhost,", folder / "play.yml"],
        cwd=house.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        case: {name: settings_of(text) for name, text in json.loads((folder / f"{case}.json").read_text()).items()}
        for case in CASES
    }


def settings_of(text: str) -> Unit:
    found = defaultdict(list)
    section = ""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith(("#", " ")):
            name, _, value = line.partition("=")
            found[name].append(value)
    return found


def missing(unit: Unit) -> set[str]:
    return MINIMUM - {f"{name}={value}" for name, values in unit.items() for value in values}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", [unit_name(path) for path in TEMPLATES])
def test_every_unit_holds_the_minimum(units: dict[str, dict[str, Unit]], case: str, name: str) -> None:
    unit = units[case][name]
    assert missing(unit) == set()
    assert unit["User"] not in ([], [""], ["root"], ["0"])
    for setting in ("CapabilityBoundingSet", "AmbientCapabilities"):
        assert unit[setting] == [CAPABILITIES.get(name, "")]
    assert unit["UMask"] in (["0027"], ["0077"])
    assert unit.get("MemoryDenyWriteExecute") == (None if name in JIT else ["yes"])
    assert unit.get("DeviceAllow", []) == DEVICES.get(name, [])
    assert unit.get("PrivateDevices") == (None if name in DEVICES else ["yes"])
    assert ("AF_NETLINK" in unit["RestrictAddressFamilies"][0]) == (name in NETLINK)
    denied = set(" ".join(unit["IPAddressDeny"]).split())
    assert denied == {"any"} or denied >= METADATA
    assert "any" not in " ".join(unit.get("IPAddressAllow", []))
    assert set(unit["ProtectHome"]) <= ({"yes", "read-only"} if case == "home" else {"yes"})


def test_a_unit_is_missing_what_is_taken_from_it(units: dict[str, dict[str, Unit]]) -> None:
    for line in MINIMUM:
        name, _, value = line.partition("=")
        unit = dict(units["shipped"]["comfyui"])
        unit[name] = [other for other in unit[name] if other != value]
        assert missing(unit) == {line}


def test_node_packs_see_no_socket_and_no_network(units: dict[str, dict[str, Unit]]) -> None:
    for name in ("comfyui", "comfyui-workers"):
        unit = units["several"][name]
        assert unit["TemporaryFileSystem"] == ["/run:ro"]
        assert (unit["IPAddressDeny"], unit["IPAddressAllow"][0].split()[0]) == (["any"], "localhost")
    assert units["open"]["comfyui"].get("IPAddressAllow") is None


OLD, NEWER = "0.32.0", "0.34.0"


@pytest.mark.parametrize(
    ("there", "copied"),
    [
        ([], None),  # the first core of a host
        ([OLD], OLD),
        (["0.3.75", OLD, "0.9.1"], OLD),  # by number, not by letter
        ([OLD, f"{OLD}+783545f6"], f"{OLD}+783545f6"),  # a commit after the version
        ([NEWER], None),  # an older core cannot use it
        (["0.31.0", OLD, NEWER, "0.33.1"], OLD),
        ([OLD, "0.33.0", NEWER], "0.33.0"),  # its own: the way back, and the way there again
    ],
)
@pytest.mark.parametrize(("case", "worker"), [("core", ""), ("cores", "-1")])
def test_each_core_begins_with_the_database_of_the_one_before(
    case: str, worker: str, there: list[str], copied: str | None, units: Any, tmp_path: Path
) -> None:
    user = tmp_path / "user"
    user.mkdir()
    other = "" if worker else "-1"
    for version in there:
        (user / f"comfyui-{version}{worker}.db").write_text(version)
        (user / f"comfyui-{version}{other}.db").write_text("of another worker")
    if copied == OLD:
        (user / f"comfyui-{OLD}{worker}.db-journal").write_text("of a process that was killed")
    before = {path.name: path.read_text() for path in user.iterdir()}
    (command,) = [line for line in units[case]["comfyui"]["ExecStartPre"] if "/user" in line]
    words = shlex.split(command.replace("/FOLDER", str(tmp_path)).replace("%i", "1").replace("$$", "$"))
    subprocess.run(words, check=True)
    after = {path.name: path.read_text() for path in user.iterdir()}
    own = f"comfyui-0.33.0{worker}.db"
    assert after.get(own) == copied
    assert after.get(f"{own}-journal") == before.get(f"comfyui-{copied}{worker}.db-journal")
    assert {name: text for name, text in after.items() if not name.startswith(own)} == {
        name: text for name, text in before.items() if not name.startswith(own)
    }
    subprocess.run(words, check=True)
    assert after == {path.name: path.read_text() for path in user.iterdir()}
