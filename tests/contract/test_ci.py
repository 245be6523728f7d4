from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.wanmetal.comfyui.tests import cores
from ansible_collections.wanmetal.comfyui.tests.contract import house
from ansible_collections.wanmetal.comfyui.tests.contract.test_readme import check
from ansible_collections.wanmetal.comfyui.tests.lab import lab
from ansible_collections.wanmetal.comfyui.tests.run import STEPS

WORKFLOWS = {path.name: house.read(path) for path in sorted((house.ROOT / ".github/workflows").glob("*.yml"))}
JOBS = [(file, name, job) for file, workflow in WORKFLOWS.items() for name, job in workflow["jobs"].items()]


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for file, name, job in JOBS:
        for step in job["steps"]:
            yield f"{file}: {name}", step


@pytest.mark.parametrize(("at", "step"), list(steps()))
def test_a_step(at: str, step: dict[str, Any]) -> None:
    """Commands are ones that there are."""
    assert ("uses" in step) != ("run" in step), at
    for line in step.get("run", "").splitlines():
        check(line)


def test_actions_are_pinned_by_commit() -> None:
    """A tag can be moved to other code. The version beside the commit is for people, and is the same everywhere."""
    pins = {
        line.partition("uses:")[2].strip()
        for path in (house.ROOT / ".github/workflows").glob("*.yml")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "uses:" in line
    }
    pinned = [re.fullmatch(r"([\w.-]+/[\w.-]+)@[0-9a-f]{40} # v\d+\.\d+\.\d+", pin) for pin in sorted(pins)]
    assert all(pinned), pins
    assert len({match[1] for match in pinned if match}) == len(pins), "one commit for each action"


def test_workflows_may_only_read_and_end_in_time() -> None:
    for workflow in WORKFLOWS.values():
        assert workflow["permissions"] == {"contents": "read"}
    assert [name for _, name, job in JOBS if not 0 < job["timeout-minutes"] <= 60] == []


def test_every_step_of_the_tests_is_run() -> None:
    runs = "\n".join(step.get("run", "") for _, step in steps())
    run = {word for words in re.findall(r"(?m)^\./test (.+)$", runs) for word in words.split() if word != "--full"}
    assert run == set(STEPS)


def test_every_system_of_the_lab_is_tested() -> None:
    [systems] = [job["strategy"]["matrix"]["os"] for _, name, job in JOBS if name == "molecule"]
    assert systems == sorted(lab.SYSTEMS)


def test_the_collection_is_tested_with_every_ansible_core_that_is_promised() -> None:
    [matrix] = [job["strategy"]["matrix"]["include"] for _, name, job in JOBS if name == "sanity"]
    ignored = {path.stem.removeprefix("ignore-") for path in house.ROOT.glob("tests/sanity/ignore-*.txt")}
    assert {entry["core"] for entry in matrix} == set(cores.PROMISED) == ignored


def test_hooks_run_what_is_locked() -> None:
    hooks = house.read(house.ROOT / ".pre-commit-config.yaml")["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    locked = (house.ROOT / "files/locks/python/test.txt").read_text()
    for hook in hooks[0]["hooks"]:
        program, _, rest = hook["entry"].partition(" ")
        name = program.removeprefix(".venv/test/bin/")
        assert program != name, f"{hook['id']} runs {program}"
        assert re.search(rf"(?m)^{name}(-py)?==", locked) or (name == "python" and "tools/docs.py" in rest), hook["id"]
