"""playbooks/lock.yml by itself: small repositories and packages, and the gate on a stand-in for ComfyUI's start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.wanmetal.comfyui.tests.unit.test_node_pack_gate import CORE, NODE, made
from ansible_collections.wanmetal.comfyui.tests.unit.test_python_lock import Index

ROOT = Path(__file__).resolve().parents[2]
GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "protocol.file.allow=always"]


def committed(folder: Path, files: dict[str, str]) -> str:
    """Return the commit of files in a repository, which is made where it is not there."""
    made(folder, files)
    for command in (["init", "--quiet", "--initial-branch=main"], ["add", "--all"], ["commit", "--quiet", "-m", "x"]):
        subprocess.run([*GIT, *command], cwd=folder, check=True)
    return subprocess.run(
        [*GIT, "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


class World:
    """A mirror with a ComfyUI and packs, an index of packages, and the locks of an operator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mirror, self.locks = folder / "mirror", folder / "locks"
        self.index = Index(folder / "simple")
        for name, version in (("core-needs", "1.0"), ("pack-needs", "1.0"), ("pack-needs", "2.0")):
            self.index.add(name.replace("-", "_"), version)
        for name in ("core", "pack"):
            (folder / "simple" / f"{name}_needs").rename(folder / "simple" / f"{name}-needs")
        self.comfyui = committed(self.mirror / "comfyanonymous/ComfyUI.git", {**CORE, "requirements.txt": "core-needs"})
        upstream = yaml.safe_load((ROOT / "files/locks/upstream.yml").read_text())
        upstream["comfyui"] = {**upstream["comfyui"], "version": "9.9.9", "commit": self.comfyui}
        for lane in upstream["lanes"].values():
            lane["python_constraints"] = []
            lane.pop("compiler", None)
        self.locks.mkdir()
        (self.locks / "upstream.yml").write_text(yaml.safe_dump(upstream))
        # Without the shipped packs, which this mirror lacks.
        nodes: dict[str, Any] = {"variants": {"wan": [], "base": [], "practice": []}, "packs": {}}
        nodes["python"] = {"constraints": [], "overrides": []}
        (self.locks / "custom_nodes.yml").write_text(yaml.safe_dump(nodes))

    def pack(self, text: str, **files: str) -> dict[str, Any]:
        commit = committed(
            self.mirror / "me/mine.git", {"__init__.py": text + NODE, "requirements.txt": "pack-needs<2", **files}
        )
        url = "https://github.com/me/mine.git"
        return {"name": "mine", "repository": url, "commit": commit, "requirements": ["requirements.txt"]}

    def lock(self, extra: list[dict[str, Any]], *more: str) -> str:
        settings = {
            "wanmetal_locks_dir": str(self.locks),
            "wanmetal_mirrors": [{"prefix": "https://github.com/", "replacement": f"file://{self.mirror}/"}],
            "custom_nodes_extra": extra,
            "lock_uv": str(Path(sys.executable).with_name("uv")),
        }
        environment = {
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "UV_DEFAULT_INDEX": self.index.url,
            "NO_COLOR": "1",
        }
        environment |= {"UV_CACHE_DIR": str(self.folder / "uv"), "ANSIBLE_HOME": str(self.folder / "ansible")}
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        command = [program, "playbooks/lock.yml", "-i", "localhost,", "-e", json.dumps(settings), *more]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
        )
        said = done.stdout + done.stderr
        assert (done.returncode == 0) is ("failed=0" in said), said
        return said

    def gate(self) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load((self.locks / "gate.yml").read_text())["packs"]["mine"]
        return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_locks_and_gate(world: World) -> None:
    lock = world.locks / "python/wan-cu128.txt"
    mine = world.pack("")
    said = world.lock([mine], "--check", "--diff")
    assert "added   pack-needs 1.0, wanted by mine" in said
    assert "not tried in check mode: mine" in said
    assert not lock.exists()

    said = world.lock([mine])
    assert "mine passes" in said
    assert f"# Node packs: mine {mine['commit'][:12]}" in lock.read_text()
    assert (world.gate()["verdict"], world.gate()["commit"], world.gate()["comfyui"]) == (
        "passes",
        mine["commit"],
        world.comfyui,
    )
    assert "changed=0" in world.lock([mine])

    reboots = world.pack("import os\ndef run(text):\n    os.system('pip install ' + text)\n")
    said = world.lock([reboots])
    assert "mine is refused: it installs software at run time (__init__.py:3)" in said
    assert world.gate()["commit"] == reboots["commit"]
