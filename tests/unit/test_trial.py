"""Parts of the trial of another ComfyUI on a lab host; tests/e2e/test_packs.py runs the whole of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import schemas as workflow_schemas
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import locks
from ansible_collections.wanmetal.comfyui.tests.lab import trial

GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "protocol.file.allow=always"]
KIND: dict[str, Any] = {
    "input": {"required": {"model": [[f"{trial.MARKER}.pt", "a.pt"]], "mode": [["one", "two"]]}, "optional": {}},
    "output": ["MODEL"],
    "output_node": False,
}
UPSTREAM = """# What a person has written stays.
environments:
  wan-cu128:
    disk_bytes: 1000
    # measured
    download_bytes: 500
    files: 10
  base-cu128:
    download_bytes: 400
    disk_bytes: 800
    files: 8
  base-cu130:
    download_bytes: 1
    disk_bytes: 2
    files: 3
comfyui:
  files: 7
"""


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run([*GIT, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def repository(folder: Path, *more: list[str]) -> str:
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet")
    (folder / "file").write_text(folder.name)
    for arguments in [*more, ["add", "."], ["commit", "--quiet", "--message=x"]]:
        git(folder, *arguments)
    return git(folder, "rev-parse", "HEAD")


def test_a_lab_host_gets_what_is_pinned_of_mirrors_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "STATE", tmp_path / "state")
    here, base = tmp_path / "here", "https://git.example"
    inner = repository(here / "o/inner")
    pack = repository(here / "o/pack", ["submodule", "--quiet", "add", str(here / "o/inner"), "sub"])
    (here / "o/pack/.gitmodules").write_text(f'[submodule "sub"]\n\tpath = sub\n\turl = {base}/o/inner\n')
    git(here / "o/pack", "commit", "--quiet", "--all", "--amend", "--message=y")
    pack = git(here / "o/pack", "rev-parse", "HEAD")
    longer = repository(here / "o/pack-more")
    git(here / "o/pack-more", "commit", "--quiet", "--allow-empty", "--message=newer")
    mirrors = [
        {"prefix": f"{base}/", "replacement": f"file://{here}/"},
        {"prefix": "https://elsewhere.example/", "replacement": "https://mirror.example/"},
    ]
    pins = {f"{base}/o/pack": pack, f"{base}/o/pack-more": longer, "https://elsewhere.example/x": "0" * 40}
    given = trial.for_lab(mirrors, pins)
    seen = f"file://{trial.STORE}/mirror/git.example/o/"
    assert given == [
        {"prefix": f"{base}/o/pack-more", "replacement": f"{seen}pack-more"},
        {"prefix": f"{base}/o/inner", "replacement": f"{seen}inner"},
        {"prefix": f"{base}/o/pack", "replacement": f"{seen}pack"},
        mirrors[1],
    ]
    for name, commit in (("pack", pack), ("pack-more", longer), ("inner", inner)):
        assert git(tmp_path / "state/store/mirror/git.example/o" / name, "rev-parse", "main") == commit
    assert trial.for_lab(mirrors[1:], pins) == mirrors[1:]


def test_node_types_are_recorded_by_pack_and_without_files(tmp_path: Path) -> None:
    info = {
        "Core": {**KIND, "python_module": "nodes"},
        "Paid": {**KIND, "python_module": "comfy_api_nodes.x"},
        "Own": {**KIND, "python_module": "custom_nodes.pack"},
        "Tests": {**KIND, "python_module": "custom_nodes.wanmetal_tests"},
    }
    trial.record(info, {"core": "a" * 40, "pack": "b" * 40}, tmp_path / "schemas")
    assert workflow_schemas.commits(tmp_path / "schemas") == {"core": "a" * 40, "pack": "b" * 40}
    recorded = workflow_schemas.recorded(tmp_path / "schemas")
    assert {name: one.pack for name, one in recorded.items()} == {"Core": "core", "Own": "pack"}
    assert [one.choices for one in recorded["Core"].inputs] == [None, ("one", "two")]
    del info["Own"]
    after = workflow_schemas.from_object_info(info)
    assert trial.gone(recorded, after, ["core", "pack"]) == ["Own of pack"]
    assert trial.gone(recorded, after, ["core"]) == []


def test_locks_that_were_moved_have_node_types_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas/core.json").write_text(workflow_schemas.write([], "c" * 40))
    upstream = locks.load("upstream")
    assert workflow_schemas.recorded_in("c" * 40, str(tmp_path)) == tmp_path / "schemas"
    assert workflow_schemas.recorded_in(upstream["comfyui"]["commit"], str(tmp_path)) == workflow_schemas.FOLDER
    assert workflow_schemas.recorded_in(upstream["practice"]["commit"], str(tmp_path)).name == "practice"
    assert workflow_schemas.recorded_in("c" * 40, str(tmp_path / "not there")) == workflow_schemas.FOLDER


def test_sizes_of_what_is_locked_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").mkdir()
    for name in ("wan-cu128", "base-cu128"):
        (tmp_path / f"python/{name}.txt").touch()
    fetched = {"wan-cu128": 600, "base-cu128": 500}
    monkeypatch.setattr(trial, "download_bytes", lambda lock: fetched[lock.stem])
    text = trial.with_sizes(UPSTREAM, tmp_path, "wan-cu128", 1111, 12)
    assert yaml.safe_load(text) == {
        "environments": {
            "wan-cu128": {"download_bytes": 600, "disk_bytes": 1111, "files": 12},
            "base-cu128": {"download_bytes": 500, "disk_bytes": 1000, "files": 10},
            "base-cu130": {"download_bytes": 1, "disk_bytes": 2, "files": 3},
        },
        "comfyui": {"files": 7},
    }
    assert re.findall("#.*", text) == re.findall("#.*", UPSTREAM)


def program(folder: Path, *wheels: str) -> Path:
    """A stand-in for uv, which says what it is asked for and answers with wheels."""
    rows = "".join(f'    {{ url = "https://f.example/a/{wheel}\n' for wheel in wheels)
    answer = f'lock-version = "1.0"\n[[packages]]\nname = "p"\nversion = "1"\nwheels = [\n{rows}]\n'
    uv = folder / "uv"
    uv.write_text(f"#!{sys.executable}\nprint({answer!r})\n")
    uv.chmod(0o755)
    return uv


@pytest.mark.parametrize(
    ("wheels", "size"),
    [
        (['p-1-py3-none-any.whl", size = 5, hashes = {} },'], 5),
        (
            [
                'p-1-py3-none-any.whl", upload-time = 2026-01-01T00:00:00Z, size = 9, hashes = {} },',
                'p-1-cp311-abi3-manylinux_2_28_x86_64.whl", upload-time = 2026-01-01, size = 7, hashes = {} },',
            ],
            7,
        ),
    ],
)
def test_what_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wheels: list[str], size: int) -> None:
    uv = program(tmp_path, *wheels)
    monkeypatch.setattr(shutil, "which", lambda _name: str(uv))
    assert trial.download_bytes(tmp_path / "lock.txt") == size


def test_an_index_without_sizes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv = program(tmp_path, 'p-1-py3-none-any.whl", hashes = {} },')
    monkeypatch.setattr(shutil, "which", lambda _name: str(uv))
    with pytest.raises(ValueError, match=r'lock.txt: the index states no size of "p"'):
        trial.download_bytes(tmp_path / "lock.txt")


@pytest.mark.parametrize(
    ("broken", "status", "said"),
    [
        ([], 0, "3 of 3 workflows render\n"),
        (["A does not render: no"], 1, "3 of 3 workflows render\nBROKE: A does not render: no\n"),
        (
            AssertionError("ansible-playbook ended with 2"),
            1,
            "BROKE: the trial ended early: ansible-playbook ended with 2",
        ),
    ],
)
def test_what_broke_is_reported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    broken: list[str] | AssertionError,
    status: int,
    said: str,
) -> None:
    def tried(settings: dict[str, Any], told: list[str]) -> list[str]:
        assert settings == {"wanmetal_variant": "wan"}
        print("what a command says")
        if isinstance(broken, AssertionError):
            raise broken
        told.append("3 of 3 workflows render")
        return broken

    removed: list[str] = []
    monkeypatch.setattr(trial, "STATE", tmp_path)
    monkeypatch.setattr(trial, "try_it", tried)
    monkeypatch.setattr(type(trial.worker), "remove", lambda worker: removed.append(worker.name))
    words = ["trial", f"--log={tmp_path}/reports/trial.log", json.dumps({"wanmetal_variant": "wan"})]
    monkeypatch.setattr(sys, "argv", words)
    assert trial.main() == status
    assert said in capsys.readouterr().out
    assert (tmp_path / "reports/trial.log").read_text() == "what a command says\n"
    assert removed == ["trial"]
    (tmp_path / "hosts.yml").write_text("gpu_hosts: {hosts: {trial: {}}}")
    assert trial.main() == status
    assert removed == ["trial"], "a host that was there already stays"
