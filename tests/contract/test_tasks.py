from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.tests.contract import house

ROLES = house.roles()
CONDITIONS = ("when", "changed_when", "failed_when", "until", "that")


def conditions(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """All conditions in a file, each with the name of what it belongs to."""
    if isinstance(value, list):
        for entry in value:
            yield from conditions(entry, at)
    if isinstance(value, Mapping):
        at = value.get("name", at) if isinstance(value.get("name"), str) else at
        for key, inner in value.items():
            if key in CONDITIONS:
                yield from ((at, text) for text in house.strings(inner))
            else:
                yield from conditions(inner, at)


def templated(data: Any) -> list[str]:
    return [f"{at}: {text}" for at, text in conditions(data) if "{{" in text or "{%" in text]


def looped(path: str, task: house.Task) -> bool:
    return any(key == "loop" or key.startswith("with_") for key in task) and Path(path).name != "uninstall.yml"


PLAYED = [
    path
    for pattern in ("roles/*/*/*.yml", "playbooks/*.yml", "molecule/**/*.yml", "*.yml")
    for path in sorted(house.ROOT.glob(pattern))
]


@pytest.mark.parametrize("path", PLAYED, ids=[str(path.relative_to(house.ROOT)) for path in PLAYED])
def test_no_template_in_a_condition(path: Path) -> None:
    """A condition is a template already. One in it is rendered twice, and runs what a host has put into a fact."""
    assert templated(house.read(path)) == []


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ([{"name": "a", "when": "x == '{{ y }}'"}], ["a: x == '{{ y }}'"]),
        ([{"name": "a", "when": ["x", "{{ y }}"]}], ["a: {{ y }}"]),
        ([{"name": "b", "block": [{"name": "a", "until": "{{ y }}"}]}], ["a: {{ y }}"]),
        ([{"name": "a", "ansible.builtin.assert": {"that": "{{ y }}", "fail_msg": "{{ z }}"}}], ["a: {{ y }}"]),
        ([{"name": "a", "failed_when": "{% if x %}"}], ["a: {% if x %}"]),
        ([{"name": "{{ x }}", "when": "x == '{'", "vars": {"y": "{{ z }}"}}], []),
    ],
)
def test_the_check_for_templates_sees_them(data: Any, found: list[str]) -> None:
    assert templated(data) == found


@pytest.mark.parametrize("role", ROLES)
def test_no_task_is_a_loop(role: str) -> None:
    """Each turn is a call to the host. One that takes a list is one call."""
    assert [f"{path}: {task['name']}" for path, task in house.role_tasks(role) if looped(path, task)] == []


@pytest.mark.parametrize(
    ("path", "task", "found"),
    [
        ("roles/a/tasks/main.yml", {"loop": []}, True),
        ("roles/a/tasks/main.yml", {"with_items": []}, True),
        ("roles/a/tasks/main.yml", {"name": "x"}, False),
        ("roles/a/tasks/uninstall.yml", {"loop": []}, False),
    ],
)
def test_the_check_for_loops_sees_them(path: str, task: house.Task, found: bool) -> None:
    assert looped(path, task) is found


SHOWN = [path for path in PLAYED if path.parent.name == "playbooks" or path.parent.name in ("tasks", "handlers")]


def nameless(task: house.Task) -> bool:
    """Whether the name says "it" of what it does something to; blocks and files of tasks are not shown."""
    inner = any(key == "block" or key.rpartition(".")[2].startswith(("import_", "include_")) for key in task)
    return not inner and re.match(r"\S+( and \S+)? (it|them)\b", task.get("name", "")) is not None


@pytest.mark.parametrize("path", SHOWN, ids=[str(path.relative_to(house.ROOT)) for path in SHOWN])
def test_the_name_of_a_task_stands_for_itself(path: Path) -> None:
    """While it runs, a line of progress has its name alone: "Install them: 40 s so far" says nothing."""
    entries = house.read(path) or []
    plays = [task for entry in entries for key in ("pre_tasks", "tasks", "post_tasks") for task in entry.get(key) or []]
    listed = plays if path.parent.name == "playbooks" else entries
    assert [task["name"] for task in house.tasks(listed) if nameless(task)] == []


@pytest.mark.parametrize(
    ("task", "found"),
    [
        ({"name": "Install them", "ansible.builtin.apt": {}}, True),
        ({"name": "Stop and disable them", "ansible.builtin.command": {}}, True),
        ({"name": "Install it", "block": []}, False),
        ({"name": "Run it", "ansible.builtin.import_role": {}}, False),
        ({"name": "Write the key, unless it is there", "ansible.builtin.copy": {}}, False),
    ],
)
def test_the_check_for_names_sees_them(task: house.Task, found: bool) -> None:
    assert nameless(task) is found


def unordered(text: str) -> list[str]:
    blocks = re.findall(r"\{[{%].*?[}%]\}", text, re.DOTALL)
    sets = re.compile(r"\|\s*(difference|intersect|union|symmetric_difference)\b")
    return [block for block in blocks if sets.search(block) and not re.search(r"\|\s*(sort|length)\b", block)]


TEMPLATES = sorted(house.ROOT.glob("roles/*/templates/*"))


@pytest.mark.parametrize("path", TEMPLATES, ids=[str(path.relative_to(house.ROOT)) for path in TEMPLATES])
def test_what_is_rendered_has_an_order(path: Path) -> None:
    """The filters of sets give another order in each process: a file would change, and its service restart."""
    assert unordered(path.read_text(encoding="utf-8")) == []


def test_the_check_for_an_order_sees_it() -> None:
    text = "{{ a | difference(b) | join }} {{ a | union(b) | sort | join }} {% if a | intersect(b) | length %}"
    assert unordered(text) == ["{{ a | difference(b) | join }}"]


TRUTH_VALUES = "|".join(
    name
    for role in ROLES
    for entry in house.role_file(role, "meta/argument_specs.yml")["argument_specs"].values()
    for name, spec in entry.get("options", {}).items()
    if spec["type"] == "bool"
)


def read_as_written(text: str, whens: Iterable[str] = ()) -> list[str]:
    """Expressions in which a truth value may be the text "false", as -e and INI inventories give it, which is true."""
    # Whole, it is another role's or a module's option, which is read as one again.
    whole = re.compile(rf"\{{\{{ ({TRUTH_VALUES}) \}}\}}")
    bare = re.compile(rf"(?<![\w.])({TRUTH_VALUES})\b(?!( \| default\([^)]*\))? \| bool)")
    found = [*re.findall(r"\{[{%].*?[}%]\}", text, re.DOTALL), *whens]
    return [one for one in found if bare.search(re.sub(r"'[^'\n]*'", "", one)) and not whole.fullmatch(one)]


EXPRESSIONS = [*PLAYED, *TEMPLATES]


@pytest.mark.parametrize("path", EXPRESSIONS, ids=[str(path.relative_to(house.ROOT)) for path in EXPRESSIONS])
def test_truth_values_are_read_as_such(path: Path) -> None:
    whens = [text for _, text in conditions(house.read(path))] if path.suffix == ".yml" else []
    assert read_as_written(path.read_text(encoding="utf-8"), whens) == []


def test_the_check_for_truth_values_sees_them() -> None:
    text = (
        "{{ 1 if handler_enabled else 2 }} {{ handler_enabled }} {{ handler_enabled | bool }} {{ 'handler_enabled' }}"
    )
    whens = ["not jupyterlab_enabled", "jupyterlab_enabled | default(false) | bool"]
    assert read_as_written(text, whens) == ["{{ 1 if handler_enabled else 2 }}", "not jupyterlab_enabled"]


@pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0,
    reason="may mount nothing",
)
def test_an_uninstall_leaves_what_is_mounted_below_and_goes_on(tmp_path: Path) -> None:
    """A disk for models, for example."""
    found = house.tasks(house.read(house.ROOT / "roles/wanmetal/tasks/uninstall.yml"))
    empty = next(task["vars"]["__wanmetal_empty"] for task in found if "__wanmetal_empty" in task.get("vars", {}))
    for name in ("data/models", "data/output"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").touch()
    script = f'mount -t tmpfs none "$1/models"; touch "$1/models/mine"\n({empty}) || exit\nls -R "$1"'
    command = ["unshare", "--mount", "sh", "-c", script, "remove", str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[1:]) == (0, ["models", f"{tmp_path}/data/models:", "mine"]), done
    assert not (tmp_path / "data/output").exists()
