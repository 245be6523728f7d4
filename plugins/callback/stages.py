"""Callback ``wanmetal.comfyui.stages``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: stages
type: aggregate
short_description: Progress of long tasks, and what a run came to
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - After the recap, prints the time of each stage (a role, or a play's own tasks) with its number of changes, and the
    slowest tasks, in seconds; short stages that have changed nothing are left out.
  - Then what failed, and last what the playbooks say of each host.
  - While a task takes long, says so from time to time.
requirements:
  - Enabled in the configuration, C(callbacks_enabled = wanmetal.comfyui.stages).
options:
  slowest_from:
    description: Tasks that took at least this many seconds are listed, at most five.
    type: float
    default: 10.0
    ini:
      - section: callback_stages
        key: slowest_from
    env:
      - name: WANMETAL_STAGES_SLOWEST_FROM
  progress_every:
    description: Seconds between lines about a task that still runs; 0 shows none.
    type: float
    default: 20.0
    ini:
      - section: callback_stages
        key: progress_every
    env:
      - name: WANMETAL_STAGES_PROGRESS_EVERY
  changed_file:
    description: A file for C(./deploy), which says V(unchanged), and V(changed) as soon as anything has been changed.
    type: path
    env:
      - name: WANMETAL_STAGES_CHANGED_FILE
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.callback import CallbackBase
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import plain
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.stages import (
    Stages,
    closing,
    first_line,
    inventory_options,
)

_LOOKS = ("assert", "fail", "setup", "stat", "validate_argument_spec", "validate_settings", "_state")
"""Ends of actions that have changed nothing where they fail. Of others nobody knows how far they came."""
_SHOW_THEIR_OWN = ("aria2_download", "comfyui.apt", "python_environment", "release_build", "workflow_run")


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
        self._failed: dict[str, str] = {}
        self._task = ""
        self._waiting: set[str] = set()
        self._shows_its_own = False
        self._over = threading.Event()

    def _note(self, word: str) -> None:
        if file := self.get_option("changed_file"):
            Path(file).write_text(word, encoding="utf-8")

    def v2_playbook_on_start(self, playbook: Any) -> None:  # noqa: ARG002
        self._note("unchanged")
        if every := float(self.get_option("progress_every")):
            threading.Thread(target=self._watch, args=(every,), daemon=True).start()

    def _watch(self, every: float) -> None:
        while not self._over.wait(every):
            if not self._shows_its_own and (line := self.stages.running(every, sorted(self._waiting))):
                self._display.display(line)

    def v2_playbook_on_vars_prompt(self, *_asked: Any, **_more: Any) -> None:
        self.stages.end()  # what a person takes to answer is no task's time

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._play = play.get_name().strip()

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:  # noqa: ARG002
        role = task._role.get_name().rpartition(".")[2] if task._role else self._play
        self._waiting = set()
        self._shows_its_own = task.action.endswith(_SHOW_THEIR_OWN)
        self._task = f"{role}: {task.get_name().rpartition(' : ')[2].strip()}"
        self.stages.begin(role, task.get_name().rpartition(" : ")[2].strip())

    def v2_runner_on_start(self, host: Any, task: Any) -> None:  # noqa: ARG002
        self._waiting = self._waiting | {host.get_name()}

    def _answered(self, result: Any) -> str:
        host = str(result._host.get_name())
        self._waiting = self._waiting - {host}
        return host

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._answered(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self.v2_runner_on_failed(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        host = self._answered(result)
        if not ignore_errors:
            self._failed[host] = f"{self._task}: {first_line(result._result)}"
        task = result._task
        looks = task.check_mode or task.changed_when == [False] or task.action.endswith(_LOOKS)
        if not looks and not result._result.get("unreachable"):
            self._note("changed")

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        self.v2_playbook_on_task_start(task, False)

    def v2_runner_on_ok(self, result: Any) -> None:
        self._answered(result)
        if result.is_changed():
            self.stages.changed()
            if not context.CLIARGS.get("check"):
                self._note("changed")

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._over.set()
        lines = self.stages.report(float(self.get_option("slowest_from")), self._display.columns)
        summaries = {host: stats.summarize(host) for host in sorted(stats.processed)}
        command = "./deploy " if self.get_option("changed_file") else "ansible-playbook wanmetal.comfyui."
        said = stats.custom.get("_run", {}).get("wanmetal_closing", {})
        inventories = [*(context.CLIARGS.get("inventory") or ())]
        options = inventory_options(inventories, Path(__file__).resolve().parents[2], Path.cwd())
        lines += closing(summaries, self._failed, said, command, options, self._display.columns)
        for line in lines:  # with what failed, in words of the services and of packs
            self._display.display("\n".join(map(plain, line.split("\n"))))
