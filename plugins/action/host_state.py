"""Action ``wanmetal.comfyui.host_state``: it is the first to reach a host, and says in words where that fails."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.connections import no_python, refused_root, unreachable
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.problems import Problem, listed


class ActionModule(ActionBase):  # type: ignore[misc]
    """Ansible's entry point."""

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        variables = task_vars or {}
        host = variables.get("inventory_hostname", "")
        result: dict[str, Any] = super().run(tmp, variables)
        try:
            result.update(self._execute_module(module_args=self._task.args, task_vars=variables))
        except AnsibleConnectionFailure as error:
            if problem := refused_root(str(error)):
                return {**result, "failed": True, "msg": heading(host, problem)}
            raise AnsibleConnectionFailure(heading(host, unreachable(str(error)))) from None
        except AnsibleError as error:
            problem = refused_root(str(error))
            if not problem:
                raise
            return {**result, "failed": True, "msg": heading(host, problem)}
        if result.get("failed"):
            said = "\n".join(str(result.get(key, "")) for key in ("module_stderr", "module_stdout", "msg", "exception"))
            problem = refused_root(said) or no_python(said)
            if problem:
                result["msg"] = heading(host, problem)
        return result


def heading(host: str, problem: Problem) -> str:
    """The one problem, as those of preflight are shown."""
    return listed([problem], f"1 thing of {host} must be fixed first. Nothing has been changed.")
