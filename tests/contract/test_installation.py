"""An existing ComfyUI comes over: its folder, its snapshot or its comfy-build.yaml, and what is made of it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.installation import InstallationError, look
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import installation
from ansible_collections.wanmetal.comfyui.tests.contract import house
from ansible_collections.wanmetal.comfyui.tests.trees import deep

COMMIT = "bdddb08ca82d90d75d97b1d437a652e0284a32ac"
CATALOGUE: dict[str, Any] = {
    "files": {
        "a-vae": {
            "name": "a_vae.safetensors",
            "folder": "vae",
            "bytes": 9,
            "sha256": hashlib.sha256(b"a" * 9).hexdigest(),
        },
        "no-hash": {"name": "b.safetensors", "folder": "loras", "bytes": 5, "sha256": None},
    }
}


def git(folder: Path, *arguments: str) -> str:
    names = {f"GIT_{who}_{what}": "t@t.t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    command = ["git", "-c", "commit.gpgsign=false", "-C", str(folder), *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **names}
    ).stdout.strip()


def pack(place: Path, remote: str = "", *, pushed: bool = True) -> str:
    """Make a checkout; return its commit."""
    place.mkdir(parents=True)
    git(place, "init", "-q", "-b", "main")
    (place / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    git(place, "add", ".")
    git(place, "commit", "-q", "-m", "one")
    if remote:
        git(place, "remote", "add", "origin", remote)
    if pushed:
        git(place, "update-ref", "refs/remotes/origin/main", "HEAD")
    return git(place, "rev-parse", "HEAD")


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    """Return a folder with one of everything."""
    top = tmp_path / "ComfyUI"
    nodes, models = top / "custom_nodes", top / "models"
    pack(nodes / "ComfyLiterals", "git@github.com:M1kep/ComfyLiterals.git")
    pack(nodes / "Secret", "https://me:ghp_secret@git.example.com/me/Secret")
    pack(nodes / "ComfyUI-KJNodes", "https://github.com/kijai/ComfyUI-KJNodes")
    pack(nodes / "ComfyUI-Manager", "https://github.com/ltdrdata/ComfyUI-Manager.git")
    pack(nodes / "Dirty", "https://github.com/me/Dirty.git", pushed=False)
    (nodes / "Dirty" / "__init__.py").write_text("import os\n")
    (nodes / "Dirty" / "requirements.txt").write_text("numpy\n")
    pack(nodes / "Local")
    pack(nodes / ".disabled" / "Off", "https://github.com/me/Off.git")
    (nodes / "Plain").mkdir()
    registry = nodes / "comfyui-impact-pack"
    registry.mkdir()
    (registry / ".tracking").touch()
    (registry / "pyproject.toml").write_text(
        '[project]\nname = "comfyui-impact-pack"\nversion = "8.1.0"\n[project.urls]\nRepository = "https://example.com/x"\n'
    )
    (nodes / "one.py").touch()
    (nodes / "websocket_image_save.py").touch()
    (nodes / "__pycache__").mkdir()
    (top / "comfyui_version.py").write_text('# made by a machine\n__version__ = "0.3.75"\n')
    (top / "main.py").write_text("import sys, time\nprint('up', flush=True)\ntime.sleep(300)\n")
    for name, data in {
        "clip/renamed.safetensors": b"a" * 9,
        "vae/other.safetensors": b"b" * 9,
        "loras/mine.pt": b"cc",
    }.items():
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).write_bytes(data)
    (models / "loras" / "put_loras_here").touch()
    (top / "user/default/workflows").mkdir(parents=True)
    (top / "user/default/workflows/mine.json").write_text("{}")
    return top


def imported(found: dict[str, Any]) -> tuple[dict[str, Any], str]:
    made = installation.settings(
        found,
        catalogue=CATALOGUE,
        shipped=["ComfyUI-KJNodes"],
        repositories={"ComfyUI-Impact-Pack": "https://github.com/ltdrdata/ComfyUI-Impact-Pack.git"},
        comfyui={"version": "0.33.0", "commit": "2" * 40},
    )
    text = installation.fragment(made, source="there")
    assert (yaml.safe_load(text) or {}) == made["settings"]
    return made["settings"], "\n".join(made["notes"])


def test_a_folder_comes_over(comfyui: Path) -> None:
    found = look(comfyui, CATALOGUE["files"])
    settings, notes = imported(found)
    commits = {
        name: git(comfyui / "custom_nodes" / name, "rev-parse", "HEAD") for name in ("ComfyLiterals", "Dirty", "Secret")
    }
    assert settings == {
        "custom_nodes_extra": [
            {
                "name": "ComfyLiterals",
                "repository": "https://github.com/M1kep/ComfyLiterals.git",
                "commit": commits["ComfyLiterals"],
            },
            {
                "name": "Dirty",
                "repository": "https://github.com/me/Dirty.git",
                "commit": commits["Dirty"],
                "requirements": ["requirements.txt"],
            },
            {"name": "Secret", "repository": "https://git.example.com/me/Secret", "commit": commits["Secret"]},
        ],
        "wan_models_sets": [],
        "wan_models_files": ["a-vae"],
        "wan_models_existing": [str(comfyui / "models")],
        "comfyui_extra_model_paths": [str(comfyui / "models")],
    }
    assert "ghp_secret" not in notes
    for said in (
        "ComfyUI there is 0.3.75; 0.33.0 takes its place",
        "Secret: its address had a password or a user in it",
        "Dirty: changed here, and the changes are not taken over: __init__.py",
        "Dirty: its commit is in no branch that was fetched",
        "Local is left out: its git repository has no remote",
        "Off is left out: it is disabled there",
        "Plain is left out: it is no git repository",
        "comfyui-impact-pack is left out: it is comfyui-impact-pack 8.1.0 of https://example.com/x of ComfyUI's "
        "registry, which names no commit. Find its commit in https://github.com/ltdrdata/ComfyUI-Impact-Pack.git, and ",
        "one.py is left out: it is a single file",
        "ComfyUI-KJNodes is left out: the variant has it",
        "ComfyUI-Manager is left out",
        "clip/renamed.safetensors gets the catalogue's name, vae/a_vae.safetensors",
        "loras/mine.pt (2 B), vae/other.safetensors (9 B)",
        f"workflows are in {comfyui}/user/default/workflows",
    ):
        assert said in notes
    assert not {"websocket_image_save", "put_loras_here", "__pycache__"} & set(notes.replace(",", " ").split())


def test_looking_runs_nothing_that_a_repository_names(comfyui: Path, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    bait = tmp_path / "bait.sh"
    bait.write_text(f"#!/bin/sh\ntouch {trap}\n")
    bait.chmod(0o755)
    inside = comfyui / "custom_nodes" / "Dirty"
    git(inside, "config", "core.fsmonitor", str(bait))
    git(inside, "config", "core.hooksPath", str(tmp_path))
    before = sorted(str(path) for path in comfyui.rglob("*"))
    look(comfyui, {})
    assert not trap.exists()
    assert sorted(str(path) for path in comfyui.rglob("*")) == before


@pytest.fixture
def running(comfyui: Path) -> Iterator[Path]:
    options = [
        "--listen",
        "0.0.0.0",  # noqa: S104
        "--port=9000",
        "--highvram",
        "--use-sage-attention",
        "--fast",
        "--reserve-vram",
        "2",
    ]
    with subprocess.Popen([sys.executable, "main.py", *options], cwd=comfyui, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield comfyui
        process.kill()


def test_the_options_of_a_running_one_become_settings(running: Path) -> None:
    settings, notes = imported(look(running, {}))
    assert {name: value for name, value in settings.items() if not name.startswith(("custom", "wan"))} == {
        "comfyui_extra_model_paths": [str(running / "models")],
        "comfyui_port": 9000,
        "comfyui_vram_mode": "highvram",
        "sageattention_enabled": True,
        "comfyui_extra_args": ["--fast", "--reserve-vram", "2"],
    }
    assert "listens on all addresses" in notes


def test_what_is_no_installation_is_said(tmp_path: Path, comfyui: Path) -> None:
    with pytest.raises(InstallationError, match="there is no folder"):
        look(tmp_path / "none", {})
    with pytest.raises(InstallationError, match=f"has none of main.py.*Name {comfyui}"):
        look(tmp_path, {})


SNAPSHOT: dict[str, Any] = {
    "comfyui": "1" * 40,
    "git_custom_nodes": {
        "https://github.com/M1kep/ComfyLiterals": {"hash": COMMIT, "disabled": False},
        "https://github.com/me/Off.git": {"hash": COMMIT, "disabled": True},
        "https://github.com/me/Broken.git": {"hash": "main", "disabled": False},
    },
    "cnr_custom_nodes": {"comfyui-kjnodes": "1.1.6", "unheard-of": "2.0.0"},
    "file_custom_nodes": [
        {"filename": "websocket_image_save.py", "disabled": False},
        {"filename": "x.py", "disabled": False},
    ],
    "pips": {"torch==2.11.0": ""},
}


@pytest.mark.parametrize(
    "text", [json.dumps(SNAPSHOT), yaml.safe_dump({"custom_nodes": SNAPSHOT})], ids=["json", "yaml"]
)
def test_a_snapshot_comes_over(text: str) -> None:
    settings, notes = imported(installation.read(text))
    entry = {"name": "ComfyLiterals", "repository": "https://github.com/M1kep/ComfyLiterals", "commit": COMMIT}
    assert settings == {"custom_nodes_extra": [{**entry, "requirements": ["requirements.txt"]}]}
    for said in (
        "requirements: [requirements.txt] is assumed",
        "Off is left out: it is disabled there",
        "Broken is left out: custom_nodes_extra would hold Broken at commit 'main'",
        "comfyui-kjnodes is left out: the variant has it",
        "unheard-of is left out: it is unheard-of 2.0.0 of ComfyUI's registry",
        "x.py is left out",
        "ComfyUI there is 111111111111",
    ):
        assert said in notes


def test_a_comfy_build_comes_over() -> None:
    known = CATALOGUE["files"]["a-vae"]["sha256"]
    definition = {
        "baseComfyVersion": "v0.33.0",
        "models": [
            {"type": "vae", "filename": "x.safetensors", "sourceUri": "https://example.com/x", "sha256": known},
            {"type": "loras", "sourceUri": "https://example.com/deep/mine.safetensors?download=true"},
            {"type": "loras", "filename": "own.safetensors", "blobId": "b1"},
        ],
        "customNodes": [
            {"name": "Literals", "repository": "https://github.com/M1kep/ComfyLiterals", "gitRef": COMMIT},
            {"name": "Kept", "id": "kept", "registryVersion": "1.0.0"},
            {"name": "Blob", "blobId": "b2"},
        ],
    }
    settings, notes = imported(installation.read(yaml.safe_dump({"schema": "comfy-build/1", "definition": definition})))
    assert settings["wan_models_files"] == [
        "a-vae",
        {
            "name": "mine.safetensors",
            "folder": "loras",
            "url": "https://example.com/deep/mine.safetensors?download=true",
        },
    ]
    assert [one["name"] for one in settings["custom_nodes_extra"]] == ["ComfyLiterals"]
    assert "ComfyUI there is" not in notes
    for said in ("loras/own.safetensors is left out", "Kept is left out: it is kept 1.0.0", "Blob is left out"):
        assert said in notes


@pytest.mark.parametrize("text", ["[]", "{}", '{"nodes": []}', "a: [", "definition: 3"])
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        installation.read(text)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"git_custom_nodes": ["https://github.com/me/x"]}, "git_custom_nodes"),
        ({"git_custom_nodes": "x"}, "git_custom_nodes"),
        ({"cnr_custom_nodes": [{"name": "x"}]}, "cnr_custom_nodes"),
        ({"file_custom_nodes": 5}, "file_custom_nodes"),
        ({"file_custom_nodes": [None]}, "file_custom_nodes"),
        ({"definition": {"customNodes": ["x"]}}, "customNodes"),
        ({"definition": {"customNodes": {"x": {}}}}, "customNodes"),
        ({"definition": {"models": [None]}}, "models"),
        ({"definition": {"models": 5}}, "models"),
    ],
)
def test_parts_of_another_shape_are_named(data: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"{said}: found .* needed is a"):
        installation.read(json.dumps(data))


LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    "text",
    [
        *("[" * 5000, "a: 2024-13-45", "a: " + "9" * 5000, "git_custom_nodes: {<<: 5}"),
        *(f"{LAUGHS}git_custom_nodes: {{u: {{hash: *a11}}}}", "git_custom_nodes: &own {u: *own}"),
    ],
)
def test_what_yaml_cannot_be_made_of_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither JSON nor YAML"):
        installation.read(text)


def build(**definition: Any) -> dict[str, Any]:
    return installation.read(yaml.safe_dump({"definition": definition}))


LORA = {"type": "loras", "filename": "x.safetensors", "sourceUri": "https://example.com/x.safetensors"}
JINJA = "{{ lookup('pipe', 'id') }}"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"type": None}, "folder must be a path"),
        ({"type": "../x"}, "folder must be a path"),
        ({"filename": "../../x"}, "name must be a plain file name"),
        ({"sourceUri": "huggingface://me/x"}, "urls must begin with"),
        ({"sourceUri": ["https://example.com/x"]}, "urls must begin with"),
        ({"sourceUri": "https://civitai.com/api/download/models/5?token=hidden"}, "a token in url"),
        ({"sourceUri": "https://me:hidden@example.com/x"}, "a password"),
        ({"sha256": "zz"}, "64 hexadecimal digits"),
        ({"sourceUri": "https://example.com/other"}, "two different files"),
        ({"filename": JINJA}, "template"),
        ({"sourceUri": f"https://example.com/{JINJA}"}, "template"),
        ({"type": "{% set x = 1 %}"}, "template"),
    ],
)
def test_models_that_a_deploy_would_refuse_or_run_are_left_out(model: dict[str, Any], said: str) -> None:
    settings, notes = imported(build(models=[LORA, {**LORA, **model}]))
    assert [entry["url"] for entry in settings["wan_models_files"]] == [LORA["sourceUri"]]
    assert "is left out of wan_models_files" in notes
    assert said in notes
    assert "hidden" not in notes


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "99999"],
        ["--port", "80"],
        ["--port", "²"],
        ["--preview-method", "best"],
        ["--preview-method"],
        ["--lowv"],
        ["--fast", "two\nlines"],
        ["--fast", JINJA],
        ["--fast", ""],
    ],
)
def test_options_that_a_deploy_would_refuse_or_run_are_left_out(arguments: list[str]) -> None:
    settings, notes = imported({"arguments": arguments})
    assert settings == {}
    assert "is left out: " in notes


def test_packs_and_folders_that_ansible_would_run_are_left_out() -> None:
    pack = {"name": "x", "repository": "https://example.com/{{x}}/x", "commit": COMMIT}
    models = [{"path": "x.pt", "bytes": 5, "id": ""}]
    settings, notes = imported({"packs": [pack], "models": models, "models_dir": f"/srv/{JINJA}"})
    assert not settings["custom_nodes_extra"]
    assert not settings["comfyui_extra_model_paths"]
    assert notes.count("template") == 2


def test_names_that_are_no_utf_8_come_over(tmp_path: Path) -> None:
    for folder in ("custom_nodes", "models/loras"):
        (tmp_path / folder).mkdir(parents=True)
        Path(os.fsdecode(os.fsencode(tmp_path / folder / "x") + b"\xff.pt")).write_bytes(b"x")
    (tmp_path / os.fsdecode(b"custom_nodes/\xff")).mkdir()
    found = look(tmp_path, {})
    json.dumps(found, ensure_ascii=False).encode()
    assert "loras/x\ufffd.pt" in imported(found)[1]


def test_links_in_circles_deep_folders_and_addresses_that_are_no_utf_8_come_over(tmp_path: Path) -> None:
    for folder in ("custom_nodes", "user/default/workflows"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "models").symlink_to("models")
    pack(tmp_path / "custom_nodes/Pack", os.fsdecode(b"https://example.com/\xff.git"))
    with deep(tmp_path / "user/default/workflows", "deep.json"):
        found = look(tmp_path, {})
    assert (found["models"], found["workflows"]) == ([], "")
    assert found["packs"][0]["repository"] == "https://example.com/\ufffd.git"


def test_notes_with_names_of_others_are_a_file_that_ansible_reads() -> None:
    made = installation.settings(
        {"packs": [{"name": "a\x1b]52;c;\x07\ud800\u2028b", "disabled": False, "problem": "no"}]}, catalogue=CATALOGUE
    )
    text = installation.fragment(made, source="here")
    assert "a ]52;c;" in text
    assert yaml.safe_load(text) == {}


def play(folder: Path, name: str) -> tuple[int, str]:
    return house.play("import.yml", folder, installation=name, import_output_dir=str(folder / "out"))


def test_the_settings_are_written_once_and_never_over_others(comfyui: Path, tmp_path: Path) -> None:
    written = tmp_path / "out" / "here.yml"
    rc, said = play(tmp_path, str(comfyui))
    assert rc == 0, said
    assert f"the settings are in {written}" in said
    text = written.read_text()
    assert len(yaml.safe_load(text)["custom_nodes_extra"]) == 3
    assert "# - Local is left out: its git repository has no remote" in text
    (tmp_path / "snapshot.json").write_text(json.dumps(SNAPSHOT))
    rc, said = play(tmp_path, "snapshot.json")
    assert rc != 0
    assert f"{written} is there already and says something else" in " ".join(said.split())
    assert written.read_text() == text
    written.rename(written.with_suffix(".old"))
    rc, said = play(tmp_path, "snapshot.json")
    assert rc == 0, said
    assert len(yaml.safe_load(written.read_text())["custom_nodes_extra"]) == 1


def test_an_import_that_is_killed_is_finished_by_the_next(comfyui: Path, tmp_path: Path) -> None:
    for task in (
        "Look at the installation",
        "Make the folder for the settings",
        "Write the settings, unless there are some",
    ):
        given = {"installation": str(comfyui), "import_output_dir": str(tmp_path / "out")}
        with house.started("import.yml", tmp_path, **given) as process:
            assert process.stdout is not None
            assert any(f"TASK [{task}]" in line for line in process.stdout)
            os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
    rc, said = play(tmp_path, str(comfyui))
    assert rc == 0, said
    assert len(yaml.safe_load((tmp_path / "out/here.yml").read_text())["custom_nodes_extra"]) == 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["here.yml"]
