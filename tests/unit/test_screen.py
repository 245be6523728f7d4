"""What a screen shows of a run with Ansible's own callback, and with ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.stages import wrapped
from ansible_collections.wanmetal.comfyui.tests.contract import house

PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - name: Check arguments
      ansible.builtin.validate_argument_spec:
        argument_spec: {size: {type: int}}
        provided_arguments: {size: "{{ size | default(1) }}"}
    - name: Read more tasks
      ansible.builtin.include_tasks: more.yml
"""
MORE = """
- name: Ask each
  ansible.builtin.command: {argv: [sh, -c, "echo {{ item }} is broken >&2; exit 3"]}
  loop: [it]
  when: each is defined
- name: Ask
  ansible.builtin.command: {argv: [sh, -c, "echo it is broken >&2; exit 3"]}
"""


def run(folder: Path, *arguments: str) -> str:
    (folder / "play.yml").write_text(PLAY)
    (folder / "more.yml").write_text(MORE)
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", "-c", "local", "play.yml"]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(house.ROOT / "ansible.cfg"), "ANSIBLE_HOME": str(folder)}
    command += ["-e", f"ansible_python_interpreter={sys.executable}"]
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 2, done
    return done.stdout + done.stderr


def test_a_line_breaks_between_words_and_its_rest_stands_under_its_second_column() -> None:
    row = "  to go back to  one two https://example.com/" + "x" * 30
    assert wrapped(row, 40) == ["  to go back to  one two", " " * 17 + "https://example.com/" + "x" * 30]
    assert wrapped("    one two three", 12) == ["    one two", "    three"]
    assert wrapped("one two", 5, 4) == ["one", "    two"]


@pytest.mark.parametrize(
    ("arguments", "shown", "end"),
    [
        ((), "stderr: it is broken", "Ask: sh ended with status 3: it is broken"),
        (("-e", "each=true"), "stderr: it is broken", "Ask each: it: sh ended with status 3: it is broken"),
        (("-e", "size=much"), "unable to convert", "Check arguments: Validation of arguments failed: argument 'size'"),
    ],
)
def test_an_error_is_shown_once_and_what_is_right_not_at_all(
    arguments: tuple[str, ...], shown: str, end: str, tmp_path: Path
) -> None:
    text = run(tmp_path, *arguments)
    above = text.partition("PLAY RECAP")[0]
    assert above.count(shown) == 1, text
    assert "Origin: " not in text
    assert "[ERROR]" not in text
    assert "included: " not in text
    assert ("TASK [Check arguments]" in text) == ("size=much" in arguments)
    assert f"localhost: localhost: {end}" in " ".join(text.split()), text


def test_more_is_shown_where_it_is_asked_for(tmp_path: Path) -> None:
    text = run(tmp_path, "-v")
    assert "Origin: " in text
    assert "TASK [Check arguments]" in text
    assert "included: " in text
