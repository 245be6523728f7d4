"""Hosts with a umask of 027 or 077: what services are to read is readable all the same."""

from __future__ import annotations

import re

from ansible_collections.wanmetal.comfyui.tests.contract import house

WRITES = re.compile(r"\b(pip|venv|node|install|compile\w*|__\w+_unpack|make|tar|unzip)\b")
WITH_MODES = {"ansible.builtin.copy", "ansible.builtin.template", "ansible.builtin.get_url"}


def test_each_file_that_is_written_has_its_mode() -> None:
    lacking = [
        f"{path}: {task['name']}"
        for role in house.roles()
        for path, task in house.role_tasks(role)
        for module in WITH_MODES & task.keys()
        if "mode" not in task[module]
    ]
    assert lacking == []


def test_commands_that_make_files_have_a_umask_of_their_own() -> None:
    lacking = []
    for role in house.roles():
        for path, task in house.role_tasks(role):
            command = str(task.get("ansible.builtin.command") or task.get("ansible.builtin.shell") or "")
            if not command:
                continue
            command += str(task.get("vars", ""))
            if WRITES.search(command) and "umask" not in command:
                lacking.append(f"{path}: {task['name']}")
    assert lacking == []


def test_modules_that_make_files_have_a_umask_of_their_own() -> None:
    for name in (
        "aria2_download",
        "git_checkouts",
        "python_environment",
        "release_build",
        "release_switch",
        "service",
        "wheel_build",
    ):
        assert "os.umask(0o022)" in (house.ROOT / f"plugins/modules/{name}.py").read_text(), name
