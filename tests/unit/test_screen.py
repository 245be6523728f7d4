"""What a screen shows of a run with Ansible's own callback, and with ours."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
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


def run(folder: Path, *arguments: str, play: str = PLAY) -> str:
    (folder / "play.yml").write_text(play)
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


LONG = """
- hosts: localhost
  gather_facts: false
  tasks:
    - name: Refuse what has a name that nearly fills a line of the terminal
      ansible.builtin.fail:
        msg: "{{ text }}"
"""


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("kind", ["line", "list"])
def test_a_terminal_breaks_no_word(kind: str, columns: int, tmp_path: Path) -> None:
    words = "supercalifragilistic " * 12
    text = {"line": words, "list": f"Two things.\n\nGPU\n  found   {words}\n  needed  {words}\n  fix     none"}[kind]
    (tmp_path / "play.yml").write_text(LONG)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", "-c", "local", "play.yml"]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(house.ROOT / "ansible.cfg"), "ANSIBLE_HOME": str(tmp_path)}
    environment |= {"ANSIBLE_NOCOLOR": "1", "TERM": "dumb", "WANMETAL_STAGES_SLOWEST_FROM": "0"}
    with subprocess.Popen(
        [
            *command,
            "-e",
            f"ansible_python_interpreter={sys.executable}",
            "-e",
            json.dumps({"text": text}),
        ],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    ):
        os.close(theirs)
        shown = b""
        while part := _read(ours):
            shown += part
    lines = shown.decode().split("\r\n")
    assert [line for line in lines if len(line) > columns] == []
    assert "fatal: [localhost]: FAILED!" in shown.decode()
    assert any(line.split()[:2] == ["localhost", "ok=0"] for line in lines) == (columns == 80)
    if kind == "list":
        assert " " * 18 + "supercalifragilistic" in shown.decode()


def _read(terminal: int) -> bytes:
    """What a terminal shows; nothing where its program has ended."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def test_words_of_others_do_nothing_to_a_terminal(tmp_path: Path) -> None:
    """A pack chooses names of files, and what ComfyUI answers."""
    (tmp_path / "words").write_text("a\x1b]52;c;aGk=\x07\x1b[31m\rb\x9b31m", encoding="utf-8")
    play = """
- hosts: localhost
  gather_facts: false
  vars: {words: "{{ lookup('ansible.builtin.file', 'words') }}"}
  tasks:
    - ansible.builtin.command: {argv: ["true"]}
      loop: ["{{ words }}"]
    - ansible.builtin.fail: {msg: "it says {{ words }}"}
"""
    said = run(tmp_path, play=play)
    assert "(item=a ]52;c;aGk=  [31m b 31m)" in said
    assert "it says a ]52;c;aGk=  [31m" in said
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", said)
