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
  - C(-v) shows all of it.
requirements:
  - Set in the configuration, C(stdout_callback = wanmetal.comfyui.screen).
extends_documentation_fragment:
  - default_callback
  - result_format_callback
"""

import sys
from typing import Any

from ansible.playbook.task_include import TaskInclude
from ansible.plugins.callback.default import CallbackModule as Default
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.stages import wrapped

_LEFT_OUT = ("exception", "argument_errors", "stdout_lines", "stderr_lines", "assertion", "evaluated_to")
"""What is in another part of a result, too, or says nothing to an operator."""


class CallbackModule(Default):  # type: ignore[misc]
    """Ansible's entry point."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "wanmetal.comfyui.screen"

    def _once(self, result: Any) -> Any:
        if not self._display.verbosity:
            for name in _LEFT_OUT:
                result._result.pop(name, None)
        return result

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        super().v2_runner_on_failed(self._once(result), ignore_errors)

    def v2_runner_item_on_failed(self, result: Any) -> None:
        super().v2_runner_item_on_failed(self._once(result))

    def v2_runner_on_unreachable(self, result: Any) -> None:
        super().v2_runner_on_unreachable(self._once(result))

    def v2_runner_on_ok(self, result: Any) -> None:
        task = result._task
        quiet = isinstance(task, TaskInclude) or task.action.endswith("validate_argument_spec")
        text = result._result.get("msg")
        if task.action.endswith(".debug") and isinstance(text, str) and sys.stdout.isatty():
            lines = [part for line in text.split("\n") for part in wrapped(line, self._display.columns - 8) or [""]]
            result._result["msg"] = "\n".join([*lines, ""])  # which YAML shows as lines, as they are
        if self._display.verbosity or not quiet:
            super().v2_runner_on_ok(result)

    def v2_playbook_on_include(self, included_file: Any) -> None:
        if self._display.verbosity:
            super().v2_playbook_on_include(included_file)
