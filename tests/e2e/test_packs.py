"""Every workflow on the pinned ComfyUI with the real packs, which WANMETAL_MIRROR offers, such as file:///srv/mirror/.

A mirror may lack files that no test needs. So all are mirrored with what it has, and pinned at commits of that.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.client import ComfyUIClient
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import custom_nodes, locks, workflows

from tests.e2e import tiny_worker
from tests.tiny import rendering
from tests.worker import PROJECT, STATE, Worker, run

pytestmark = pytest.mark.slow
worker = Worker("packs1")
LOCK = "python/wan-cu128.txt"
GITHUB = "https://github.com/"
NAMES = [name for name in workflows.index() if name not in rendering.LEFT_OUT]


def mirrored(mirror: str, pack: dict[str, Any], to: Path) -> str:
    """Mirror what there is of a pack, or all of one with submodules; return the commit that has it."""
    name = pack["repository"].removeprefix(GITHUB).removesuffix(".git")
    git = ["git", "--git-dir", f"{mirror.removeprefix('file://').rstrip('/')}/{name}.git"]
    listed = run(*git, "ls-tree", "-r", "--format=%(objecttype) %(objectname) %(path)", pack["commit"]).stdout
    if submodules := dict(re.findall(r"^commit (\S+) (.+)$", listed, re.MULTILINE)):
        modules = run(*git, "show", f"{pack['commit']}:.gitmodules").stdout
        addresses = dict(re.findall(rf"path = (.+)\n\s*url = {GITHUB}(\S+?)(?:\.git)?$", modules, re.MULTILINE))
        for repository, commit in (
            (name, pack["commit"]),
            *((addresses[path], id_) for id_, path in submodules.items()),
        ):
            run("git", "init", "--quiet", "--bare", to / f"{repository}.git")
            source = f"{mirror.rstrip('/')}/{repository}.git"
            run("git", "-C", to / f"{repository}.git", "fetch", "--depth=1", source, f"+{commit}:refs/heads/main")
        return str(pack["commit"])
    files = [line.split(" ", 2)[1:] for line in listed.splitlines()]  # several may be the same
    ids = "".join(f"{id_}\n" for id_, _unused in files)
    found = subprocess.run([*git, "cat-file", "--batch-check"], input=ids, capture_output=True, text=True, check=True)
    lines = zip(files, found.stdout.splitlines(), strict=True)
    there = [path for (_unused, path), line in lines if line.split()[1] == "blob"]
    script = PROJECT / "molecule/shared/mirror_repository"
    return run(script, mirror.rstrip("/"), name, pack["commit"], to, *there).stdout.split()[-1]


@dataclass(frozen=True)
class Deployed:
    """A worker's ComfyUI with tiny models, its node types, and how it was deployed, for ansible-playbook -e."""

    client: ComfyUIClient
    known: dict[str, Any]
    settings: str


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """A worker of variant wan, with models for all workflows."""
    mirror = os.environ.get("WANMETAL_MIRROR", "")
    if not mirror:
        pytest.skip("WANMETAL_MIRROR is not set: workflows are NOT rendered on the pinned ComfyUI with its packs")
    own = tmp_path_factory.mktemp("locks")
    lock, text = locks.load("custom_nodes"), locks.find(LOCK).read_text(encoding="utf-8")
    for name in lock["variants"]["wan"]:
        pack = lock["packs"][name]
        made = mirrored(mirror, pack, STATE / "store/mirror")
        text = text.replace(custom_nodes.label(name, pack["commit"]), custom_nodes.label(name, made))
        pack["commit"] = made
    upstream = locks.load("upstream")
    upstream["comfyui"]["commit"] = mirrored(mirror, upstream["comfyui"], STATE / "store/mirror")
    (own / "upstream.yml").write_text(yaml.safe_dump(upstream), encoding="utf-8")
    (own / "python").mkdir()
    (own / LOCK).write_text(text, encoding="utf-8")
    (own / "custom_nodes.yml").write_text(yaml.safe_dump(lock), encoding="utf-8")
    settings = {
        "wanmetal_variant": "wan",
        "wanmetal_locks_dir": str(own),
        "wanmetal_mirrors": [{"prefix": GITHUB, "replacement": "file:///srv/wanmetal/mirror/"}],
        "comfyui_start_timeout": 300,
        "comfyui_environment": {"OMP_NUM_THREADS": "1"},  # threads that wait for each other slow a busy machine down
        "jupyterlab_enabled": False,
    }
    worker.remove()
    worker.up()
    worker.playbook("site.yml", "-e", json.dumps(settings))
    tiny_worker.equip(worker, NAMES)
    with tiny_worker.forward(worker) as address:
        client = ComfyUIClient(address, 60)
        yield Deployed(client, client.object_info(), json.dumps(settings))
    worker.remove()


@pytest.mark.parametrize("name", NAMES)
def test_workflow_renders(name: str, deployed: Deployed) -> None:
    rendering.prove(deployed.client, deployed.known, name)


def test_verification_renders_wan(deployed: Deployed, tmp_path: Path) -> None:
    said = worker.playbook("playbooks/verify.yml", "-e", deployed.settings, "-e", f"verify_output_dir={tmp_path}")
    assert "Native-TextToVideo-1.3B, 256x256, 9 frames at 16 fps" in said


def test_browser_opens_every_workflow(deployed: Deployed) -> None:
    for name, found in tiny_worker.browse(worker, deployed.client.url, list(workflows.index())).items():
        if name in rendering.LEFT_OUT:  # the page marks loaders whose files are not there
            assert all("Loader" in kind for kind in found["red"]), found["red"]
            found["red"] = []
        tiny_worker.assert_same(name, found)
