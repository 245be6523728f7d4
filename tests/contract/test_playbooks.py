from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import yaml
from ansible_collections.wanmetal.comfyui.tests import cores
from ansible_collections.wanmetal.comfyui.tests.contract import house

BIN = Path(sys.executable).parent
PLAYBOOKS = ["site.yml", *sorted(str(path.relative_to(house.ROOT)) for path in house.ROOT.glob("playbooks/*.yml"))]


def run(
    *command: str | Path, cwd: Path = house.ROOT, environment: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=env)
    assert done.returncode == 0, f"{command[0]} failed\n{done.stdout}\n{done.stderr}"
    return done


@pytest.mark.parametrize("core", cores.PROMISED)
def test_playbooks_are_understood(core: str) -> None:
    """One call for all of them: each takes seconds."""
    programs = cores.need(core)
    assert f"core {cores.PROMISED[core][0]}]" in run(programs / "ansible", "--version").stdout
    environment = {"ANSIBLE_CONFIG": str(house.ROOT / "ansible.cfg"), "ANSIBLE_DEPRECATION_WARNINGS": "true"}
    done = run(programs / "ansible-playbook", "--syntax-check", *PLAYBOOKS, environment=environment)
    assert "ERROR" not in done.stderr
    assert "DEPRECATION" not in done.stderr


def test_the_cores_that_are_promised_are_those_that_are_tested() -> None:
    oldest, *_, newest = cores.PROMISED
    after = f"2.{int(newest.partition('.')[2]) + 1}"
    assert [*cores.PROMISED] == [f"2.{minor}" for minor in range(int(oldest[2:]), int(newest[2:]) + 1)]
    assert house.read(house.ROOT / "meta/runtime.yml")["requires_ansible"] == f">={oldest}.0,<{after}.0"
    assert f'"ansible-core>={oldest},<{after}"' in (house.ROOT / "pyproject.toml").read_text()
    assert f"ansible-core {oldest} to {newest}." in (house.ROOT / "README.md").read_text()
    for role in house.roles():
        assert house.role_file(role, "meta/main.yml")["galaxy_info"]["min_ansible_version"] == oldest


def test_the_pinned_core_is_the_one_that_tests_run_with() -> None:
    project = (house.ROOT / "pyproject.toml").read_text()
    version = run(BIN / "ansible", "--version").stdout.partition("core ")[2].partition("]")[0]
    assert version == cores.PROMISED[cores.PINNED][0]
    assert project.count(f'"ansible-core=={version}"') == 3


LINES = """2026-01-02 gpu1 python[7]: \x1b[31mred\x1b[0m, and \x1b[1;38;5;9mbold\x1b[m: no\r
2026-01-02 gpu1 python[7]:   0%|   | 0/30\r 50%|#  | 15/30\r100%|###| 30/30
2026-01-02 gpu1 python[7]: plain: text
"""


@pytest.mark.parametrize("wrote", [LINES, ""])
def test_the_journal_is_shown_with_what_has_colours(wrote: str, tmp_path: Path) -> None:
    program = tmp_path / "journalctl"
    (tmp_path / "lines").write_bytes(wrote.encode())
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/lines\n")
    program.chmod(0o755)
    gpu1 = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"gpu_hosts": {"hosts": {"gpu1": gpu1}}}))
    command = [BIN / "ansible-playbook", "playbooks/logs.yml", "-i", tmp_path / "hosts.yml", "-e", "service=comfy"]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ANSIBLE_NOCOLOR": "1"}
    said = run(*map(str, command), "-e", "ansible_become=false", environment=environment).stdout
    shown = ["red, and bold: no", "100%|###| 30/30", "plain: text"] if wrote else []
    assert [
        line.strip().removeprefix("2026-01-02 gpu1 python[7]: ") for line in said.splitlines() if "python" in line
    ] == shown
    assert ("nothing of comfy. ./deploy logs without a name" in said) is (not wrote)


# -- the collection, built and installed

# What a collection is used with; what belongs to a checkout stays there.
TAKEN = {
    *("CHANGELOG.md", "LICENSE", "README.md", "changelogs", "docs", "files", "meta", "playbooks", "plugins", "roles"),
    *("CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "FILES.json", "MANIFEST.json", "SECURITY.md", "services"),
}


def alone(folder: Path) -> dict[str, str]:
    """An environment without this checkout."""
    (folder / "ansible.cfg").touch()
    return {"ANSIBLE_CONFIG": str(folder / "ansible.cfg"), "ANSIBLE_COLLECTIONS_PATH": str(folder)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection, built from this checkout and installed into an empty folder."""
    folder = tmp_path_factory.mktemp("galaxy")
    run(BIN / "ansible-galaxy", "collection", "build", "--output-path", folder)
    [archive] = folder.glob("wanmetal-comfyui-*.tar.gz")
    run(BIN / "ansible-galaxy", "collection", "install", "--offline", archive, cwd=folder, environment=alone(folder))
    return folder


def test_the_build_has_what_it_must_and_nothing_else(built: Path) -> None:
    folder = built / "ansible_collections/wanmetal/comfyui"
    assert {path.name for path in folder.iterdir()} - TAKEN == set()
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {name for name in house.tracked() if name.partition("/")[0] in TAKEN} - found == set()
    assert found - {"FILES.json", "MANIFEST.json"} - set(house.tracked(others=True)) == set(), "git ignores these"
    client = "services/handler/wanmetal_handler/comfyui_client.py"  # a link to the modules' own
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "meta/runtime.yml", "files/locks/upstream.yml", client):
        assert (folder / name).is_file()


def test_the_built_collection_works_alone(built: Path, tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"gpu_hosts": {"hosts": {"gpu1": {}}}}))
    names = [f"wanmetal.comfyui.{Path(name).stem}" for name in PLAYBOOKS[1:]]
    done = run(
        *(BIN / "ansible-playbook", "-i", "hosts.yml", "--syntax-check"), *names, cwd=tmp_path, environment=alone(built)
    )
    assert done.stdout.count(f"playbook: {built}") == len(names)
