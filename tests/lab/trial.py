#!/usr/bin/env python3
"""Try the locked ComfyUI and node packs on a lab host, as playbooks/lock.yml does after it has moved them.

It deploys, records node types in schemas/ beside the locks and sizes of environments in upstream.yml, gives the host
tiny models, and renders every shipped workflow that these allow. Prints what broke, and ends with 1 where something
did. What its commands say goes to the log. A host named trial that is there already is used, and stays.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / ".ansible/collections"))

from ansible_collections.wanmetal.comfyui.plugins.module_utils.locks.mirrors import rewrite
from ansible_collections.wanmetal.comfyui.plugins.module_utils.release.client import ComfyUIClient
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import check as workflow_check
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import schemas as workflow_schemas
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import to_api
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import locks, workflows

from tests.e2e import tiny_worker
from tests.tiny import rendering
from tests.worker import LAB, STATE, Worker, run

MARKER = "wanmetal-marker"
STORE = "/srv/wanmetal"  # on hosts of the lab, the store beside their state
SUFFIXES = ("safetensors", "pt", "png", "mp4", "wav", "obj")
# Threads that wait for each other slow a busy machine down.
SETTINGS: dict[str, Any] = {
    "comfyui_start_timeout": 300,
    "comfyui_environment": {"OMP_NUM_THREADS": "1"},
    "jupyterlab_enabled": False,
}
worker = Worker("trial")


# -- sources


def for_lab(mirrors: list[dict[str, str]], pins: Mapping[str, str]) -> list[dict[str, str]]:
    """The mirrors for a lab host. It sees no folder of this machine, so what is pinned there is copied to its store."""
    copied, left = {}, dict(pins)
    while left:
        url, commit = left.popitem()
        source = rewrite(url, mirrors)
        if source.startswith("file://"):
            copied[url] = f"mirror/{url.partition('://')[2]}"
            to = STATE / "store" / copied[url]
            run("git", "init", "--quiet", "--bare", to)
            run("git", "-C", to, "fetch", "--quiet", "--depth=1", source, f"+{commit}:refs/heads/main")
            left |= submodules(to, commit)
    # The longer ones first: an address may begin with another one.
    own = [
        {"prefix": url, "replacement": f"file://{STORE}/{copied[url]}"} for url in sorted(copied, key=len, reverse=True)
    ]
    return own + [one for one in mirrors if not one["replacement"].startswith("file://")]


def submodules(repository: Path, commit: str) -> dict[str, str]:
    """Addresses and commits of the submodules of a commit."""
    listed = run(
        "git", "-C", repository, "ls-tree", "-r", "--format=%(objecttype) %(objectname) %(path)", commit
    ).stdout
    found = re.findall(r"^commit (\S+) (.+)$", listed, re.MULTILINE)
    modules = run("git", "-C", repository, "show", f"{commit}:.gitmodules").stdout if found else ""
    addresses = dict(re.findall(r"path = (.+)\n\s*url = (\S+)$", modules, re.MULTILINE))
    return {addresses[path]: id_ for id_, path in found}


# -- node types


@contextlib.contextmanager
def markers(address: str) -> Iterator[None]:
    """Put a file into each folder of models, and into input: choices that show it are files, and are not recorded."""
    with urllib.request.urlopen(f"{address}/experiment/models", timeout=60) as answer:
        folders = {folder for kind in json.load(answer) for folder in kind["folders"]}
    # Files that packs bring are fixed choices.
    folders = {folder for folder in folders if "/custom_nodes/" not in folder}
    names = " ".join(f"{MARKER}.{suffix}" for suffix in SUFFIXES)
    each = f"for folder in {' '.join(map(shlex.quote, [*sorted(folders), f'{tiny_worker.DATA}/input']))}; do"
    make = f'{each} mkdir -p "$folder"; cd "$folder"; touch {names}; done; sleep 1'  # a change is seen by its time
    worker.ssh(f"sudo sh -ec {shlex.quote(make)}")
    try:
        yield
    finally:
        remove = f'{each} cd "$folder"; rm -f {names}; done'
        worker.ssh(f"sudo sh -ec {shlex.quote(remove)}")


def record(info: Mapping[str, Any], commits: Mapping[str, str], folder: Path) -> None:
    """Write what node types take and give, by pack, each with the commit that it has."""
    by_pack = defaultdict(list)
    for one in workflow_schemas.from_object_info(info, MARKER).values():
        if not str(info[one.name]["python_module"]).startswith("comfy_api_nodes"):  # they call paid services
            by_pack[one.pack].append(one)
    folder.mkdir(exist_ok=True)
    for pack, commit in commits.items():
        (folder / f"{pack}.json").write_text(workflow_schemas.write(by_pack[pack], commit), encoding="utf-8")


def gone(before: Mapping[str, Any], after: Mapping[str, Any], packs: Iterable[str]) -> list[str]:
    """Node types that ComfyUI or a pack had, and has no more."""
    return sorted(f"{name} of {one.pack}" for name, one in before.items() if one.pack in packs and name not in after)


# -- sizes


def download_bytes(lock: Path) -> int:
    """What is fetched for an environment, as the index states it. Of several wheels, one made for the system counts."""
    uv = shutil.which("uv") or PROJECT / ".venv/uv/bin/uv"
    system = ("--python-version=3.11", "--python-platform=x86_64-manylinux_2_36")
    command = [uv, "pip", "compile", "--quiet", "--no-deps", "--no-header", "--format=pylock.toml", *system, lock]
    total = 0
    for package in subprocess.check_output(command, text=True).split("[[packages]]")[1:]:
        wheels = re.findall(r'url = "[^"]*?([^"/]+\.whl)".*? size = (\d+)', package)
        if not wheels:
            raise ValueError(f"{lock}: the index states no size of {package.split()[2]}")
        total += max((not name.endswith("-any.whl"), int(size)) for name, size in wheels)[1]
    return total


def with_sizes(text: str, folder: Path, name: str, disk_bytes: int, files: int) -> str:
    """The text of upstream.yml with the sizes of the environments that are locked in a folder.

    One is measured on its host. The others take as much more or less of disk as they take to fetch.
    """
    for other, sizes in yaml.safe_load(text)["environments"].items():
        lock = folder / f"python/{other}.txt"
        if not lock.is_file():
            continue
        fetched = download_bytes(lock)
        more = fetched / sizes["download_bytes"]
        new = {
            "download_bytes": fetched,
            "disk_bytes": round(sizes["disk_bytes"] * more),
            "files": round(sizes["files"] * more),
        }
        new |= {"disk_bytes": disk_bytes, "files": files} if other == name else {}
        for key, value in new.items():
            text = re.sub(rf"(?m)(^  {other}:\n(?:    .*\n)*?    {key}: )\d+$", rf"\g<1>{value}", text)
    return text


# -- the trial


def try_it(settings: dict[str, Any], told: list[str]) -> list[str]:
    """Deploy, record and render; return what broke, and tell what was seen."""
    own = settings.get("wanmetal_locks_dir", "")
    folder = Path(own) if own else locks.SHIPPED
    upstream, nodes = locks.load("upstream", own), locks.load("custom_nodes", own)
    variant = settings["wanmetal_variant"]
    packs = {name: nodes["packs"][name] for name in nodes["variants"][variant]}
    packs |= {pack["name"]: pack for pack in settings.get("custom_nodes_extra", [])}
    pins = {pack["repository"]: pack["commit"] for pack in [upstream["comfyui"], *packs.values()]}
    settings["wanmetal_mirrors"] = for_lab(settings.get("wanmetal_mirrors", []), pins)
    settings |= SETTINGS
    for step in ("engine", "image"):
        run(*LAB, step)
    worker.up()
    worker.playbook("site.yml", "-e", json.dumps(settings))
    broken = []
    with tiny_worker.forward(worker) as address:
        with markers(address):
            info = ComfyUIClient(address, 60).object_info()
        commits = {workflow_schemas.CORE: upstream["comfyui"]["commit"]}
        commits |= {name: pack["commit"] for name, pack in packs.items()}
        schemas = workflow_schemas.from_object_info(info, MARKER)
        lost = gone(workflow_schemas.recorded(), schemas, commits)
        told.append(f"{len(schemas)} node types" + (f"; no more there: {', '.join(lost)}" if lost else ""))
        record(info, commits, folder / "schemas")
        environment = f"/srv/wanmetal/hosts/{worker.name}/current/venv"
        used = worker.ssh(
            f"sudo du -s -D --block-size=1 {environment}; sudo find {environment}/ -mindepth 1 | wc -l"
        ).split()
        name, text = f"{variant}-{settings['wanmetal_lane']}", locks.find("upstream", own).read_text(encoding="utf-8")
        text = with_sizes(text, folder, name, int(used[0]), int(used[-1]))
        (folder / "upstream.yml").write_text(text, encoding="utf-8")
        told.append(f"{name} takes {int(used[0]) / 1e9:.1f} GB of disk")
        ours = [name for name, one in workflows.index().items() if set(one["packs"]) <= packs.keys()]
        for name in ours:
            try:
                wrong = workflow_check.problems(to_api(workflows.load(name), schemas), schemas, strict=True)
            except ValueError as error:
                wrong = [str(error)]
            broken += [f"{name} is not accepted: {line}" for line in wrong]
        tiny = [name for name in ours if name not in rendering.LEFT_OUT]
        tiny_worker.equip(worker, tiny, json.dumps(settings))
    with tiny_worker.forward(worker) as address:
        client = ComfyUIClient(address, 60)
        known, rendered = client.object_info(), 0
        for name in tiny:
            try:
                rendering.prove(client, known, name, vary=False)
                rendered += 1
            except Exception as error:  # whatever it is, it is what broke
                broken.append(f"{name} does not render: {error}")
    told.append(f"{rendered} of {len(tiny)} workflows render")
    told += [f"{name} is checked, not rendered: {why}" for name, why in rendering.LEFT_OUT.items() if name in ours]
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "settings", type=json.loads, help="of the deploy, in JSON: variant, CUDA version, locks, mirrors, packs"
    )
    parser.add_argument("--log", type=Path, default=PROJECT / "reports/trial.log", help="what the commands say")
    arguments = parser.parse_args()
    os.environ.pop("WANMETAL_STAGES_CHANGED_FILE", None)
    arguments.log.parent.mkdir(parents=True, exist_ok=True)
    hosts = STATE / "hosts.yml"
    stays = hosts.exists() and worker.name in yaml.safe_load(hosts.read_text())["gpu_hosts"]["hosts"]
    told: list[str] = []
    with arguments.log.open("w") as log, contextlib.redirect_stdout(log):
        try:
            broken = try_it(arguments.settings, told)
        except Exception as error:  # whatever it is, what was seen before it is worth telling
            broken = [f"the trial ended early: {error}"]
        finally:
            if not stays:
                worker.remove()
    print("\n".join(told + [f"BROKE: {line}" for line in broken]))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
