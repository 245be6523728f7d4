"""A dump of the queue comes to this machine and goes back: the playbook as people run it, on a host of stand-ins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.wanmetal.comfyui.tests.contract import house


def backup(folder: Path, action: str, queue: str) -> str:
    """Run it, where ``wanmetal-queue`` is this shell text; return what it said."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, text in {
        "wanmetal-queue": queue,
        "systemctl": f"echo systemctl $* >> {folder}/log",
        "systemd-run": f'echo systemd-run >> {folder}/log; while [ "$1" != -- ]; do shift; done; shift; "$@"',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    (folder / "hosts.yml").write_text("queue_hosts: {hosts: {here: {ansible_connection: local}}}")
    options = ["-e", f"ansible_python_interpreter={sys.executable} ansible_become=false backup_action={action}"]
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", house.ROOT / "playbooks/backup.yml", "-i", "hosts.yml", *options],
        cwd=folder,
        env={
            "ANSIBLE_CONFIG": str(house.ROOT / "ansible.cfg"),
            "PATH": f"{programs}:/usr/bin:/bin",
            "HOME": str(folder),
            "PWD": str(folder),
            "TMPDIR": str(folder),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert not list(folder.glob("*.wanmetal-queue")), "a copy is left"
    assert not list(folder.glob("*.part"))
    return done.stdout + done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to root")
def test_a_dump_comes_and_goes_back(tmp_path: Path) -> None:
    backup(tmp_path, "dump", "echo tables")
    assert (tmp_path / "queue.dump").read_text() == "tables\n"
    assert (tmp_path / "queue.dump").stat().st_mode & 0o777 == 0o600
    backup(tmp_path, "restore", f"cat > {tmp_path}/restored")
    assert (tmp_path / "restored").read_text() == "tables\n"
    assert (tmp_path / "log").read_text() == "systemd-run\nsystemctl start wanmetal-queue.service\n"


def test_a_dump_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "queue.dump").write_text("good")
    assert "the disk is full" in backup(tmp_path, "dump", "echo half; echo the disk is full >&2; exit 1")
    assert (tmp_path / "queue.dump").read_text() == "good"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to root")
def test_the_service_starts_again_after_a_dump_that_is_refused(tmp_path: Path) -> None:
    assert "There is no file" in backup(tmp_path, "restore", "true")
    assert not (tmp_path / "log").exists()
    (tmp_path / "queue.dump").touch()
    assert "it is empty" in backup(tmp_path, "restore", "echo it is empty >&2; exit 1")
    assert (tmp_path / "log").read_text() == "systemd-run\nsystemctl start wanmetal-queue.service\n"
