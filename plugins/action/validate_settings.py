"""Action ``wanmetal.comfyui.validate_settings``; its documentation lies beside the module of that name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

# Not for this plugin: Ansible imports it before it forks a process for each task, and compiles the Python of a
# collection anew in each process that does not have it yet.
from ansible_collections.wanmetal.comfyui.plugins.filter import filters  # noqa: F401  # pylint: disable=unused-import
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils import settings, workflow_files
from ansible_collections.wanmetal.comfyui.plugins.plugin_utils.problems import counted, listed


class ActionModule(ActionBase):  # type: ignore[misc]
    """Ansible's entry point. Works on the controller alone."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        variables = task_vars or {}
        self.validate_argument_spec({})
        result: dict[str, Any] = super().run(tmp, variables)
        specs = settings.load_specs()
        values: dict[str, object] = {}
        problems = []
        for name in specs.options.keys() & variables.keys():
            try:
                values[name] = _plain(self._templar.template(variables[name]))
            except AnsibleError as error:
                problems.append(settings.unrenderable(name, error, specs.options[name]))
        problems += settings.check(values, _given(variables), specs, self._read)
        problems.sort(key=lambda problem: problem.what)
        result["changed"] = False
        result["failed"] = bool(problems)
        if not problems:
            result["msg"] = "The settings are in order."
            result["places"] = settings.places(values, specs)
        else:
            result["msg"] = listed(
                problems,
                f"{counted(len(problems), 'setting')} of {variables['inventory_hostname']} must be fixed first. "
                "Nothing has been changed.",
            )
        return result

    def _read(self, name: str) -> bytes | None:
        try:
            path = Path(self._find_needle("files", name))
        except AnsibleError:
            return None
        return workflow_files.load(path) if path.is_file() else None  # a video may be of any size


def _given(variables: dict[str, Any]) -> set[str]:
    """Names that inventory, group_vars and command line set: without those of roles and tasks."""
    host = variables["inventory_hostname"]
    hostvars = variables["hostvars"]
    by_tasks = getattr(getattr(hostvars, "_variable_manager", None), "_nonpersistent_fact_cache", {})
    return {str(name) for name in hostvars.raw_get(host)} - set(by_tasks.get(host, {}))


def _plain(value: Any) -> Any:
    """Render what Ansible renders lazily, here, where its errors are caught."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
