"""Wrong settings, given to the real playbook: each gets its message, and nothing is done.

Each host of one run has one fault. All of them are reached at a port where this test listens, so that any connection
is seen; a host whose settings are in order shows that one would be.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CASES: list[dict[str, Any]] = yaml.safe_load((ROOT / "tests/contract/bad_input.yml").read_text())
NAMES = [case["case"] for case in CASES]
COMMAND_LINE = {
    "comfyui_port": "word",
    "comfyui_prot": "1",
    "comfyui_extra_args": "--fast",
    "comfyui_allow_remote": "always",
}


class Door:
    """A port that counts who knocks, and closes at once."""

    def __init__(self) -> None:
        self.knocks = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            link, _ = self._server.accept()
            self.knocks += 1
            link.close()


@dataclass
class Run:
    """What came of a run."""

    output: str
    messages: dict[str, str]
    """By host, the message of the task that failed."""
    unreachable: set[str]


def play(home: Path, *arguments: str) -> Run:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment |= {
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        "ANSIBLE_HOST_KEY_CHECKING": "false",
        "ANSIBLE_LOCAL_TEMP": str(home.parent / "ansible"),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(home.parent / "ansible"),
        "HOME": str(home),
    }
    command = [sys.executable, "-m", "ansible", "playbook", "playbooks/preflight.yml", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    fatal = re.findall(r"^fatal: \[([^\]]+)\]: (FAILED|UNREACHABLE)! => (\{.*\})$", done.stdout, re.MULTILINE)
    return Run(
        output,
        {host: json.loads(result)["msg"] for host, kind, result in fatal if kind == "FAILED"},
        {host for host, kind, _ in fatal if kind == "UNREACHABLE"},
    )


def inventory(folder: Path, hosts: dict[str, dict[str, Any]], groups: dict[str, dict[str, Any]]) -> str:
    children: dict[str, Any] = {f"group_of_{name}": {"hosts": {name: {}}} for name in groups}
    tree = {"gpu_hosts": {"hosts": hosts, "children": children}}
    (folder / "hosts.yml").write_text(yaml.safe_dump(tree))
    for name, settings in groups.items():
        path = folder / "group_vars" / f"group_of_{name}.yml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(settings))
    return str(folder / "hosts.yml")


@dataclass
class Outcome:
    """The run over all cases, and who connected where."""

    run: Run
    knocks_of_bad: int
    knocks_of_good: int
    files: set[Path]


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder, home = tmp_path_factory.mktemp("inventory"), tmp_path_factory.mktemp("run") / "home"
    home.mkdir()
    bad, good = Door(), Door()

    def reached_at(door: Door) -> dict[str, Any]:
        return {"ansible_host": "127.0.0.1", "ansible_port": door.port, "ansible_user": "ops"}

    hosts = {f"case{index}": {**reached_at(bad), **case.get("settings", {})} for index, case in enumerate(CASES)}
    own = {"workflows_extra": [str(ROOT / "files/workflows/ui/Native-VideoToVideo.json")]}
    hosts["in_order"] = {**reached_at(good), **own, "comfyui_port": "{{ 9000 + 1 }}", "__comfyui_mine": 1}
    groups = {f"case{index}": case["group_settings"] for index, case in enumerate(CASES) if "group_settings" in case}
    before = files_in(folder.parent) | files_in(ROOT / "playbooks")
    run = play(home, "-i", inventory(folder, hosts, groups))
    made = (files_in(folder.parent) | files_in(ROOT / "playbooks")) - before - {folder / "hosts.yml"}
    return Outcome(run, bad.knocks, good.knocks, made - files_in(folder / "group_vars"))


def blocks(message: str) -> dict[str, dict[str, str]]:
    """What a message says, by variable."""
    found: dict[str, dict[str, str]] = {}
    for block in message.split("\n\n")[1:]:
        variable, *lines = block.split("\n")
        assert variable not in found, f"{variable} is named twice"
        found[variable] = {line.split()[0]: line.split(None, 1)[1] for line in lines}
    return found


def test_there_are_cases_of_many_kinds() -> None:
    assert len(set(NAMES)) == len(CASES) >= 30


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_each_fault_is_named(outcome: Outcome, case: dict[str, Any]) -> None:
    host = f"case{CASES.index(case)}"
    assert host in outcome.run.messages, outcome.run.output[-2000:]
    message = outcome.run.messages[host]
    assert message.startswith(f"{len(case['wrong'])} setting")
    assert f" of {host} must be fixed first. Nothing has been changed.\n" in message
    said = blocks(message)
    assert said.keys() == case["wrong"].keys()
    for variable, expected in case["wrong"].items():
        assert said[variable].keys() == {"found", "needed", "fix"}
        assert all(said[variable].values())
        if expected:
            assert expected["found"] in (None, said[variable]["found"])
            assert expected["fix"] in said[variable]["fix"]
    if "hidden" in case:
        assert case["hidden"] not in message


def test_nothing_is_shown_that_is_hidden(outcome: Outcome) -> None:
    for hidden in {case["hidden"] for case in CASES if "hidden" in case}:
        assert hidden not in outcome.run.output


def test_nothing_was_done(outcome: Outcome) -> None:
    assert outcome.knocks_of_bad == 0
    assert outcome.files == set()
    assert re.findall(r"changed=([1-9])", outcome.run.output) == []


def test_a_host_whose_settings_are_in_order_is_connected_to(outcome: Outcome) -> None:
    assert outcome.knocks_of_good > 0
    assert outcome.run.unreachable == {"in_order"}


def test_the_command_line_is_checked_too(tmp_path: Path) -> None:
    door, home = Door(), tmp_path / "home"
    home.mkdir()
    hosts = {"host": {"ansible_host": "127.0.0.1", "ansible_port": door.port}}
    extra = [argument for name, value in COMMAND_LINE.items() for argument in ("-e", f"{name}={value}")]
    run = play(home, "-i", inventory(tmp_path, hosts, {}), *extra)
    assert blocks(run.messages["host"]).keys() == COMMAND_LINE.keys()
    assert door.knocks == 0
