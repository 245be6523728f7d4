"""Callback ``wanmetal.comfyui.stages``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: stages
type: aggregate
short_description: Where the time of a deploy went
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - After the recap, prints the time of each stage (a role, or a play's own tasks) with its number of changes, and the
    slowest tasks, in seconds.
requirements:
  - Enabled in the configuration, C(callbacks_enabled = wanmetal.comfyui.stages).
options:
  slowest_from:
    description: Tasks that took at least this many seconds are listed, at most five.
    type: float
    default: 2.0
    ini:
      - section: callback_stages
        key: slowest_from
    env:
      - name: WANMETAL_STAGES_SLOWEST_FROM
  changed_file:
    description: A file for C(./deploy), which says V(unchanged), and V(changed) as soon as anything has been changed.
    type: path
    env:
      - name: WANMETAL_STAGES_CHANGED_FILE
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.callback import CallbackBase
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.stages import Stages


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Ansible's entry point."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "wanmetal.comfyui.stages"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: Any, clock: Callable[[], float] = time.monotonic, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stages = Stages(clock)
        self._play = ""

    def _note(self, word: str) -> None:
        if file := self.get_option("changed_file"):
            Path(file).write_text(word, encoding="utf-8")

    def v2_playbook_on_start(self, playbook: Any) -> None:  # noqa: ARG002
        self._note("unchanged")

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._play = play.get_name().strip()

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:  # noqa: ARG002
        role = task._role.get_name().rpartition(".")[2] if task._role else self._play
        self.stages.begin(role, task.get_name().rpartition(" : ")[2].strip())

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        self.v2_playbook_on_task_start(task, False)

    def v2_runner_on_ok(self, result: Any) -> None:
        if result.is_changed():
            self.stages.changed()
            if not context.CLIARGS.get("check"):
                self._note("changed")

    def v2_playbook_on_stats(self, stats: Any) -> None:  # noqa: ARG002
        for line in self.stages.report(float(self.get_option("slowest_from"))):
            self._display.display(line)
