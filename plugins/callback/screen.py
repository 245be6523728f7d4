"""Callback ``wanmetal.comfyui.screen``."""

from __future__ import annotations

DOCUMENTATION = r"""
name: screen
type: stdout
short_description: Ansible's own output with each error once
version_added: 0.1.0
author: The wanmetal team (@wanmetal)
description:
  - As P(ansible.builtin.default#callback), except that an error is shown once, without its place in the playbook.
  - Checks of a role's arguments are shown only where they fail, and files that tasks are read from are not shown.
  - On a terminal, lines of messages and of the recap break between words.
  - C(-v) shows all of it.
requirements:
  - Set in the configuration, C(stdout_callback = wanmetal.comfyui.screen).
extends_documentation_fragment:
  - default_callback
  - result_format_callback
"""

import sys
from typing import Any

from ansible import constants
from ansible.playbook.task_include import TaskInclude
from ansible.plugins.callback.default import CallbackModule as Default
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import plain
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.stages import AROUND, wrapped

_LEFT_OUT = ("exception", "argument_errors", "stdout_lines", "stderr_lines", "assertion", "evaluated_to")
"""What is in another part of a result, too, or says nothing to an operator."""
_READ = ("msg", "stderr", "stdout", "module_stderr", "module_stdout")
"""What a person reads of a task that failed."""
_RECAP = {"ok": "ok", "changed": "changed", "unreachable": "unreachable", "failures": "failed", "skipped": "skipped"}
_RECAP_COLUMNS = 110
"""What a line of Ansible's own recap takes."""


class CallbackModule(Default):  # type: ignore[misc]
    """Ansible's entry point."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "wanmetal.comfyui.screen"

    def _once(self, result: Any) -> Any:
        if not self._display.verbosity:
            for name in _LEFT_OUT:
                result._result.pop(name, None)
        for item in (result._result, *(result._result.get("results") or ())):
            if isinstance(item, dict) and isinstance(text := item.get("msg"), str) and not self._display.verbosity:
                item["msg"] = AROUND.sub("", text)
            self._wrap(item)
        return result

    def _wrap(self, result: Any) -> None:
        """Break lines that a terminal would break within words."""
        columns = self._display.columns - 8
        for name in _READ if sys.stdout.isatty() and isinstance(result, dict) else ():
            text = result.get(name)
            if isinstance(text, list) and all(isinstance(line, str) for line in text):
                text = "\n".join(text)
            if isinstance(text, str) and ("\n" in text or len(name + text) > columns):
                lines = [part for line in text.split("\n") for part in wrapped(plain(line), columns) or [""]]
                result[name] = "\n".join([*lines, ""])  # which YAML shows as lines, as they are

    def _get_item_label(self, result: Any) -> Any:
        # Names of files, for example, that a pack has chosen. Everything else of a result is shown as YAML.
        label = super()._get_item_label(result)
        return plain(label) if isinstance(label, str) else label

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        super().v2_runner_on_failed(self._once(result), ignore_errors)

    def v2_runner_item_on_failed(self, result: Any) -> None:
        super().v2_runner_item_on_failed(self._once(result))

    def v2_runner_on_unreachable(self, result: Any) -> None:
        super().v2_runner_on_unreachable(self._once(result))

    def v2_runner_on_ok(self, result: Any) -> None:
        task = result._task
        quiet = isinstance(task, TaskInclude) or task.action.endswith("validate_argument_spec")
        if task.action.endswith(".debug"):
            self._wrap(result._result)
        if self._display.verbosity or not quiet:
            super().v2_runner_on_ok(result)

    def v2_playbook_on_include(self, included_file: Any) -> None:
        if self._display.verbosity:
            super().v2_playbook_on_include(included_file)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        if not sys.stdout.isatty() or self._display.columns >= _RECAP_COLUMNS:
            super().v2_playbook_on_stats(stats)
            return
        self._display.banner("PLAY RECAP")
        longest = max(map(len, stats.processed), default=0)
        for host in sorted(stats.processed):
            counts = stats.summarize(host)
            color = constants.COLOR_ERROR if counts["failures"] or counts["unreachable"] else constants.COLOR_OK
            shown = " ".join(f"{name}={counts[key]}" for key, name in _RECAP.items())
            for line in wrapped(f"{host:<{longest}}  {shown}", self._display.columns):
                self._display.display(line, color=color)
        self._display.display("")
