from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ansible_collections.wanmetal.comfyui.tests.contract import house

FRAGMENTS = sorted((house.ROOT / "changelogs/fragments").glob("*.yml"))
CHANGELOG = (house.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    programs = Path(sys.executable).parent
    return subprocess.run(
        [programs / "antsibull-changelog", "lint"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
    )


def test_fragments_are_in_order(tmp_path: Path) -> None:
    copy = tmp_path / "ansible_collections/wanmetal/comfyui"
    (copy / "changelogs").mkdir(parents=True)
    shutil.copy(house.ROOT / "galaxy.yml", copy)
    shutil.copy(house.ROOT / "changelogs/config.yaml", copy / "changelogs")
    shutil.copytree(house.ROOT / "changelogs/fragments", copy / "changelogs/fragments")
    done = lint(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    (copy / "changelogs/fragments/bad.yml").write_text("nonsense:\n  - x\n")
    assert lint(copy).returncode != 0


def words(text: str) -> str:
    """Letters and digits alone, whatever the markup around them."""
    return "".join(re.findall(r"[^\W_]+", text))


def test_the_changelog_tells_every_change() -> None:
    text = html.unescape(re.sub(r"</?code>", "", CHANGELOG).replace("\\", ""))
    told = {words(line) for line in re.findall(r"(?m)^\* (.+)$", text)}
    sections = [changes for path in FRAGMENTS for changes in house.read(path).values()]
    wanted = {words(change) for changes in sections if isinstance(changes, list) for change in changes}
    assert wanted - told == set(), "run antsibull-changelog as docs/developing.md says"
