"""Shows how far ``wanmetal.comfyui.workflow_run`` is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible_collections.wanmetal.comfyui.plugins.module_utils.host.units import plain
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows import check
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.convert import ConversionError
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.replace import replace
from ansible_collections.wanmetal.comfyui.plugins.module_utils.workflows.schemas import from_object_info


class ActionModule(ActionBase):  # type: ignore[misc]
    """Checks the workflow here, where the map of replacements is; starts it, and looks at it until it has ended."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module; see the class."""
        task_vars = task_vars or {}
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = dict(self._task.args)
        text, wanted = args.pop("workflow", ""), boolean(args.pop("run", False))
        found = self._execute_module(module_args=args, task_vars=task_vars)
        if found.get("failed"):
            return {**result, **found}
        try:
            checked, graph = _checked(text, found["object_info"])
        except (ConversionError, ValueError) as error:
            return {**result, "failed": True, "msg": str(error)}
        result.update(changed=False, **checked)
        if wanted and not result["problems"] and not self._task.check_mode:
            begun = self._execute_module(module_args={**args, "graph": graph}, task_vars=task_vars)
            # What ComfyUI refuses, such as a model that it does not have, is told with what would help.
            result.update({"problems": [begun["msg"]]} if begun.get("failed") else begun)
        since, host = time.monotonic(), task_vars.get("inventory_hostname", "host")
        looking = {key: value for key, value in args.items() if key in ("url", "dest")}
        if result.get("prompt_id") and not result.get("failed"):
            self._display.display(
                f"{host}: queued as job {plain(result['prompt_id'])}, which goes on if this is interrupted"
            )
        while result.get("prompt_id") and not result.get("over") and not result.get("failed"):
            looked = {**looking, "prompt_id": result["prompt_id"]}
            result.update(self._execute_module(module_args=looked, task_vars=task_vars))
            if state := result.pop("state", ""):
                self._display.display(f"{host}: it {state}, {time.monotonic() - since:.0f} s so far")
        return result


_MODELS = (".safetensors", ".sft", ".pth", ".pt", ".ckpt", ".bin", ".onnx", ".gguf")


def _checked(text: Any, info: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a ComfyUI offers, and what it lacks for a workflow; and the workflow in API format."""
    schemas = from_object_info(info)
    # Ansible makes data of a text that looks like JSON.
    workflow = json.loads(text) if isinstance(text, str) else text
    graph, replaced = replace(workflow, schemas, schemas)
    api = check.read(graph, schemas, queued=True)
    inputs = [one.get("input") for one in info.values() if isinstance(one, Mapping)]
    found = {
        "node_types": sorted(schemas),
        "models": [{"id": name, "name": name, "folder": "models"} for name in sorted(set(offered_models(inputs)))],
        "replaced": [str(one) for one in replaced],
        "problems": check.problems(api, schemas),
        "prompt_id": "",
    }
    return found, api


def offered_models(info: Any) -> Iterator[str]:
    """Names of model files among the choices that node types offer."""
    if isinstance(info, str):
        if info.lower().endswith(_MODELS):
            yield info
    elif isinstance(info, dict | list):
        for one in info.values() if isinstance(info, dict) else info:
            yield from offered_models(one)
