"""What is shown of a task that fetches packages."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from ansible_collections.wanmetal.comfyui.plugins.action import apt, python_environment
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.received import Watched, received

COUNTERS = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets
    lo: 900 1 0 0 0 0 0 0 900 1
  eth0:{} 5 0 0 0 0 0 0 7 1
eth1: 100 5 0 0 0 0 0 0 7 1
"""


def test_what_comes_in_is_that_of_all_interfaces_but_loopback() -> None:
    assert received(COUNTERS.format(4000000)) == 4000100
    assert received("") == 0


@pytest.mark.parametrize(
    ("answers", "shown"),
    [
        ([5_000_000, 9_000_000, 9_000_000], ["so far, 4.0 MB received, ", "so far, 4.0 MB received, 0 B/s"]),
        ([5_000_000, None, 9_000_000], ["so far", "so far"]),
        ([None, None, None], ["so far", "so far"]),
    ],
)
def test_lines_say_how_much_and_how_fast_where_the_host_answers(answers: list[int | None], shown: list[str]) -> None:
    over = threading.Event()
    lines: list[str] = []
    left = list(answers)

    def counters(command: str, *, sudoable: bool) -> tuple[int, bytes, bytes]:
        assert command == "cat /proc/net/dev"
        assert not sudoable
        amount = left.pop(0)
        if amount is None:
            raise OSError("the connection broke")
        return 0, COUNTERS.format(amount).encode(), b""

    def display(text: str) -> None:
        lines.append(text)
        if len(lines) == len(shown):
            over.set()

    action: Any = SimpleNamespace(_display=SimpleNamespace(display=display))
    Watched._watch(action, "gpu1: Build", SimpleNamespace(exec_command=counters), over, every=0.01)
    assert len(lines) == len(shown)
    for line, part in zip(lines, shown, strict=True):
        assert line.startswith("gpu1: Build: ")
        assert part in line
        assert ("received" in part) == ("received" in line)


@pytest.mark.parametrize(("action", "module"), [(apt, "ansible.builtin.apt"), (python_environment, None)])
def test_the_module_runs_with_the_arguments_of_the_task(action: Any, module: str | None) -> None:
    asked: list[Any] = []

    class Tried(action.ActionModule):  # type: ignore[misc]
        def __init__(self) -> None:
            self._connection = SimpleNamespace(become="sudo")
            self._task = SimpleNamespace(args={"name": ["a"]}, get_name=lambda: "role : Install a")

        def _execute_module(self, *arguments: Any, **more: Any) -> dict[str, Any]:
            asked.append((arguments, more["module_args"]))
            return {"changed": True}

        def _watch(self, head: str, connection: Any, *_unused: Any) -> None:
            asked.append((head, connection.become))

    with patch("ansible.plugins.action.ActionBase.run", return_value={}):
        assert Tried().run(None, {"inventory_hostname": "gpu1"}) == {"changed": True}
    assert ("gpu1: Install a", None) in asked
    assert ((module,), {"name": ["a"]}) in asked
