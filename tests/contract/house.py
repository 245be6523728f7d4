"""What the contract tests read of the collection: its files, roles and tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
_BLOCKS = ("block", "rescue", "always")
_LISTS = ("pre_tasks", "tasks", "post_tasks", "handlers")

Task = Mapping[str, Any]


def tracked(others: bool = False) -> list[str]:
    """Files that are in git, by their path; with ``others`` also those that could be."""
    more = ["--cached", "--others", "--exclude-standard"] if others else []
    command = ["git", "-C", str(ROOT), "ls-files", "-z", *more]
    listed = subprocess.run(command, capture_output=True, check=True, text=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def read(path: Path) -> Any:
    """A YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def roles(root: Path = ROOT) -> list[str]:
    return sorted(path.name for path in (root / "roles").iterdir() if (path / "meta").is_dir())


def role_file(role: str, name: str, root: Path = ROOT) -> dict[str, Any]:
    """A YAML file of a role, empty where it has none."""
    path = root / "roles" / role / name
    return read(path) or {} if path.is_file() else {}


def tasks(entries: list[Any]) -> Iterator[Task]:
    """All tasks in a list of tasks or of plays, those in blocks included; a block comes before its tasks."""
    for entry in entries:
        yield entry
        for key in (*_BLOCKS, *_LISTS):
            yield from tasks(entry.get(key) or [])


def role_tasks(role: str, root: Path = ROOT) -> Iterator[tuple[str, Task]]:
    """All tasks and handlers of a role, each with the path of its file."""
    for folder in ("tasks", "handlers"):
        for path in sorted((root / "roles" / role / folder).rglob("*.yml")):
            for task in tasks(read(path) or []):
                yield str(path.relative_to(root)), task


def strings(value: Any) -> Iterator[str]:
    """All texts in a value, keys of mappings left out."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from strings(inner)


def started(playbook: str, folder: Path, **given: Any) -> subprocess.Popen[str]:
    """Begin a playbook on this machine, with settings."""
    (folder / "hosts.yml").write_text("gpu_hosts: {hosts: {here: {ansible_connection: local}}}")
    settings = {"ansible_python_interpreter": sys.executable, "ansible_become": False, **given}
    command = [str(ROOT / "playbooks" / playbook), "-i", str(folder / "hosts.yml"), "-e", json.dumps(settings)]
    return subprocess.Popen(
        [sys.executable, "-m", "ansible", "playbook", *command],
        cwd=folder,
        env={
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "PYTHONUNBUFFERED": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def play(playbook: str, folder: Path, **given: Any) -> tuple[int, str]:
    """Run a playbook on this machine, with settings; return its status and all that it said."""
    process = started(playbook, folder, **given)
    said = process.communicate()[0]
    return process.returncode, said
