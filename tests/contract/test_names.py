"""Roles use each other by public names alone, and each has what it uses in the playbook of its README."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.wanmetal.comfyui.tests.contract import house
from ansible_collections.wanmetal.comfyui.tools import docs

ROLES = house.roles()
PRIVATE = re.compile(rf"\b__({'|'.join(sorted(ROLES, key=len, reverse=True))})_\w+")
GUARD = re.compile(r"\s*(?:\)\s*)?(?:\|\s*default\(|is (?:not )?defined)")


def texts(root: Path) -> Iterator[tuple[str, str, str]]:
    """Files of roles and playbooks that Ansible renders: the role, the path, the text without comments."""
    patterns = ("roles/*/[dhtv]*/**/*", "roles/*/tasks/*", "playbooks/**/*.yml")
    for path in sorted({path for pattern in patterns for path in root.glob(pattern) if path.is_file()}):
        name = str(path.relative_to(root))
        role = name.split("/")[1] if name.startswith("roles/") else ""
        yield role, name, re.sub(r"(?m)^\s*#.*$", "", path.read_text(encoding="utf-8"))


def private(root: Path) -> list[str]:
    """Internal names of a role that are used outside of it."""
    return [
        f"{name}: {match[0]}"
        for role, name, text in texts(root)
        for match in PRIVATE.finditer(text)
        if match[1] != role
    ]


def public_names() -> dict[str, str]:
    """Names that other roles may use, each with its role."""
    return {
        name: role
        for role in ROLES
        for part in ("defaults", "vars")
        for name in house.role_file(role, f"{part}/main.yml")
        if not name.startswith("__")
    }


def brings(role: str) -> Iterator[str]:
    """Roles that a role itself makes known in its play."""
    for _, task in house.role_tasks(role):
        for how in ("import", "include"):
            called = task.get(f"ansible.builtin.{how}_role") or {}
            if called.get("public"):
                yield called["name"].rpartition(".")[2]


def strange(root: Path) -> list[str]:
    """Names of roles that need not be in a play, used as if they were."""
    names = public_names()
    word = re.compile(rf"(?<![\w.'])({'|'.join(sorted(names, key=len, reverse=True))})\b(?!:)")
    found = []
    for role, name, text in texts(root):
        there = {role, *docs.needed(role), *brings(role)} if role else set(ROLES)
        for match in word.finditer(text):
            if names[match[1]] not in there and not GUARD.match(text, match.end()):
                found.append(f"{name}: {match[1]}")
    return found


def test_internal_names_stay_in_their_role() -> None:
    assert private(house.ROOT) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("roles/preflight/vars/main.yml", 'x: "{{ __comfyui_release }}"'),
        ("roles/verify/tasks/canary.yml", "- ansible.builtin.debug: {var: __comfyui_api_hash}"),
        ("roles/handler/templates/comfyui-handler.service.j2", "{{ __comfyui_unit }}"),
        ("playbooks/models.yml", "- hosts: all\n  vars: {__wan_models_list: x}"),
        ("playbooks/tasks/legacy_env.yml", "- ansible.builtin.debug: {msg: '{{ __wanmetal_packages }}'}"),
    ],
)
def test_an_internal_name_elsewhere_is_seen(path: str, text: str, tmp_path: Path) -> None:
    for folder in ("roles", "playbooks"):
        shutil.copytree(house.ROOT / folder, tmp_path / folder)
    with (tmp_path / path).open("a") as file:
        file.write(f"\n{text}\n")
    assert len(private(tmp_path)) == 1


# It puts the parts of all roles together.
ALL = ("preflight", "verify")


def test_a_role_uses_what_its_playbook_has() -> None:
    assert [line for line in strange(house.ROOT) if line.split("/")[1] not in ALL] == []


def test_playbooks_of_readmes_are_understood(tmp_path: Path) -> None:
    """Those of all roles at once: each call takes seconds."""
    plays: list[Path] = []
    for role in ROLES:
        plays.append(tmp_path / f"{role}.yml")
        plays[-1].write_text(
            docs.playbook(house.ROOT, role).replace("tasks/legacy_env", f"{house.ROOT}/playbooks/tasks/legacy_env")
        )
    ansible = Path(sys.executable).parent / "ansible-playbook"
    command = [str(ansible), "--syntax-check", "-i", "gpu_hosts,", *map(str, plays)]
    done = subprocess.run(command, cwd=house.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("playbook: ") == len(ROLES)
