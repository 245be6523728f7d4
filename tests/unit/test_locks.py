from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.locks import SHIPPED, LockError, find, load


def test_upstream_is_well_formed() -> None:
    upstream = load("upstream")
    comfyui = upstream["comfyui"]
    assert re.fullmatch(r"[0-9a-f]{40}", comfyui["commit"])
    assert re.fullmatch(r"[0-9a-f]{64}", upstream["practice"]["package"]["sha256"])
    assert all(re.search("[=<>]", item) for lane in upstream["lanes"].values() for item in lane["python_constraints"])


def test_an_own_folder_comes_first(tmp_path: Path) -> None:
    (tmp_path / "upstream.yml").write_text("comfyui: {version: mine}\n")
    assert load("upstream", str(tmp_path)) == {"comfyui": {"version": "mine"}}
    assert find("python/base-cu128.txt", str(tmp_path)).parent == SHIPPED / "python"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, "there is no lock missing.yml in"),
        ("python/base-cu999.txt", None, "there is no lock python/base-cu999.txt in"),
        ("broken", "a: [", "broken.yml is no valid YAML"),
        ("list", "[a]", "list.yml must hold a mapping, found list"),
        ("../galaxy", None, "is no name of a lock"),
        ("python/../../galaxy", None, "is no name of a lock"),
        ("/etc/passwd", None, "is no name of a lock"),
    ],
)
def test_errors(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / f"{name}.yml").write_text(content)
    with pytest.raises(LockError, match=re.escape(message)):
        load(name, str(tmp_path))


def test_an_own_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(LockError, match="is no folder on the controller"):
        find("upstream", str(tmp_path / "no"))


def test_the_lookup_in_ansible(tmp_path: Path) -> None:
    (tmp_path / "own.yml").write_text("answer: 42\n")
    names = "'upstream', 'own', 'python/base-cu128.txt'"
    ansible = [sys.executable, "-m", "ansible", "adhoc", "localhost", "-i", "localhost,", "-c", "local"]
    variables = ["-e", json.dumps({"wanmetal_locks_dir": str(tmp_path)})]
    task = ["-m", "ansible.builtin.debug", "-a", f"msg={{{{ lookup('wanmetal.comfyui.lock', {names}) }}}}"]
    done = subprocess.run(
        [*ansible, *variables, *task],
        cwd=SHIPPED.parents[1],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    message = json.loads(done.stdout[done.stdout.index("{") : done.stdout.rindex("}") + 1])["msg"]
    assert message == [load("upstream"), {"answer": 42}, str(SHIPPED / "python/base-cu128.txt")]
