from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.tests.contract import house

ROLES = house.roles()
TYPES = {"bool", "dict", "float", "int", "list", "path", "raw", "str"}

# Roles that have nothing to remove, and the modules that show it.
CHANGES_NOTHING = {
    "preflight": {
        "ansible.builtin.set_fact",
        "ansible.builtin.debug",
        "ansible.builtin.fail",
        "wanmetal.comfyui.host_state",
        "wanmetal.comfyui.validate_settings",
    },
    # The canary's video lies in the data, and what was found in the root, which the role wanmetal removes.
    "verify": {
        "ansible.builtin.copy",
        "ansible.builtin.assert",
        "ansible.builtin.debug",
        "ansible.builtin.fetch",
        "wanmetal.comfyui.canary",
        "wanmetal.comfyui.doctor",
        "wanmetal.comfyui.worker_report",
    },
}
# Roles that share a scenario, since one needs what another makes.
PLAYED_ELSEWHERE = {
    "verify": "default",
    "wanmetal": "comfyui",
    "nvidia_driver": "gpu",
    "cuda_toolkit": "gpu",
    "custom_nodes": "nodes",
    "workflows": "nodes",
    "comfyui_api": "services",
    "comfyui_api_v2": "services",
    "jupyterlab": "services",
    "handler": "services",
}
KEYWORDS = {
    *("always", "become", "block", "changed_when", "check_mode", "delegate_to", "diff", "environment", "failed_when"),
    *("name", "no_log", "notify", "register", "rescue", "run_once", "tags", "vars", "when"),
}
NO_WORK = {
    "ansible.builtin.set_fact",
    "ansible.builtin.set_stats",
    "ansible.builtin.import_role",
    "ansible.builtin.include_role",
    "ansible.builtin.import_tasks",
    "ansible.builtin.include_tasks",
}


def specs(role: str) -> dict[str, Any]:
    found: dict[str, Any] = house.role_file(role, "meta/argument_specs.yml")["argument_specs"]
    return found


def options(entries: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, spec in entries.items():
        yield f"{above}{name}", spec
        yield from options(spec.get("options", {}), f"{above}{name}.")


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_specs_are_the_same(role: str) -> None:
    declared = specs(role)["main"].get("options", {})
    expected = {name: spec["default"] for name, spec in declared.items() if "default" in spec}
    assert house.role_file(role, "defaults/main.yml") == expected


@pytest.mark.parametrize("role", ROLES)
def test_every_option_says_what_it_is(role: str) -> None:
    for entry_point, entry in specs(role).items():
        assert entry["short_description"]
        assert entry["description"]
        for name, spec in options(entry.get("options", {})):
            where = f"{entry_point}: {name}"
            assert spec.get("description"), where
            assert spec.get("type") in TYPES, where
            assert (spec["type"] == "list") == ("elements" in spec), where
            assert ("default" in spec) != bool(spec.get("required")), f"{where} needs a default, or required: true"
            # What everything fetches with is shown; rules keep passwords out of it.
            secret = re.search(r"_(database_url|environment|key|key_id|password|secret|tokens?)$", name)
            assert bool(secret and name != "wanmetal_environment") == spec.get("no_log", False), f"{where}: no_log"


@pytest.mark.parametrize("role", ROLES)
def test_entry_points_agree_on_their_options(role: str) -> None:
    """An option that two entry points share has the same type and default in both; one of its own has no default."""
    main = specs(role)["main"].get("options", {})
    for entry_point, entry in specs(role).items():
        for name, spec in entry.get("options", {}).items():
            if name not in main:
                assert spec.get("required"), f"{entry_point}: {name} is no option of main"
                continue
            same = {key: main[name].get(key) for key in ("type", "default", "elements", "choices")}
            assert {key: spec.get(key) for key in same} == same, f"{entry_point}: {name}"


@pytest.mark.parametrize("role", ROLES)
def test_every_entry_point_is_there_and_is_declared(role: str) -> None:
    folder = house.ROOT / "roles" / role / "tasks"
    parts = {
        name
        for task in (task for _, task in house.role_tasks(role))
        for module in ("ansible.builtin.import_tasks", "ansible.builtin.include_tasks")
        if isinstance(name := task.get(module), str)
    }
    entry_points = {path.stem for path in folder.glob("*.yml") if path.name not in parts}
    assert set(specs(role)) - {path.stem for path in folder.glob("*.yml")} == set()
    assert entry_points - set(specs(role)) == set()


@pytest.mark.parametrize("role", ROLES)
def test_variables_carry_the_role_s_name(role: str) -> None:
    names = [*house.role_file(role, "defaults/main.yml"), *house.role_file(role, "vars/main.yml")]
    assert [name for name in names if not name.startswith((f"{role}_", f"__{role}_"))] == []
    assert [name for name in house.role_file(role, "defaults/main.yml") if name.startswith("__")] == []


def test_no_variable_is_defined_twice() -> None:
    names: Counter[str] = Counter()
    for role in ROLES:
        names.update(house.role_file(role, "defaults/main.yml").keys())
        names.update(house.role_file(role, "vars/main.yml").keys())
    assert [name for name, times in names.items() if times > 1] == []


def test_every_option_belongs_to_one_role() -> None:
    """An option of comfyui that begins with comfyui_api_ would look like one of the role comfyui_api."""
    strangers = [
        (role, name, other)
        for role in ROLES
        for name in house.role_file(role, "defaults/main.yml")
        for other in ROLES
        if len(other) > len(role) and name.startswith(f"{other}_")
    ]
    assert strangers == []


@pytest.mark.parametrize("role", ROLES)
def test_every_role_has_its_parts(role: str) -> None:
    folder = house.ROOT / "roles" / role
    for name in ("README.md", "defaults/main.yml", "meta/main.yml", "tasks/main.yml"):
        assert (folder / name).is_file(), f"{role} lacks {name}"
    scenario = house.ROOT / "molecule" / PLAYED_ELSEWHERE.get(role, role)
    assert (scenario / "molecule.yml").is_file(), f"{scenario} is no scenario"
    if role in PLAYED_ELSEWHERE:
        played = list(house.strings(house.read(scenario / "converge.yml")))
        assert f"wanmetal.comfyui.{role}" in played, f"{scenario} does not play {role}"
    assert (folder / "tasks/uninstall.yml").is_file() == (role not in CHANGES_NOTHING)


@pytest.mark.parametrize("role", CHANGES_NOTHING)
def test_a_role_without_uninstall_changes_nothing(role: str) -> None:
    for path, task in house.role_tasks(role):
        if task.get("delegate_to") == "localhost" and task.get("changed_when") is False:
            continue
        used = task.keys() - KEYWORDS - NO_WORK
        assert used <= CHANGES_NOTHING[role], f"{path}: {task.get('name')} uses {used}"


def test_uninstall_removes_every_role() -> None:
    used = {
        call["name"]
        for task in house.tasks(house.read(house.ROOT / "playbooks/uninstall.yml"))
        if (call := task.get("ansible.builtin.import_role")) and call.get("tasks_from") == "uninstall"
    }
    assert used == {f"wanmetal.comfyui.{role}" for role in ROLES if role not in CHANGES_NOTHING}
