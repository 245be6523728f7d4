"""After an upgrade and a failed upgrade, the host serves release N, and knows the way back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = "/srv/wanmetal/hosts/molecule-upgrade"


def version(host: Any) -> str:
    stats = json.loads(host.check_output("curl --silent --fail http://127.0.0.1:8188/system_stats"))
    return str(stats["system"]["comfyui_version"])


def link(host: Any, name: str) -> str:
    return str(host.file(f"{ROOT}/{name}").linked_to).rpartition("/")[2]


def test_serves_release_n(host: Any) -> None:
    assert version(host) == "0.3.75"
    assert link(host, "current").startswith("0.3.75-")
    assert host.service("comfyui").is_enabled


def test_knows_the_release_before(host: Any) -> None:
    assert link(host, "previous").startswith("0.3.52-")


def test_current_release_is_the_verified_one(host: Any) -> None:
    assert json.loads(host.file(f"{ROOT}/verified.json").content_string)["release"] == link(host, "current")


def test_second_release_costs_little_disk(host: Any) -> None:
    both = host.check_output(f"du -sc --block-size=1M {ROOT}/environments/comfyui-*")
    sizes = [int(line.split()[0]) for line in both.splitlines()]
    assert sizes[-1] < sizes[0] * 1.2


def test_goes_back_and_forth_by_hand(host: Any) -> None:
    project = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]

    def rollback(*arguments: str) -> str:
        done = subprocess.run(
            [
                "ansible-playbook",
                "-i",
                str(Path(inventory).parent),
                str(project / "playbooks/rollback.yml"),
                *arguments,
            ],
            cwd=project,
            capture_output=True,
            text=True,
            check=False,
        )
        sys.stdout.write(done.stdout + done.stderr)
        assert done.returncode == 0
        return done.stdout

    first = link(host, "current")
    assert "has rendered its test image" in rollback()
    assert version(host) == "0.3.52"
    assert link(host, "previous") == first
    rollback("-e", f"comfyui_rollback_to={first}")
    assert version(host) == "0.3.75"
    assert "runs already" in rollback("-e", f"comfyui_rollback_to={first}")
