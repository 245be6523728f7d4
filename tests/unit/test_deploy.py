"""What ./deploy runs, with stand-ins for the programs that it starts."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def deploy(folder: Path, *arguments: str, status: int = 0, meanwhile: str = ":") -> tuple[str, list[list[str]]]:
    """What it says, and the commands that it runs, each of which runs another meanwhile."""
    log = folder / "log"
    for name in ("tools/venv", ".venv/deploy/bin/python", ".venv/deploy/bin/ansible-playbook"):
        program = folder / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f'#!/bin/sh\necho {program.name} "$@" >> {log}\n{meanwhile}\n')
        program.chmod(0o755)
    (folder / "deploy").write_text(DEPLOY.read_text())
    command = ["sh", str(folder / "deploy"), *arguments]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "WANMETAL_LAB_DIR": str(folder / "lab")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr, [
        shlex.split(line) for line in log.read_text().splitlines()
    ] if log.exists() else []


def test_the_lab_s_deploy_touches_its_host_alone(tmp_path: Path) -> None:
    (tmp_path / "playbooks").symlink_to(DEPLOY.parent / "playbooks")
    _, commands = deploy(tmp_path, "--lab", "-e", "comfyui_port=8190", "--tags", "comfyui")
    own = str(tmp_path / "lab/lab1.yml")
    assert ["python", str(tmp_path / "tests/lab/lab.py"), "up", "--inventory", own, "lab1"] in commands
    plays = [command[1:] for command in commands if command[0] == "ansible-playbook"]
    assert [Path(play[0]).name for play in plays] == ["site.yml", "models.yml", "verify.yml"]
    for play in plays:
        assert play[1:5] == ["-i", str(tmp_path / "inventories/lab"), "-i", own]
        assert play[5:7] == ["-e", "comfyui_port=8190"]
        assert ("--tags" in play) == play[0].endswith("site.yml")


@pytest.mark.parametrize("look", ["--check", "-C", "--syntax-check", "--list-tasks"])
def test_a_look_renders_nothing(look: str, tmp_path: Path) -> None:
    _, commands = deploy(tmp_path, "--lab", look)
    assert [command[1] for command in commands if command[0] == "ansible-playbook"] == [str(tmp_path / "site.yml")]


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("--lab", "--help"), ("--lab", "-e", "a=b", "-h")])
def test_help_runs_nothing(arguments: tuple[str, ...], tmp_path: Path) -> None:
    said, commands = deploy(tmp_path, *arguments)
    assert said.startswith("./deploy init")
    assert commands == []


@pytest.mark.parametrize("name", ["status", "logs"])
def test_an_operation_is_a_playbook_of_its_name(name: str, tmp_path: Path) -> None:
    book = tmp_path / "playbooks" / f"{name}.yml"
    book.parent.mkdir()
    book.write_text((DEPLOY.parent / "playbooks" / book.name).read_text())
    _, commands = deploy(tmp_path, name, "-i", "mine,")
    assert commands[-1] == ["ansible-playbook", str(book), "-i", "mine,"]


def test_the_name_of_a_service_is_a_variable(tmp_path: Path) -> None:
    book = tmp_path / "playbooks/logs.yml"
    book.parent.mkdir()
    book.write_text((DEPLOY.parent / "playbooks/logs.yml").read_text())
    deploy(tmp_path, "logs", "comfyui", "-i", "mine,")
    assert '{"service": "comfyui"}' in (tmp_path / "log").read_text()


@pytest.mark.parametrize("word", ["--lab-stpo", "--labb", "--init", "verfy", "hosts"])
def test_what_there_is_not_is_named(word: str, tmp_path: Path) -> None:
    said, commands = deploy(tmp_path, word, status=2)
    assert f"there is no '{word}'" in said
    assert commands == []


def test_the_checkout_may_change_while_it_runs(tmp_path: Path) -> None:
    said, _ = deploy(tmp_path, "-i", "mine,", meanwhile=f"echo echo read on >> {tmp_path}/deploy")
    assert (tmp_path / "deploy").read_text().endswith("echo read on\n")
    assert said == ""


PLAYBOOKS = [path.stem for path in (DEPLOY.parent / "playbooks").glob("*.yml") if path.stem not in ("hosts", "site")]


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_help_fits_a_terminal_of_80_columns(name: str, tmp_path: Path) -> None:
    (tmp_path / "playbooks").symlink_to(DEPLOY.parent / "playbooks")
    said, _ = deploy(tmp_path, name, "--help")
    assert [line for line in said.splitlines() if len(line) > 80] == []
    assert "\n\n\n" not in said
