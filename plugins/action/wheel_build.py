"""Shows the progress of ``wanmetal.comfyui.wheel_build`` while it runs."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.wanmetal.comfyui.plugins.module_utils.wheels.build import RUNNING, line

_SHOW_EVERY_S = 30.0
# The build goes on without us, so a connection that breaks is given time to come back.
_PATIENCE_S = 600.0


class ActionModule(ActionBase):  # type: ignore[misc]
    """Calls the module again until the build has ended."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module; see the class."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        host = task_vars.get("inventory_hostname", "host")
        changed = False
        heard = shown = time.monotonic()
        while True:
            try:
                told = self._execute_module(module_args=dict(self._task.args), task_vars=task_vars)
                heard = time.monotonic()
            except AnsibleConnectionFailure:
                if time.monotonic() - heard > _PATIENCE_S:
                    raise
                self._display.display(f"{host}: the connection broke; the build continues, and this waits for the host")
                self._connection.reset()
                time.sleep(5)
                continue
            changed = changed or bool(told.get("changed"))
            if told.get("failed") or told.get("state") != RUNNING:
                return {**result, **told, "changed": changed}
            if time.monotonic() - shown >= _SHOW_EVERY_S:
                shown = time.monotonic()
                self._display.display(f"{host}: {line(str(self._task.args['name']), told)}")
