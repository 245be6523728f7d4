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
from ansible_collections.wanmetal.comfyui.tests.web import Request, body, hosting, reply

ROOT = Path(__file__).resolve().parents[2]
GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "protocol.file.allow=always"]


def committed(folder: Path, files: dict[str, str], day: int = 1, tag: str = "") -> str:
    """Return the commit of files in a repository, which is made where it is not there."""
    made(folder, files)
    date = f"2026-08-{day:02}T12:00:00Z"
    dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    tags = [["tag", tag]] if tag else []
    commit = [["init", "--quiet", "--initial-branch=main"], ["add", "--all"], ["commit", "--quiet", "-m", "x"]]
    for command in commit + tags:
        subprocess.run([*GIT, *command], cwd=folder, check=True, env=os.environ | dates)
    return subprocess.run(
        [*GIT, "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


class World:
    """A mirror with a ComfyUI and packs, an index of packages, and the locks of an operator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mirror, self.locks = folder / "mirror", folder / "locks"
        self.osv = "http://127.0.0.1:9/"
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
            "wanmetal_mirrors": [
                {"prefix": "https://github.com/", "replacement": f"file://{self.mirror}/"},
                {"prefix": "https://api.osv.dev/", "replacement": self.osv},
            ],
            "custom_nodes_extra": extra,
            "lock_trial": False,
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

    def pinned(self) -> tuple[str, str, str]:
        comfyui = yaml.safe_load((self.locks / "upstream.yml").read_text())["comfyui"]
        nodes = yaml.safe_load((self.locks / "custom_nodes.yml").read_text())
        return comfyui["version"], comfyui["commit"], nodes["packs"]["own"]["commit"]

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


def test_another_comfyui(world: World) -> None:
    """Its tag, the packs of its time, and all that follows from both: the locks, and the gate's report."""
    core, pack = world.mirror / "comfyanonymous/ComfyUI.git", world.mirror / "own/pack.git"
    subprocess.run([*GIT, "tag", "v9.9.9"], cwd=core, check=True)
    mine = {"__init__.py": NODE, "requirements.txt": "pack-needs<2"}
    old = committed(pack, mine, 1)
    nodes = yaml.safe_load((world.locks / "custom_nodes.yml").read_text())
    nodes["variants"]["wan"] = ["own"]
    url = "https://github.com/own/pack.git"
    nodes["packs"] = {"own": {"repository": url, "commit": old, "requirements": ["requirements.txt"]}}
    (world.locks / "custom_nodes.yml").write_text("# Ours\n" + yaml.safe_dump(nodes))
    newer = committed(core, {"new.py": ""}, 10, "v9.9.10")
    between = committed(core, {"more.py": ""}, 11)
    of_its_time = committed(pack, {"requirements.txt": "pack-needs>=2"}, 20)
    too_new = committed(pack, {"requirements.txt": "no-such-package"}, 30)

    said = world.lock([], "-e", "comfyui=newest", "--check")
    assert "ComfyUI 9.9.10 of 2026-08-10, in place of 9.9.9" in said
    assert world.pinned() == ("9.9.9", world.comfyui, old)

    said = world.lock([], "-e", "comfyui=9.9.10")
    assert f"own {of_its_time[:12]} of 2026-08-20, in place of {old[:12]}" in said
    assert world.pinned() == ("9.9.10", newer, of_its_time)
    assert (world.locks / "custom_nodes.yml").read_text().startswith("# Ours\n")
    lock = (world.locks / "python/wan-cu128.txt").read_text()
    assert "pack-needs==2.0" in lock
    assert f"# Node packs: own {of_its_time[:12]}" in lock
    gate = yaml.safe_load((world.locks / "gate.yml").read_text())["packs"]["own"]
    assert (gate["commit"], gate["comfyui"]) == (of_its_time, newer)

    said = world.lock([], "-e", "comfyui=9.9.11")
    assert "has no tag v9.9.11; the newest there are v9.9.10, v9.9.9" in said
    named = {"comfyui": between, "comfyui_packs": {"own": old}}
    world.lock([], "-e", json.dumps(named))
    assert world.pinned() == (f"9.9.10+{between[:8]}", between, old)
    said = world.lock([], "-e", json.dumps({"comfyui": "9.9.9", "comfyui_packs": {"other": too_new}}))
    assert "comfyui_packs names other; the packs are own" in said
    assert world.pinned() == (f"9.9.10+{between[:8]}", between, old)


def test_report(world: World) -> None:
    upstream = yaml.safe_load((world.locks / "upstream.yml").read_text())
    for name in ("comfyui_api", "sageattention"):
        repository = upstream[name]["repository"].removeprefix("https://github.com/")
        upstream[name]["commit"] = committed(world.mirror / repository, {"README": name}, 3)
        committed(world.mirror / repository, {"NEWS": name}, 9)
    (world.locks / "upstream.yml").write_text(yaml.safe_dump(upstream))
    (world.locks / "python").mkdir()
    (world.locks / "python/a.txt").write_text(
        "pack-needs==1.0 ; python_version < '3' \\\n    --hash=sha256:0\ncore[video]==2.0\n"
    )
    said = world.lock([], "--tags", "report")
    assert f"ComfyUI {world.comfyui[:12]} of 2026-08-01, " in said
    assert f"SageAttention {upstream['sageattention']['commit'][:12]} of 2026-08-03, " in said
    assert "the newest commit is of 2026-08-09" in said
    assert "OSV was not reached, so nothing is known of advisories: " in said

    asked: list[Any] = []

    def osv(request: Request) -> None:
        """Know something of each version 1.0."""
        queries = json.loads(body(request))["queries"]
        asked.extend(queries)
        results = [{"vulns": [{"id": "PYSEC-2026-1"}]} if one.get("version") == "1.0" else {} for one in queries]
        reply(request, json.dumps({"results": results}).encode())

    with hosting(osv) as url:
        world.osv = f"{url}/"
        said = world.lock([], "--tags", "report")
    assert "Advisories of OSV for 5 commits and packages:" in said
    assert "pack-needs 1.0: PYSEC-2026-1" in said
    assert "core 2.0:" not in said
    assert {"package": {"name": "core", "ecosystem": "PyPI"}, "version": "2.0"} in asked
    assert {"commit": world.comfyui} in asked
