from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.wanmetal.comfyui.tests.contract import house

MEND = "run antsibull-changelog as docs/developing.md says"


def changelog(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    programs = Path(sys.executable).parent
    return subprocess.run(
        [programs / "antsibull-changelog", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The changelog in a folder of its own."""
    folder = tmp_path / "ansible_collections/wanmetal/comfyui"
    folder.mkdir(parents=True)
    shutil.copy(house.ROOT / "galaxy.yml", folder)
    ignored = shutil.ignore_patterns(".plugin-cache.yaml")
    shutil.copytree(house.ROOT / "changelogs", folder / "changelogs", ignore=ignored)
    return folder


def test_fragments_are_in_order(copy: Path) -> None:
    done = changelog(copy, "lint")
    assert done.returncode == 0, done.stdout + done.stderr
    (copy / "changelogs/fragments/bad.yml").write_text("nonsense:\n  - x\n")
    assert changelog(copy, "lint").returncode != 0


def test_the_changelog_is_made_from_them(copy: Path) -> None:
    done = changelog(copy, "generate")
    assert done.returncode == 0, done.stderr
    assert (copy / "CHANGELOG.md").read_text() == (house.ROOT / "CHANGELOG.md").read_text(), MEND


def test_no_fragment_is_left_out() -> None:
    releases = house.read(house.ROOT / "changelogs/changelog.yaml")["releases"]
    told = {name for release in releases.values() for name in release.get("fragments", [])}
    assert {path.name for path in (house.ROOT / "changelogs/fragments").glob("*.yml")} - told == set(), MEND
    assert house.read(house.ROOT / "galaxy.yml")["version"] in releases
