"""What is rendered again for each task is rendered without what costs more than all else."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.plugins.loader import lookup_loader
from ansible_collections.wanmetal.comfyui.plugins.action import validate_settings
from ansible_collections.wanmetal.comfyui.plugins.filter import filters
from ansible_collections.wanmetal.comfyui.plugins.lookup import template
from ansible_collections.wanmetal.comfyui.tests.contract import house

RENDERED = sorted(path for suffix in ("yml", "j2") for path in house.ROOT.glob(f"roles/**/*.{suffix}"))


@pytest.mark.parametrize("path", RENDERED, ids=[str(path.relative_to(house.ROOT)) for path in RENDERED])
def test_roles_use_our_lookup_of_templates(path: Path) -> None:
    """Ansible's own copies all variables of the host for each template."""
    assert "'ansible.builtin.template'" not in path.read_text(encoding="utf-8")


class Uncopied:
    """A value that must not be copied."""

    def __deepcopy__(self, memo: object) -> Uncopied:
        raise AssertionError("copied")


def test_templates_see_the_variables_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    from copy import deepcopy

    class Whole:
        def run(self, terms: list[str], variables: dict[str, object], **options: object) -> list[object]:
            return [terms, deepcopy(variables), options]

    monkeypatch.setattr(lookup_loader, "get", lambda *_unused, **_options: Whole())
    value = Uncopied()
    found = template.LookupModule().run(["a.j2"], {"value": value}, template_vars={"b": 1})
    assert found == [["a.j2"], {"value": value}, {"template_vars": {"b": 1}}]


def test_the_filters_are_there_before_the_first_task() -> None:
    """The first task of each playbook is this action, which is imported by the process that all others come from."""
    assert vars(validate_settings)["filters"] is filters


LOCK = "# made by\n# two lines\na==1 \\\n    --hash=sha256:0\n    # via b\n\nb==2\n  # of a pack"


def test_the_packages_of_a_lock_keep_their_hash(tmp_path: Path) -> None:
    """Releases and environments on hosts are named by it: another one would have all of them built again."""
    (tmp_path / "lock.txt").write_text(LOCK, encoding="utf-8")
    task = {"ansible.builtin.copy": {"content": "{{ __comfyui_lock_hash }}", "dest": f"{tmp_path}/hash"}}
    settings = {
        "ansible_python_interpreter": sys.executable,
        "wanmetal_python_lock": f"{tmp_path}/lock.txt",
    }
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars_files": [f"{house.ROOT}/roles/comfyui/vars/main.yml"],
        "tasks": [{**task, "vars": settings}],
    }
    (tmp_path / "play.yml").write_text(json.dumps([play]), encoding="utf-8")
    program = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [program, "-i", "localhost,", "-c", "local", tmp_path / "play.yml"],
        cwd=house.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # As it was first made: joined by a backslash and an n.
    lines = r"a==1 \\n    --hash=sha256:0\n\nb==2"
    assert (tmp_path / "hash").read_text() == hashlib.sha256(lines.encode()).hexdigest()
